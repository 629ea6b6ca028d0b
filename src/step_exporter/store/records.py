"""What the stores give back: one frozen record a row, and the trace that they make up.

Fields have the names of the columns (see ``step_exporter.models`` for their meaning) and stand in an
order that a row of the select fits, so that a record is made straight from a row. Times (``*_ns``) are
integer nanoseconds, those of a moment since the Unix epoch; ``created_at`` and ``updated_at`` are
UTC-aware. ``None`` means unknown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from datetime import datetime
from functools import cache
from typing import Any, Generic, Literal, TypeVar, cast

import orjson
from msgspec.structs import asdict

from step_exporter.conventions.clean import visible
from step_exporter.facts import AttributeValue, Event, Link, Resource, Scope
from step_exporter.store.values import encode

T = TypeVar("T")


class Record:
    """What all records share."""

    __slots__ = ()

    def to_dict(self, *, js: bool = False) -> dict[str, Any]:
        """The record as values that JSON can hold: times of day as ISO 8601, sequences as lists, attributes
        with what JSON lacks (bytes, NaN) in the escapes of ``store.values``.

        ``js=True`` is for JavaScript, whose numbers are exact only to 2^53: beside every integer ``*_ns`` stands
        ``*_ns_text``, the same in decimal text.
        """
        names = [field.name for field in fields(self)]  # pyright: ignore[reportArgumentType]  # all are dataclasses
        exact = nanoseconds(type(self)) if js else ()
        return _plain_fields(((name, getattr(self, name)) for name in names), js, exact)


@cache
def nanoseconds(record: type[Record]) -> frozenset[str]:
    """The fields of a record that are integers of nanoseconds, and no percentiles of such."""
    kinds = {field.name: str(field.type) for field in fields(record)}  # pyright: ignore[reportArgumentType]
    return frozenset(name for name, kind in kinds.items() if name.endswith("_ns") and kind.startswith("int"))


def _plain_fields(pairs: Iterable[tuple[str, Any]], js: bool, exact: Container[str]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in pairs:
        plain[name] = orjson.loads(encode(value)) if name == "attributes" else _plain(value, js)
        if name in exact:
            plain[name + "_text"] = None if value is None else str(value)
    return plain


def _plain(value: Any, js: bool) -> Any:
    if isinstance(value, str):
        return visible(value)
    if value is None or isinstance(value, int | float | dict):  # a dict is a JSON column
        return cast(Any, value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Record):
        return value.to_dict(js=js)
    if isinstance(value, Event | Link | Resource | Scope):
        return _plain_fields(asdict(value).items(), js, ("time_ns",) if js else ())
    return [_plain(entry, js) for entry in value]


R = TypeVar("R", bound=Record)


def quickly(record: type[R]) -> Callable[..., R]:
    """What makes records from the values of all their fields, in order: a frozen dataclass of 40 fields takes 4 µs
    to fill. This fills a twin that is not frozen and declares it to be the record: 0.5 µs."""
    names = [field.name for field in fields(record)]  # pyright: ignore[reportArgumentType]  # all are dataclasses

    def become(made: Any) -> None:
        made.__class__ = record

    namespace = {"__post_init__": become}
    return make_dataclass(record.__name__, names, bases=(Record,), namespace=namespace, slots=True)


@dataclass(frozen=True, slots=True)
class StepMetricsRecord(Record):
    """A row of ``step_metrics`` without its key, which is the step's. Durations are nanoseconds."""

    run_id: str | None
    agent_id: str | None
    organization_id: str | None
    provider_id: str | None
    project_id: str | None
    step_start_ns: int | None
    llm_request_start_ns: int | None
    llm_request_ns: int | None
    tool_execution_ns: int | None
    step_ns: int | None
    ttft_ns: int | None
    llm_request_count: int
    tool_call_count: int
    base_template_id: str | None
    template_id: str | None


@dataclass(frozen=True, slots=True)
class StepRecord(Record):
    """A row of ``steps`` with its metrics: one turn of an agent's loop."""

    trace_id: str
    id: str
    span_id: str
    """The anchor: the first span of the step."""
    parent_step_id: str | None
    origin: str | None
    organization_id: str | None
    provider_id: str | None
    run_id: str | None
    agent_id: str | None
    agent_name: str | None
    project_id: str | None
    provider_name: str | None
    provider_category: str | None
    model: str | None
    model_handle: str | None
    model_endpoint: str | None
    context_window_limit: int | None
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    completion_tokens_details: dict[str, int] | None
    prompt_tokens_details: dict[str, int] | None
    stop_reason: str | None
    tags: list[str] | None
    tid: str | None
    request_id: str | None
    feedback: Literal["positive", "negative"] | None
    error_type: str | None
    error_data: dict[str, Any] | None
    """``message``, ``traceback`` and ``context``, where known."""
    status: str
    """pending, running, success, failed, cancelled or abandoned."""
    flags: list[str] | None
    service_name: str | None
    convention: str | None
    created_at: datetime
    """When the step began, to the microsecond; ``metrics.step_start_ns`` has all of it."""
    updated_at: datetime
    metrics: StepMetricsRecord | None
    position: int | None = None
    """The step's place in its run by (start, span_id), from 1. Counted by ``trace`` and ``step``; ``steps``
    leaves it out, for it would have to read all of every run."""


