"""Derive again what is derived: ``rebuild`` replaces the rows, ``verify`` compares them.

Both go trace by trace, each in a transaction of its own, so that writers wait for one trace at most.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from msgspec.structs import asdict
from sqlalchemy import Connection, Engine, Text, delete, select, text, type_coerce, update

from step_exporter.derive import Derivation
from step_exporter.derive.rows import Changes
from step_exporter.errors import DatabaseError, StepExporterError
from step_exporter.facts import Annotation, Deletion, SpanFacts
from step_exporter.models import Base, CanonicalJSON, utc_datetime
from step_exporter.store import audit
from step_exporter.store.audit import Caller, Entry
from step_exporter.store.bulk import Statements
from step_exporter.store.changes import MESSAGES, METRICS, RUNS, STEPS, write_changes
from step_exporter.store.encryption import SEALED, open_value, stored_messages
from step_exporter.store.failures import cause, is_data
from step_exporter.store.ingest import UNDERIVED
from step_exporter.store.load import StoredSpan, load_people, load_spans, trace_ids

_TABLES = Base.metadata.tables
_DERIVED = {"steps": STEPS, "step_metrics": METRICS, "runs": RUNS, "messages": MESSAGES}

Progress = Callable[[int, int], object]
"""Called after each trace with how many are done and how many there are."""


class Difference(NamedTuple):
    """A row that is not what the facts of its trace give."""

    trace_id: str
    table: str
    id: str
    stored: dict[str, Any] | None
    """The columns that differ, as stored; None if the row is missing."""
    derived: dict[str, Any] | None
    """The same as derived; None if there should be no such row."""


def rebuild(
    engine: Engine,
    traces: Iterable[str] | None = None,
    progress: Progress | None = None,
    caller: Caller = audit.ITSELF,
) -> int:
    """Delete the derived rows of traces (default: all) and derive them again from the facts. Returns how many traces.

    What today's readers make of the spans replaces what older ones made. Facts, and what people set and deleted,
    stay. Writers that remember such a trace notice by its new epoch. One that cannot be derived stays as it is and does
    not keep the others from it; at the end ``DatabaseError`` names those.
    """
    sql = Statements(engine.dialect)
    chosen = _chosen(engine, traces)
    only = chosen[0] if len(chosen) == 1 else None
    noted: int | None = None
    failed: dict[str, Exception] = {}
    for number, trace_id in enumerate(chosen, 1):
        try:
            with engine.begin() as conn:
                sql.lock(conn, [(trace_id, secrets.randbits(63), 0, None, None, sql.now())])
                derive_again(conn, sql, trace_id)
                details = {"traces": number - len(failed)}
                entry = Entry(caller.actor, "rebuild", only, caller.organization_id, only, details)
                written = audit.write(conn, entry, noted)
            noted = written
        except Exception as error:
            if isinstance(error, StepExporterError) or not is_data(error):
                raise
            failed[trace_id] = error
        if progress is not None:
            progress(number, len(chosen))
    if failed:
        named, first = ", ".join(list(failed)[:10]), next(iter(failed.values()))
        which = f"{len(failed)} of {len(chosen)} traces cannot be derived again, the others were"
        raise DatabaseError(f"{which}: {cause(first)} (trace {named})") from first
    return len(chosen)


def verify(
    engine: Engine, traces: Iterable[str] | None = None, progress: Progress | None = None
) -> Iterator[Difference]:
    """Derive traces (default: all) anew and compare with what is stored, ``updated_at`` aside. Writes nothing.

    Traces whose spans the caller may not see, under row-level security, are passed over.
    """
    chosen = _chosen(engine, traces)
    for number, trace_id in enumerate(chosen, 1):
        with engine.connect() as conn:
            changes, spans = _derive(conn, trace_id)
            stored = {table: _stored_rows(conn, table, trace_id) for table in _DERIVED}
            derived = _derived_rows(conn, changes)
            is_hidden = not spans and _sees_a_part(conn)
        if not is_hidden:
            yield from _compare(trace_id, derived, stored)
        for row, facts in spans:
            was = {"role": row.role, "convention": row.convention}
            now = {"role": facts.role.value, "convention": facts.convention}
            if different := [name for name in now if was[name] != now[name]]:
                stored_part, derived_part = ({name: of[name] for name in different} for of in (was, now))
                yield Difference(trace_id, "spans", row.span_id, stored_part, derived_part)
        if progress is not None:
            progress(number, len(chosen))


def _sees_a_part(conn: Connection) -> bool:
    """Whether row-level security concerns the role: of a shared trace it sees its own steps, and no span."""
    return conn.dialect.name == "postgresql" and bool(conn.scalar(text("SELECT row_security_active('spans')")))


def _chosen(engine: Engine, traces: Iterable[str] | None) -> Sequence[str]:
    if traces is not None:
        return sorted(set(traces))
    with engine.connect() as conn:
        return trace_ids(conn)


def _derive(conn: Connection, trace_id: str) -> tuple[Changes, list[tuple[Any, SpanFacts]]]:
    """Everything of a trace from its facts, and the facts beside their rows."""
    loaded: list[StoredSpan] = list(load_spans(conn, trace_id))
    read = [(span.row, span.facts()) for span in loaded]
    said: list[SpanFacts | Annotation | Deletion] = [*load_people(conn, [trace_id]).get(trace_id, ())]
    return Derivation(trace_id).apply([*said, *(facts for _, facts in read)]), read


def derive_again(conn: Connection, sql: Statements, trace_id: str) -> None:
    """Replace the derived rows of a trace, which is locked."""
    changes, spans = _derive(conn, trace_id)
    for table in ("messages", "steps", "runs"):  # step_metrics go with their steps
        conn.execute(delete(_TABLES[table]).where(_TABLES[table].c.trace_id == trace_id))
    # This transaction holds the lock of one trace and inserts names in order: no writer waits for it in turn.
    sql.insert(conn, "organizations", ("id", "name"), changes.organizations)
    sql.insert(conn, "providers", ("id", "name"), changes.providers)
    write_changes(conn, sql, [(trace_id, changes)])
    roles = [
        (trace_id, row.span_id, facts.role, facts.convention)
        for row, facts in spans
        if (row.role, row.convention) != (facts.role, facts.convention)
    ]
    sql.update(conn, "spans", ("trace_id", "span_id"), ("role", "convention"), roles)
    known, quarantine = _TABLES["traces"], _TABLES["quarantine"]
    conn.execute(update(known).where(known.c.trace_id == trace_id).values(epoch=secrets.randbits(63)))
    conn.execute(delete(quarantine).where(quarantine.c.trace_id == trace_id, quarantine.c.reason == UNDERIVED))


# Comparing


_Rows = dict[str, dict[str, Any]]


def _stored_rows(conn: Connection, table: str, trace_id: str) -> _Rows:
    """The rows of a trace by id, JSON as its text."""
    columns = [_TABLES[table].c[name] for name in _DERIVED[table] if name != "updated_at"]
    texts = [
        type_coerce(column, Text).label(column.name) if isinstance(column.type, CanonicalJSON) else column
        for column in columns
    ]
    rows = conn.execute(select(*texts).where(_TABLES[table].c.trace_id == trace_id)).mappings()
    found = {row["id"]: dict(row) for row in rows}
    for name in SEALED.get(table, ()):
        for id_, row in found.items():
            row[name] = open_value(conn, row[name], f"{table}.{name}", trace_id, id_)
    return found


def _derived_rows(conn: Connection, changes: Changes) -> dict[str, _Rows]:
    tables = {
        "steps": changes.steps,
        "step_metrics": changes.step_metrics,
        "runs": changes.runs,
        "messages": stored_messages(conn, changes.messages),
    }
    return {table: {row.id: _as_stored(asdict(row)) for row in rows} for table, rows in tables.items()}


def _as_stored(row: dict[str, Any]) -> dict[str, Any]:
    if "created_ns" in row:
        created: datetime = utc_datetime(row.pop("created_ns"))
        row["created_at"] = created
    return row


def _compare(trace_id: str, derived: dict[str, _Rows], stored: dict[str, _Rows]) -> Iterator[Difference]:
    for table in _DERIVED:
        there, due = stored[table], derived[table]
        for key in sorted(there.keys() | due.keys()):
            have, want = there.get(key), due.get(key)
            if have is None or want is None:
                yield Difference(trace_id, table, key, have, want)
            elif different := [name for name in want if want[name] != have[name]]:
                yield Difference(trace_id, table, key, {n: have[n] for n in different}, {n: want[n] for n in different})
