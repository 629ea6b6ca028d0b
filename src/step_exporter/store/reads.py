"""Every reading operation, written once: ``op(conn, …)`` on SQLAlchemy Core, for ``StepStore`` and
``AsyncStepStore`` alike. With an ``organization_id`` it sees what belongs to that one only (``organizations``).

Rows are read by Core rather than the ORM (steps of a trace: 280 µs against 471, and 1,569 by the async ORM).
The caller opens the transaction; an operation of several statements expects them to see one snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    func,
    or_,
    select,
    tuple_,
)

from step_exporter import models
from step_exporter.conventions.content import element_text
from step_exporter.errors import AmbiguousIdError, InputError, NotFoundError
from step_exporter.facts import Content
from step_exporter.store import encryption, filters, organizations
from step_exporter.store.conditions import (
    beyond,
    ordering,
    place_values,
    plain_values,
    run_conditions,
    step_conditions,
)
from step_exporter.store.filters import Order, Place, RunFilter, StepFilter
from step_exporter.store.kept import KeptSelect
from step_exporter.store.records import (
    MessageRecord,
    Page,
    RunRecord,
    StepMetricsRecord,
    StepRecord,
    TraceRecord,
    quickly,
)
from step_exporter.store.trace_spans import derivation_of, spans_of
from step_exporter.store.trace_tree import arrange, step_start_ns

R = TypeVar("R", StepRecord, RunRecord)

MAX_CANDIDATES = 10
"""How many ids an error lists."""


def _columns(table: Table, record: type, without: Sequence[str] = ()) -> tuple[ColumnElement[Any], ...]:
    return tuple(table.c[field.name] for field in fields(record) if field.name not in without)


TRACES, SPANS, CONTENTS, STEPS, METRICS, RUNS, MESSAGES = (
    models.Base.metadata.tables[name]
    for name in ("traces", "spans", "contents", "steps", "step_metrics", "runs", "messages")
)

_STEP_COLUMNS = _columns(STEPS, StepRecord, without=("metrics", "position"))
_STEP_WIDTH = len(_STEP_COLUMNS)
STEPS_WITH_METRICS = STEPS.outerjoin(METRICS, and_(METRICS.c.trace_id == STEPS.c.trace_id, METRICS.c.id == STEPS.c.id))
_SELECT_STEPS = select(*_STEP_COLUMNS, *_columns(METRICS, StepMetricsRecord)).select_from(STEPS_WITH_METRICS)
_COUNT = [field.name for field in fields(StepMetricsRecord)].index("llm_request_count") + _STEP_WIDTH
"""A metrics column that is never NULL: where it is, there is no row of metrics."""
_START = [field.name for field in fields(StepMetricsRecord)].index("step_start_ns") + _STEP_WIDTH
_PAGES: dict[tuple[str, ...], KeptSelect] = {}
"""Pages of steps, by dialect, order and the names of what is asked for. To make a select anew, of 53 columns, and to
find it in SQLAlchemy's cache took longer than to run it."""
_SELECT_RUNS = select(*_columns(RUNS, RunRecord))
_make_step, _make_metrics = quickly(StepRecord), quickly(StepMetricsRecord)
_make_run, _make_message = quickly(RunRecord), quickly(MessageRecord)
_ERROR = [field.name for field in fields(StepRecord)].index("error_data")
_CALLS = [field.name for field in fields(MessageRecord)].index("tool_calls")
_HIDDEN_CALLS = [{"id": None, "name": encryption.HIDDEN, "arguments": encryption.HIDDEN}]
_SELECT_MESSAGES = (
    select(*_columns(MESSAGES, MessageRecord, without=("body",)), CONTENTS.c.body)
    .select_from(
        MESSAGES.outerjoin(
            CONTENTS, and_(CONTENTS.c.trace_id == MESSAGES.c.trace_id, CONTENTS.c.hash == MESSAGES.c.content_hash)
        ).outerjoin(RUNS, and_(RUNS.c.trace_id == MESSAGES.c.trace_id, RUNS.c.id == MESSAGES.c.run_id))
    )
    .order_by(
        MESSAGES.c.trace_id, func.coalesce(RUNS.c.start_ns, 0), MESSAGES.c.run_id, MESSAGES.c.position, MESSAGES.c.id
    )
)


