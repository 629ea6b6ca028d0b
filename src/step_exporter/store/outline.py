"""A trace in outline: all of its spans as light rows in the order of their tree, with the runs and steps that they
begin.

``trace`` reads everything and derives the trace again, at 0.2 ms a span; an outline reads ten columns of a span and
fourteen of a step, so that a trace of 50,000 spans can be looked at. What a single row holds is read when it is asked
for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select

from step_exporter.errors import NotFoundError
from step_exporter.store import organizations
from step_exporter.store.load import StoredSpan, decoded, load_some
from step_exporter.store.reads import METRICS, SPANS, STEPS, STEPS_WITH_METRICS, TRACES, runs_of_trace
from step_exporter.store.records import RunRecord

_SPAN_COLUMNS = (
    SPANS.c.span_id,
    SPANS.c.parent_span_id,
    SPANS.c.name,
    SPANS.c.role,
    SPANS.c.start_ns,
    SPANS.c.end_ns,
    SPANS.c.state,
    SPANS.c.status_code,
    SPANS.c.service_name,
    SPANS.c.abandoned_ns,
)


_STEP_COLUMNS = (
    STEPS.c.id,
    STEPS.c.span_id,
    STEPS.c.run_id,
    STEPS.c.status,
    STEPS.c.model,
    STEPS.c.provider_name,
    STEPS.c.prompt_tokens,
    STEPS.c.completion_tokens,
    STEPS.c.total_tokens,
    STEPS.c.cached_input_tokens,
    STEPS.c.cache_write_tokens,
    METRICS.c.step_start_ns,
    METRICS.c.step_ns,
)
_START = 11
"""Where ``step_start_ns`` stands."""


class OutlineSpan(NamedTuple):
    """A span of an outline."""

    span_id: str
    parent_span_id: str | None
    name: str
    role: str
    start_ns: int | None
    end_ns: int | None
    state: str
    status_code: str
    service_name: str | None
    abandoned_ns: int | None

    @property
    def is_open(self) -> bool:
        """Whether its end may still come."""
        return self.state == "open" and self.abandoned_ns is None


class OutlineStep(NamedTuple):
    """A step of an outline. The columns have their meaning in ``models``."""

    id: str
    span_id: str
    """Its anchor."""
    run_id: str | None
    status: str
    model: str | None
    provider_name: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    start_ns: int | None
    step_ns: int | None
    position: int | None
    """Its place in its run by (start, span_id), from 1."""


class OutlineRow(NamedTuple):
    """A line of the tree."""

    span: OutlineSpan
    """The span of the line; of a line that is a step, the step's anchor."""
    depth: int
    """0 for a root."""
    placed: str | None
    """Why it stands where it does, if that is not its own doing: ``orphan`` (its parent never came), ``cycle``."""
    step: OutlineStep | None = None
    """The step that the line is. Where an LLM request anchors a step, no span is the step, so it has a line of its own,
    with the request below it, and what stands beside the request within the step's time."""


class Outline(NamedTuple):
    """All of a trace, without what its spans hold."""

    trace_id: str
    version: tuple[int, int]
    """(epoch, revision); the outline is good as long as the trace has it."""
    first_ns: int | None
    last_ns: int | None
    span_count: int
    runs: tuple[RunRecord, ...]
    steps: tuple[OutlineStep, ...]
    """By (start, span_id)."""
    rows: tuple[OutlineRow, ...]


def version(conn: Connection, trace_id: str, organization_id: str | None = None) -> tuple[int, int] | None:
    """(epoch, revision) of a trace, which change with every new fact; None if there is no such trace."""
    query = select(TRACES.c.epoch, TRACES.c.revision).where(TRACES.c.trace_id == trace_id)
    if organization_id is not None:
        query = query.where(organizations.has_part_of(TRACES.c.trace_id, organization_id))
    row = conn.execute(query).one_or_none()
    return None if row is None else (row.epoch, row.revision)


def outline(conn: Connection, trace_id: str, organization_id: str | None = None) -> Outline:
    """The outline of the trace with this whole id, or of what belongs to an organization. Raises ``NotFoundError``."""
    trace = conn.execute(select(TRACES).where(TRACES.c.trace_id == trace_id)).one_or_none()
    if trace is None:
        raise NotFoundError(f"there is no trace {trace_id}")
    found = conn.execute(select(*_SPAN_COLUMNS).where(SPANS.c.trace_id == trace_id)).fetchall()
    spans = list(map(OutlineSpan._make, found))
    first_ns, last_ns = trace.first_ns, trace.last_ns
    if organization_id is not None:
        own = organizations.own_spans(conn, trace_id, organization_id)
        spans = [span for span in spans if span.span_id in own]
        first_ns, last_ns = organizations.times_of(spans)
    steps = _steps(conn, trace_id, organization_id)
    return Outline(
        trace_id=trace_id,
        version=(trace.epoch, trace.revision),
        first_ns=first_ns,
        last_ns=last_ns,
        span_count=len(spans),
        runs=runs_of_trace(conn, trace_id, organization_id),
        steps=steps,
        rows=tuple(as_tree(spans, steps)),
    )


