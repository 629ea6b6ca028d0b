"""A trace in outline: all of its spans as light rows in the order of their tree, with the runs and steps that they
begin.

``trace`` reads everything and derives the trace again, at 0.2 ms a span; an outline reads nine columns, so that a
trace of 50,000 spans can be looked at. What a single row holds is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select

from step_exporter.errors import NotFoundError
from step_exporter.store.load import StoredSpan, decoded, load_some
from step_exporter.store.reads import SPANS, TRACES, steps_of_trace
from step_exporter.store.records import RunRecord, StepRecord

_COLUMNS = (
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


class OutlineRow(NamedTuple):
    """A line of the tree."""

    span: OutlineSpan
    depth: int
    """0 for a root."""
    children: int
    placed: str | None
    """Why it stands where it does, if that is not its own doing: ``orphan`` (its parent never came), ``cycle``."""


class Outline(NamedTuple):
    """All of a trace, without what its spans hold."""

    trace_id: str
    version: tuple[int, int]
    """(epoch, revision); the outline is good as long as the trace has it."""
    first_ns: int | None
    last_ns: int | None
    runs: tuple[RunRecord, ...]
    steps: tuple[StepRecord, ...]
    rows: tuple[OutlineRow, ...]


def version(conn: Connection, trace_id: str) -> tuple[int, int] | None:
    """(epoch, revision) of a trace, which change with every new fact; None if there is no such trace."""
    row = conn.execute(select(TRACES.c.epoch, TRACES.c.revision).where(TRACES.c.trace_id == trace_id)).one_or_none()
    return None if row is None else (row.epoch, row.revision)


def outline(conn: Connection, trace_id: str) -> Outline:
    """The outline of the trace with this whole id. Raises ``NotFoundError``."""
    trace = conn.execute(select(TRACES).where(TRACES.c.trace_id == trace_id)).one_or_none()
    if trace is None:
        raise NotFoundError(f"there is no trace {trace_id}")
    runs, steps = steps_of_trace(conn, trace_id)
    spans = [OutlineSpan._make(row) for row in conn.execute(select(*_COLUMNS).where(SPANS.c.trace_id == trace_id))]
    return Outline(
        trace_id, (trace.epoch, trace.revision), trace.first_ns, trace.last_ns, runs, steps, tuple(as_tree(spans))
    )


def span(conn: Connection, trace_id: str, span_id: str) -> StoredSpan:
    """One span with all that it holds. Raises ``NotFoundError``."""
    for stored in decoded(conn, trace_id, load_some(conn, trace_id, [span_id])):
        return stored
    raise NotFoundError(f"there is no span {span_id} in trace {trace_id}")


def as_tree(spans: Sequence[OutlineSpan]) -> list[OutlineRow]:
    """The spans in the order of their tree, siblings by start. Parents may be missing or go round in circles: every
    span is there once."""
    ordered = sorted(spans, key=lambda span: (span.start_ns or 0, span.span_id))
    known = {span.span_id for span in ordered}
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
        stack = [(root, 0, placed)]
        while stack:
            each, depth, why = stack.pop()
            if each.span_id in seen:
                continue
            seen.add(each.span_id)
            below = children.get(each.span_id, ())
            rows.append(OutlineRow(each, depth, len(below), why))
            stack.extend((child, depth + 1, None) for child in reversed(below))
    return rows