@dataclass(frozen=True, slots=True)
class RunRecord(Record):
    """A row of ``runs``: one invocation of an agent."""

    trace_id: str
    id: str
    span_id: str | None
    """The agent or workflow span; None for the run of a trace that has none."""
    parent_run_id: str | None
    agent_id: str | None
    agent_name: str | None
    conversation_id: str | None
    organization_id: str | None
    project_id: str | None
    status: str
    """created, running, completed, failed or cancelled."""
    stop_reason: str | None
    start_ns: int | None
    total_duration_ns: int | None
    ttft_ns: int | None
    step_count: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    error_type: str | None
    service_name: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class MessageRecord(Record):
    """A row of ``messages`` with the content that it was read from."""

    trace_id: str
    id: str
    parent_id: str | None
    """The message before it; None at the start of a run."""
    role: str
    """system, user, assistant or tool."""
    content_hash: str | None
    name: str | None
    tool_calls: list[dict[str, Any]] | None
    tool_call_id: str | None
    step_id: str | None
    """The first step that put it out, else the first whose prompt it is in."""
    run_id: str | None
    position: int
    body: str | None
    """The element as it was emitted, mostly JSON text; None where no content is kept."""

    @property
    def content(self) -> Any:
        """``body`` parsed as JSON; the text itself where it is not JSON."""
        if self.body is None:
            return None
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return self.body


@dataclass(frozen=True, slots=True)
class SpanRecord(Record):
    """A span as it arrived, its content values put back in their places, and the step that it is part of."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    start_ns: int | None
    end_ns: int | None
    ended: bool
    status_code: str
    status_message: str | None
    role: str
    """workflow, agent, step, llm, tool or other (``facts.Role``)."""
    convention: str | None
    service_name: str | None
    step_id: str | None
    attributes: Mapping[str, AttributeValue]
    events: tuple[Event, ...]
    links: tuple[Link, ...]
    resource: Resource
    scope: Scope
    trace_flags: int
    trace_state: str
    parent_is_remote: bool | None
    dropped_attributes: int
    dropped_events: int
    dropped_links: int
    process_id: str | None
    abandoned_ns: int | None
    flags: tuple[str, ...]
    collisions: int


@dataclass(frozen=True, slots=True)
class AuditRecord(Record):
    """An entry of the audit trail: who changed what, and when."""

    id: int
    at: datetime
    actor: str
    action: str
    """feedback, tags, transaction, delete, import, prune, rebuild, requeue or rotate_key."""
    trace_id: str | None
    organization_id: str | None
    """Whose rows were changed, where they are of one organization."""
    subject: str | None
    """The id of the step, run or trace that was changed; None where it was the database."""
    details: dict[str, Any] | None
    """Of what people set ``{"old": …, "new": …}`` under its name; else what was asked for, and how many."""


@dataclass(frozen=True, slots=True)
class TreeNode(Record):
    """One line of a trace's tree. ``id`` is the id of a run, of a step, or of a span."""

    kind: Literal["run", "step", "span"]
    id: str
    depth: int
    """0 for a root."""
    parent: int | None
    """Where in the tree the parent stands; None for a root."""


@dataclass(frozen=True, slots=True)
class TraceRecord(Record):
    """All that is known of one trace.

    ``tree`` lists runs, their steps and the spans of these in the order in which to show them, every node
    after its parent and children by start. It is flat so that a chain of 10,000 spans can be
    walked, compared and written as JSON without recursion.
    """

    trace_id: str
    first_ns: int | None
    last_ns: int | None
    runs: tuple[RunRecord, ...]
    """By (start_ns, id)."""
    steps: tuple[StepRecord, ...]
    """By (start, span_id)."""
    spans: tuple[SpanRecord, ...]
    """By (start_ns, span_id)."""
    messages: tuple[MessageRecord, ...]
    """Run by run, in the order of the conversation."""
    tree: tuple[TreeNode, ...]


@dataclass(frozen=True, slots=True)
class Page(Record, Generic[T]):
    """Some of the rows asked for. ``next`` is the cursor to pass as ``after`` for those that follow; None
    where there were no more."""

    items: Sequence[T]
    next: str | None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