def find_trace(conn: Connection, trace_id: str, organization_id: str | None = None) -> str:
    """The whole id of the one trace whose id begins so."""
    prefix = filters.check_trace_prefix(trace_id)
    found = traces_named(conn, prefix, MAX_CANDIDATES + 1, organization_id)
    if not found:
        raise NotFoundError(f"there is no trace {prefix}" + ("" if len(prefix) == 32 else "…"))
    if len(found) > 1:
        raise AmbiguousIdError(f"several traces begin with {prefix}: {_listed(found)}")
    return found[0]


def traces_named(conn: Connection, prefix: str, limit: int, organization_id: str | None = None) -> Sequence[str]:
    """The ids of the first traces whose ids begin so, by ``check_trace_prefix``."""
    low, high = prefix.ljust(32, "0"), prefix.ljust(32, "f")
    id_ = TRACES.c.trace_id  # no BETWEEN: SQLAlchemy writes the collation of a parameter where PostgreSQL refuses it
    statement = select(id_).where(id_ >= low, id_ <= high).order_by(id_).limit(limit)
    if organization_id is not None:
        statement = statement.where(organizations.has_part_of(id_, organization_id))
    return conn.scalars(statement).all()


def trace(conn: Connection, trace_id: str, organization_id: str | None = None) -> TraceRecord:
    """Everything of one trace."""
    trace_id = find_trace(conn, trace_id, organization_id)
    times = select(TRACES.c.first_ns, TRACES.c.last_ns).where(TRACES.c.trace_id == trace_id)
    first_ns, last_ns = conn.execute(times).one()
    runs, steps = steps_of_trace(conn, trace_id, organization_id)
    spans = spans_of(conn, trace_id)
    if organization_id is not None:
        own = organizations.own_spans(conn, trace_id, organization_id)
        spans = tuple(span for span in spans if span.span_id in own)
        first_ns, last_ns = organizations.times_of(spans)
    messages = _message_records(conn, organization_id, MESSAGES.c.trace_id == trace_id)
    tree = arrange(runs, steps, spans)
    return TraceRecord(trace_id, first_ns, last_ns, runs, steps, spans, messages, tree)


def steps_of_trace(
    conn: Connection, trace_id: str, organization_id: str | None = None
) -> tuple[tuple[RunRecord, ...], tuple[StepRecord, ...]]:
    """The runs and the steps of the trace with this whole id, each by its start."""
    query = _SELECT_STEPS.where(STEPS.c.trace_id == trace_id)
    if organization_id is not None:
        query = query.where(STEPS.c.organization_id == organization_id)
    rows: Any = conn.execute(query)
    return runs_of_trace(conn, trace_id, organization_id), _numbered(conn, rows)


def runs_of_trace(conn: Connection, trace_id: str, organization_id: str | None = None) -> tuple[RunRecord, ...]:
    """The runs of the trace with this whole id, by their start."""
    query = _SELECT_RUNS.where(RUNS.c.trace_id == trace_id)
    if organization_id is not None:
        query = query.where(RUNS.c.organization_id == organization_id)
    runs = (_make_run(*row) for row in conn.execute(query))
    return tuple(sorted(runs, key=lambda run: (run.start_ns or 0, run.id)))


def step(conn: Connection, step_id: str, trace_id: str | None, organization_id: str | None = None) -> StepRecord:
    """One step, by its id or the id of any of its spans."""
    trace_id, step_id = step_key(conn, step_id, trace_id, organization_id)
    row = conn.execute(_SELECT_STEPS.where(STEPS.c.trace_id == trace_id, STEPS.c.id == step_id)).one()
    found = _step_record(conn, row)
    return found if found.run_id is None else replace(found, position=_position(conn, found, organization_id))


def step_key(
    conn: Connection, step_id: str, trace_id: str | None, organization_id: str | None = None
) -> tuple[str, str]:
    """The trace and the id of the one step that has the id, or has a span of that id."""
    step_id = filters.check_text("step_id", step_id)
    trace_id = None if trace_id is None else find_trace(conn, trace_id, organization_id)
    within = (trace_id, organization_id)
    keys = _keys_by_id(conn, step_id, *within) or _keys_by_span(conn, step_id, *within)
    if not keys:
        raise NotFoundError(f"there is no step {step_id!r:.100}" + (f" in trace {trace_id}" if trace_id else ""))
    if len(keys) > 1:
        traces = _listed([trace_id for trace_id, _ in keys])
        raise AmbiguousIdError(f"{step_id!r:.100} names steps in several traces; give the trace id as well: {traces}")
    return keys[0]