def _steps(conn: Connection, trace_id: str, organization_id: str | None) -> tuple[OutlineStep, ...]:
    query = select(*_STEP_COLUMNS).select_from(STEPS_WITH_METRICS).where(STEPS.c.trace_id == trace_id)
    if organization_id is not None:
        query = query.where(STEPS.c.organization_id == organization_id)
    found = sorted(map(tuple, conn.execute(query).fetchall()), key=lambda row: (row[_START] or 0, row[1]))
    counts: dict[str, int] = {}
    steps: list[OutlineStep] = []
    for row in found:
        run_id: str | None = row[2]
        if run_id is not None:
            counts[run_id] = counts.get(run_id, 0) + 1
        steps.append(OutlineStep._make((*row, None if run_id is None else counts[run_id])))
    return tuple(steps)


def span(conn: Connection, trace_id: str, span_id: str, organization_id: str | None = None) -> StoredSpan:
    """One span with all that it holds. Raises ``NotFoundError``."""
    if organization_id is not None and span_id not in organizations.own_spans(conn, trace_id, organization_id):
        raise NotFoundError(f"there is no span {span_id} in trace {trace_id}")
    for stored in decoded(conn, trace_id, load_some(conn, trace_id, [span_id])):
        return stored
    raise NotFoundError(f"there is no span {span_id} in trace {trace_id}")


def as_tree(spans: Iterable[OutlineSpan], steps: Iterable[OutlineStep] = ()) -> list[OutlineRow]:
    """The lines of a trace: the spans in the order of their tree, siblings by start, and the steps that no span is.
    Parents may be missing or go round in circles: every span is there once."""
    ordered = sorted(spans, key=lambda span: (span.start_ns or 0, span.span_id))
    known = {span.span_id: span for span in ordered}
    own = {step.span_id: step for step in steps if (anchor := known.get(step.span_id)) and anchor.role == "llm"}
    children: dict[str, list[OutlineSpan]] = {}
    roots: list[OutlineSpan] = []
    for each in ordered:
        parent = each.parent_span_id
        if parent is None or parent not in known:
            roots.append(each)
        else:
            children.setdefault(parent, []).append(each)
    rows: list[OutlineRow] = []
    seen: set[str] = set()
    for root in (*roots, *ordered):  # who is unseen after the roots is on or below a cycle
        if root.span_id in seen:
            continue
        placed = None if root.parent_span_id is None else "orphan" if root.parent_span_id not in known else "cycle"
        levels: list[Iterator[OutlineSpan | _StepGroup]] = [iter(_grouped([root], own))]
        while levels:
            item = next(levels[-1], None)
            if item is None:
                levels.pop()
                continue
            depth = len(levels) - 1
            if isinstance(item, _StepGroup):
                if item.spans[0].span_id not in seen:
                    rows.append(OutlineRow(item.spans[0], depth, placed if depth == 0 else None, item.step))
                levels.append(iter(item.spans))
            elif item.span_id not in seen:
                seen.add(item.span_id)
                rows.append(OutlineRow(item, depth, placed if item is root else None))
                if below := children.get(item.span_id):
                    levels.append(iter(_grouped(below, own)))
    return rows


class _StepGroup(NamedTuple):
    """A step that no span is, and the spans of one parent that stand in it, its anchor first."""

    step: OutlineStep
    spans: list[OutlineSpan]


def _grouped(siblings: list[OutlineSpan], own: dict[str, OutlineStep]) -> Sequence[OutlineSpan | _StepGroup]:
    """The spans of one parent, by start, in the steps that they anchor. Another span stands in a step if it lies within
    the time of that one and of no other: which of several it belongs to only a derivation would tell. What is open
    goes on for ever."""
    groups: list[OutlineSpan | _StepGroup] = []
    widest: list[OutlineSpan] | None = None
    last = next_last = -1.0
    """The latest end of the steps so far, and the one before it: they all began before the span that is looked at."""
    for span in siblings:
        step = own.get(span.span_id)
        if step is not None:
            group = _StepGroup(step, [span])
            groups.append(group)
            end = math.inf if step.step_ns is None else (step.start_ns or 0) + step.step_ns
            if end > last:
                widest, last, next_last = group.spans, end, last
            else:
                next_last = max(next_last, end)
        elif widest and span.start_ns is not None and next_last < (span.end_ns or math.inf) <= last:
            widest.append(span)
        else:
            groups.append(span)
    return groups
