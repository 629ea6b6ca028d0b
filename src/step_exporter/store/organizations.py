"""What belongs to an organization, for readers and writers that are confined to one.

Steps, their metrics and runs belong to the organization that their row names; without one they are nobody's. A message
belongs to its step's, or without a step to its run's. A trace is *wholly* an organization's if every step and run of
it is: then all of it is, and it may be deleted, pruned, rebuilt and exported as a whole. Of any other trace a span
belongs to its step's organization, or without a step to that of the run that it opens, else to whom the span above
belongs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from sqlalchemy import ColumnElement, Connection, and_, exists, literal, not_, or_, select

from step_exporter.errors import InputError
from step_exporter.models import Base
from step_exporter.store.filters import check_trace_id
from step_exporter.store.trace_spans import derivation_of

Condition = ColumnElement[bool]

_TRACES, _SPANS, _STEPS, _RUNS, _MESSAGES, _DELETIONS, _AUDIT = (
    Base.metadata.tables[name] for name in ("traces", "spans", "steps", "runs", "messages", "deletions", "audit")
)
# Under names of their own: a condition may stand in a query of the very tables.
_OF_STEPS, _OF_RUNS = _STEPS.alias("own_steps"), _RUNS.alias("own_runs")


def has_part_of(trace_id: ColumnElement[str], organization_id: str) -> Condition:
    """Whether a step or run of a trace belongs to an organization."""
    # Concatenated, so that SQLite looks among the steps of the trace, not among those of the organization: by that
    # index, to go through 60,000 traces where it had 10,000 steps took minutes; so 0.5 s.
    return or_(
        *(
            exists().where(table.c.trace_id == trace_id, table.c.organization_id.concat("") == organization_id)
            for table in (_OF_STEPS, _OF_RUNS)
        )
    )


def is_whole(trace_id: ColumnElement[str], organization_id: str) -> Condition:
    """Whether a trace wholly belongs to an organization."""
    others = (
        exists().where(table.c.trace_id == trace_id, table.c.organization_id.is_distinct_from(organization_id))
        for table in (_OF_STEPS, _OF_RUNS)
    )
    return and_(has_part_of(trace_id, organization_id), not_(or_(*others)))


def is_own_message(organization_id: str) -> Condition:
    """Whether a row of ``messages`` belongs to an organization."""
    of_step, of_run = (
        exists().where(
            table.c.trace_id == _MESSAGES.c.trace_id,
            table.c.id == message_column,
            table.c.organization_id == organization_id,
        )
        for table, message_column in ((_OF_STEPS, _MESSAGES.c.step_id), (_OF_RUNS, _MESSAGES.c.run_id))
    )
    return or_(of_step, and_(_MESSAGES.c.step_id.is_(None), of_run))


def whole_traces(conn: Connection, organization_id: str, among: Sequence[str] | None = None) -> list[str]:
    """The ids of the traces (default: of all) that wholly belong to an organization."""
    query = select(_TRACES.c.trace_id).where(is_whole(_TRACES.c.trace_id, organization_id))
    if among is not None:
        query = query.where(_TRACES.c.trace_id.in_(among))
    return list(conn.scalars(query.order_by(_TRACES.c.trace_id)))


def deleted_traces(conn: Connection, organization_id: str) -> list[str]:
    """The ids of the traces that were deleted as a whole and wholly belonged to an organization: so the audit trail
    says, as no row of theirs is left."""
    own = select(_AUDIT.c.subject).where(_AUDIT.c.action == "delete", _AUDIT.c.organization_id == organization_id)
    query = select(_DELETIONS.c.trace_id).where(_DELETIONS.c.kind == "trace", _DELETIONS.c.trace_id.in_(own))
    return list(conn.scalars(query))


def check_whole(conn: Connection, trace_id: str, organization_id: str | None) -> None:
    """Raise ``InputError`` if a trace does not wholly belong to an organization (None: to whoever asks)."""
    if organization_id is not None and not whole_traces(conn, organization_id, [trace_id]):
        raise InputError(
            f"trace {trace_id} does not belong to organization {organization_id!r:.100} alone: as a whole only"
            " a store of all organizations takes it"
        )


def check_none_shared(conn: Connection, trace_ids: Iterable[str], organization_id: str) -> None:
    """Raise ``InputError`` if any of these traces (whole ids) belongs to an organization in part. One of which nothing
    is the organization's is passed over, as if it were not there."""
    for trace_id in map(check_trace_id, trace_ids):
        if conn.scalar(select(has_part_of(literal(trace_id), organization_id))):
            check_whole(conn, trace_id, organization_id)


def owner_of(conn: Connection, trace_id: str) -> str | None:
    """The organization that a trace wholly belongs to, if there is one."""
    of_steps, of_runs = (
        select(table.c.organization_id).where(table.c.trace_id == trace_id) for table in (_STEPS, _RUNS)
    )
    owners = set(conn.scalars(of_steps.union(of_runs)))
    return owners.pop() if len(owners) == 1 else None


def own_spans(conn: Connection, trace_id: str, organization_id: str) -> set[str]:
    """The ids of the spans of a trace that belong to an organization."""
    query = select(_SPANS.c.span_id, _SPANS.c.parent_span_id).where(_SPANS.c.trace_id == trace_id)
    parents: dict[str, str | None] = {row[0]: row[1] for row in conn.execute(query)}
    if owner_of(conn, trace_id) == organization_id:
        return set(parents)
    of_steps = select(_STEPS.c.id, _STEPS.c.organization_id).where(_STEPS.c.trace_id == trace_id)
    of_runs = select(_RUNS.c.span_id, _RUNS.c.organization_id).where(_RUNS.c.trace_id == trace_id)
    steps, runs = ({row[0]: row[1] for row in conn.execute(query)} for query in (of_steps, of_runs))
    derivation = derivation_of(conn, trace_id)
    is_own: dict[str, bool] = {}
    for span_id in parents:
        step_id = derivation.step_of(span_id)
        if step_id in steps:
            is_own[span_id] = steps[step_id] == organization_id
        elif span_id in runs:
            is_own[span_id] = runs[span_id] == organization_id
    return _inherited(parents, is_own)


class _Timed(Protocol):
    @property
    def start_ns(self) -> int | None: ...
    @property
    def end_ns(self) -> int | None: ...


def times_of(spans: Iterable[_Timed]) -> tuple[int | None, int | None]:
    """The first and the last time of spans."""
    moments = [moment for span in spans for moment in (span.start_ns, span.end_ns) if moment is not None]
    return min(moments, default=None), max(moments, default=None)


def _inherited(parents: Mapping[str, str | None], is_own: dict[str, bool]) -> set[str]:
    """The spans that are own, or whose next span above that is known to be or not to be is. Circles are nobody's."""
    for span_id in parents:
        path: dict[str, None] = {}
        at: str | None = span_id
        while at is not None and at in parents and at not in is_own and at not in path:
            path[at] = None
            at = parents[at]
        answer = at is not None and is_own.get(at, False)
        is_own.update(dict.fromkeys(path, answer))
    return {span_id for span_id in parents if is_own[span_id]}