def steps(conn: Connection, which: StepFilter, after: str | None, limit: int, order: Order) -> Page[StepRecord]:
    """A page of steps."""
    rows = _step_rows(conn, which, after, limit, order)
    return _page([_step_record(conn, row) for row in rows], "steps", limit, order)


def steps_by_key(conn: Connection, keys: Sequence[tuple[str, str]]) -> list[StepRecord]:
    """The steps of these (trace id, id) that there are, in that order."""
    rows = conn.execute(_SELECT_STEPS.where(tuple_(STEPS.c.trace_id, STEPS.c.id).in_(keys))).fetchall()
    found = {(row.trace_id, row.id): row for row in rows}
    return [_step_record(conn, found[key]) for key in keys if key in found]


def runs(conn: Connection, which: RunFilter, after: str | None, limit: int, order: Order) -> Page[RunRecord]:
    """A page of runs."""
    statement = _SELECT_RUNS.where(*run_conditions(which))
    rows = conn.execute(_one_more(statement, RUNS, after, limit, order))
    return _page([_make_run(*row) for row in rows], "runs", limit, order)


def messages(
    conn: Connection,
    trace_id: str | None,
    run_id: str | None,
    step_id: str | None,
    organization_id: str | None = None,
) -> tuple[MessageRecord, ...]:
    """The messages of a trace, of a run, or those that a step added."""
    if trace_id is None and run_id is None and step_id is None:
        raise InputError("messages of what? Give a trace_id, a run_id or a step_id")
    if step_id is not None:
        trace_id, step_id = step_key(conn, step_id, trace_id, organization_id)
    elif trace_id is not None:
        trace_id = find_trace(conn, trace_id, organization_id)
    conditions: list[ColumnElement[bool]] = []
    if run_id is not None:
        run_id = filters.check_text("run_id", run_id)
        conditions.append(MESSAGES.c.run_id == run_id)
        if trace_id is None:
            conditions.append(MESSAGES.c.trace_id.in_(select(RUNS.c.trace_id).where(RUNS.c.id == run_id)))
    if trace_id is not None:
        conditions.append(MESSAGES.c.trace_id == trace_id)
    if step_id is not None:
        conditions.append(MESSAGES.c.step_id == step_id)
    return _message_records(conn, organization_id, *conditions)


# Steps


def _step_rows(
    conn: Connection, which: StepFilter, after: str | None, limit: int, order: Order
) -> Sequence[Sequence[Any]]:
    values = plain_values(which)
    if values is None:
        statement = _SELECT_STEPS.where(*step_conditions(which, conn.dialect.name))
        return conn.execute(_one_more(statement, STEPS, after, limit, order)).fetchall()
    values["limit"] = filters.check_limit(limit) + 1
    if after is not None:
        values |= place_values(filters.decode_cursor("steps", filters.check_order(order), after))
    key = (conn.dialect.name, order, *values)
    page = _PAGES.get(key)
    if page is None:
        statement = _SELECT_STEPS.where(*step_conditions(which, conn.dialect.name))
        statement = _one_more(statement, STEPS, after, limit, order)
        page = _PAGES[key] = KeptSelect(statement.limit(bindparam("limit", type_=Integer)), conn.dialect)
    return page.rows(conn, values)


def _step_record(conn: Connection, row: Sequence[Any], position: int | None = None) -> StepRecord:
    if isinstance(row[_ERROR], str):  # encrypted
        error = encryption.shown(conn, row[_ERROR], {"message": encryption.HIDDEN}, "steps.error_data", *row[:2])
        row = (*row[:_ERROR], error, *row[_ERROR + 1 :])
    metrics = None if row[_COUNT] is None else _make_metrics(*row[_STEP_WIDTH:])
    return _make_step(*row[:_STEP_WIDTH], metrics, position)


def _numbered(conn: Connection, rows: Iterable[Any]) -> tuple[StepRecord, ...]:
    counts: dict[str, int] = {}
    numbered: list[StepRecord] = []
    for row in sorted(rows, key=lambda row: (row[_START] or 0, row.span_id)):
        run_id: str | None = row.run_id
        if run_id is not None:
            counts[run_id] = counts.get(run_id, 0) + 1
        numbered.append(_step_record(conn, row, None if run_id is None else counts[run_id]))
    return tuple(numbered)


