"""What stands beside the waterfall: all that is known of one of its lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from step_exporter.facts import AttributeValue, RawSpan
from step_exporter.models import utc_datetime
from step_exporter.store.cost import CostSum
from step_exporter.store.outline import Outline, OutlineStep
from step_exporter.store.records import RunRecord, StepRecord
from step_exporter.store.values import encode_value
from step_exporter.text import UNKNOWN, duration, message_text
from step_exporter.viewer.reading import PageStore
from step_exporter.viewer.waterfall import step_name

MAX_SHOWN = 100_000
"""Characters of one value on a page; the API gives all."""


class Chosen(NamedTuple):
    """A line of the waterfall, as an address names it: ``?span=ID`` or ``?step=ID``."""

    kind: str
    """``span`` or ``step``."""
    span_id: str
    """Of a step, its first span's."""

    @property
    def key(self) -> str:
        """As ``Line.key``."""
        return f"{self.kind}={self.span_id}"


class ShownMessage(NamedTuple):
    """A message as it is read."""

    role: str
    name: str | None
    text: str
    calls: Sequence[Mapping[str, Any]]


class ShownEvent(NamedTuple):
    """An event of a span."""

    name: str
    at: str
    attributes: list[tuple[str, str]]


class Detail(NamedTuple):
    """What is known of a span, and of the step and the run that begin with it."""

    chosen: Chosen
    title: str
    status: str
    role: str
    convention: str | None
    took: int | None
    start: str
    end: str
    run: RunRecord | None
    step: StepRecord | None
    cost: CostSum | None
    """Of the step, else of the run; None without a price table."""
    messages: list[ShownMessage]
    raw: RawSpan
    events: list[ShownEvent]
    attributes: list[tuple[str, str]]
    resource: list[tuple[str, str]]


def detail_of(store: PageStore, outline: Outline, chosen: Chosen) -> Detail:
    """The details of a line. Raises ``NotFoundError``."""
    stored = store.span(outline.trace_id, chosen.span_id)
    raw = stored.raw
    begun = next((step for step in outline.steps if step.span_id == chosen.span_id), None)
    run = next((run for run in outline.runs if run.span_id == chosen.span_id), None)
    step = store.step(begun.id, outline.trace_id) if begun else None
    found = store.messages(outline.trace_id, step_id=step.id) if step else ()
    known = raw.start_ns is not None and raw.end_ns is not None
    is_step = step is not None and (chosen.kind == "step" or stored.row.role == "step")
    return Detail(
        chosen=chosen,
        title=step_name(step.position) if step and is_step else raw.name or "Span",
        status=step.status if step else run.status if run else "failed" if raw.status_code == "error" else "",
        role=stored.row.role,
        convention=stored.row.convention,
        took=(raw.end_ns or 0) - (raw.start_ns or 0) if known else None,
        start=_moment(raw.start_ns),
        end=_moment(raw.end_ns),
        run=run,
        step=step,
        cost=store.cost(_steps_of(outline, begun, run)) if begun or run else None,
        messages=[ShownMessage(m.role, m.name, message_text(m), m.tool_calls or []) for m in found],
        raw=raw,
        events=[
            ShownEvent(
                event.name,
                duration(event.time_ns - raw.start_ns) if event.time_ns and raw.start_ns else "",
                _pairs(event.attributes),
            )
            for event in raw.events
        ],
        attributes=_pairs(raw.attributes),
        resource=_pairs(raw.resource.attributes),
    )


def _steps_of(outline: Outline, step: OutlineStep | None, run: RunRecord | None) -> list[OutlineStep]:
    return [step] if step else [each for each in outline.steps if run and each.run_id == run.id]


def _moment(ns: int | None) -> str:
    return UNKNOWN if ns is None else f"{utc_datetime(ns).isoformat(' ', 'milliseconds')[:23]} UTC"


def _pairs(attributes: Mapping[str, AttributeValue]) -> list[tuple[str, str]]:
    return [(key, _shown(value)) for key, value in sorted(attributes.items())]


def _shown(value: AttributeValue) -> str:
    """A value as text; JSON, also where it came as a text, is laid out."""
    if isinstance(value, str):
        if value[:1] not in ("{", "[") or len(value) > MAX_SHOWN:
            return value
        try:
            return orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
        except ValueError:
            return value
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    text = encode_value(value)
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
    except ValueError:
        return text