def _position(conn: Connection, step: StepRecord, organization_id: str | None) -> int:
    """The index counts those of earlier microseconds; only a tie needs the metrics, which have the nanoseconds."""
    of_run = and_(STEPS.c.trace_id == step.trace_id, STEPS.c.run_id == step.run_id)
    if organization_id is not None:
        of_run = and_(of_run, STEPS.c.organization_id == organization_id)
    earlier = select(func.count()).select_from(STEPS).where(of_run, STEPS.c.created_at < step.created_at)
    start, own = func.coalesce(METRICS.c.step_start_ns, 0), step_start_ns(step)
    tied = (
        select(func.count())
        .select_from(STEPS_WITH_METRICS)
        .where(
            of_run,
            STEPS.c.created_at == step.created_at,
            or_(start < own, and_(start == own, STEPS.c.span_id < step.span_id)),
        )
    )
    return 1 + conn.execute(select(earlier.scalar_subquery() + tied.scalar_subquery())).scalar_one()


def _keys_by_id(
    conn: Connection, step_id: str, trace_id: str | None, organization_id: str | None
) -> list[tuple[str, str]]:
    statement = select(STEPS.c.trace_id, STEPS.c.id).where(STEPS.c.id == step_id).limit(MAX_CANDIDATES + 1)
    if trace_id is not None:
        statement = statement.where(STEPS.c.trace_id == trace_id)
    if organization_id is not None:
        statement = statement.where(STEPS.c.organization_id == organization_id)
    return [(row.trace_id, row.id) for row in conn.execute(statement.order_by(STEPS.c.trace_id))]


def _keys_by_span(
    conn: Connection, text: str, trace_id: str | None, organization_id: str | None
) -> list[tuple[str, str]]:
    """The steps that contain the span. Which step a span belongs to is no column: the trace is derived again."""
    span_id = filters.as_span_id(text)
    if span_id is None:
        return []
    keys: list[tuple[str, str]] = []
    for found in _traces_with(conn, span_id, trace_id, organization_id):
        step_id = derivation_of(conn, found).step_of(span_id)
        if step_id is not None and _keys_by_id(conn, step_id, found, organization_id):
            keys.append((found, step_id))
    return keys


def _traces_with(conn: Connection, span_id: str, trace_id: str | None, organization_id: str | None) -> Sequence[str]:
    """The traces that have the span. Without a trace id every trace is probed by the primary key of its spans: an
    index on span_id alone would make the search quick and each written span dearer."""
    statement = (
        select(TRACES.c.trace_id)
        .join(SPANS, and_(SPANS.c.trace_id == TRACES.c.trace_id, SPANS.c.span_id == span_id))
        .order_by(TRACES.c.trace_id)
        .limit(MAX_CANDIDATES + 1)
    )
    if trace_id is not None:
        statement = statement.where(TRACES.c.trace_id == trace_id)
    if organization_id is not None:
        statement = statement.where(organizations.has_part_of(TRACES.c.trace_id, organization_id))
    return conn.scalars(statement).all()


# Messages


def _message_records(
    conn: Connection, organization_id: str | None, *conditions: ColumnElement[bool]
) -> tuple[MessageRecord, ...]:
    if organization_id is not None:
        conditions = (*conditions, organizations.is_own_message(organization_id))
    return tuple(_message_record(conn, row) for row in conn.execute(_SELECT_MESSAGES.where(*conditions)))


def _message_record(conn: Connection, row: Row[Any]) -> MessageRecord:
    *values, body = tuple(row)
    if isinstance(values[_CALLS], str):  # encrypted
        values[_CALLS] = encryption.shown(conn, values[_CALLS], _HIDDEN_CALLS, "messages.tool_calls", *values[:2])
    if encryption.is_sealed(body):
        body = encryption.shown_body(conn, body, row.trace_id, row.content_hash)
    return _make_message(*values, None if body is None else element_text(Content("", None, body)))


# Pages


def _one_more(statement: Select[Any], table: Table, after: str | None, limit: int, order: Order) -> Select[Any]:
    """The rows of a page and, where there are more, one beyond."""
    order, limit = filters.check_order(order), filters.check_limit(limit)
    if after is not None:
        statement = statement.where(beyond(table, filters.decode_cursor(table.name, order, after), order))
    return statement.order_by(*ordering(table, order)).limit(limit + 1)


def _page(found: list[R], table: str, limit: int, order: Order) -> Page[R]:
    if len(found) <= limit:
        return Page(tuple(found), None)
    last = found[limit - 1]
    return Page(
        tuple(found[:limit]), filters.encode_cursor(table, order, Place(last.created_at, last.trace_id, last.id))
    )


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:MAX_CANDIDATES]) + (", …" if len(ids) > MAX_CANDIDATES else "")
