"""What people change: feedback, tags and transaction ids of steps, and what they delete.

Each is a fact beside the spans (``annotations``, ``deletions``), stored under the lock of its trace in the transaction
that derives what follows from it and notes who did it (``audit``). Writers that remember the trace learn of it by its
revision. A caller of one organization finds, and changes, what belongs to that one only.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from msgspec.structs import astuple
from sqlalchemy import Connection, Engine, Table, delete, select, update

from step_exporter import models
from step_exporter.derive import Derivation
from step_exporter.errors import AmbiguousIdError, InputError, NotFoundError
from step_exporter.facts import Annotation, Deletion
from step_exporter.store import audit, filters, organizations, reads
from step_exporter.store.audit import Caller, Entry
from step_exporter.store.bulk import Statements
from step_exporter.store.changes import write_changes
from step_exporter.store.failures import is_passing
from step_exporter.store.filters import Action
from step_exporter.store.load import load_people
from step_exporter.store.trace_spans import derivation_of

T = TypeVar("T")

_ANNOTATION = ("trace_id", "span_id", "key", "value", "set_by", "set_at")
_DELETION = ("trace_id", "kind", "id", "deleted_by", "deleted_at")
_FOUND = 500
"""Traces that are looked up at once."""
PATIENCE_S = 10.0
"""How long a change is tried again while other writers or the connection are in its way."""

_TABLES = models.Base.metadata.tables
_TRACES, _STEPS, _RUNS, _DELETIONS = (_TABLES[name] for name in ("traces", "steps", "runs", "deletions"))
_BEFORE = tuple(_STEPS.c[name] for name in ("span_id", "organization_id", "feedback", "tags", "tid"))
_OF_A_TRACE = ("messages", "steps", "runs", "spans", "contents", "resources", "annotations", "quarantine", "traces")
"""What goes with a trace. Messages first, for the triggers of the others to find none; metrics go with steps."""


def feedback(
    engine: Engine,
    caller: Caller,
    step_id: str,
    value: str | None,
    tags: Sequence[str] | None,
    trace_id: str | None,
    set_by: str | None,
) -> None:
    """Set what people think of a step and, where given, its tags."""
    said: dict[str, Any] = {"feedback": checked("feedback", value)}
    if tags is not None:
        said["tags"] = checked("tags", tags)
    _annotate(engine, caller, "feedback", step_id, trace_id, said, set_by)


def tags(
    engine: Engine, caller: Caller, step_id: str, values: Sequence[str], trace_id: str | None, set_by: str | None
) -> None:
    """Set the tags of a step."""
    _annotate(engine, caller, "tags", step_id, trace_id, {"tags": checked("tags", values)}, set_by)


def transaction(
    engine: Engine, caller: Caller, step_id: str, tid: str | None, trace_id: str | None, set_by: str | None
) -> None:
    """Set the transaction id of a step."""
    _annotate(engine, caller, "transaction", step_id, trace_id, {"tid": checked("tid", tid)}, set_by)


def checked(key: str, value: Any) -> Any:
    """What may be set under a key (``feedback``, ``tags``, ``tid``), as it is stored. Raises ``InputError``."""
    if key == "feedback":
        if value not in (None, "positive", "negative"):
            raise InputError(f"feedback is 'positive', 'negative' or None, not {value!r:.40}")
        return value
    return _checked_tags(value) if key == "tags" else value if value is None else filters.check_text("tid", value)


def delete_trace(engine: Engine, caller: Caller, trace_id: str, deleted_by: str | None) -> int:
    """Delete a trace for good. Returns 1."""

    def work(conn: Connection, sql: Statements) -> int:
        found = reads.find_trace(conn, trace_id, caller.organization_id)
        _lock(conn, sql, found)
        organizations.check_whole(conn, found, caller.organization_id)
        _delete_whole(conn, sql, caller, found, deleted_by)
        return 1

    return patiently(engine, work)


def delete_run(engine: Engine, caller: Caller, run_id: str, trace_id: str | None, deleted_by: str | None) -> int:
    """Delete a run; its steps and messages stay, without a run. Returns 1."""
    filters.check_text("run_id", run_id)

    def work(conn: Connection, sql: Statements) -> int:
        found = _trace_of_run(conn, run_id, trace_id, caller.organization_id)
        _lock(conn, sql, found)
        _delete_part(conn, sql, caller, Deletion(found, "run", run_id, deleted_by), _RUNS)
        conn.execute(delete(_RUNS).where(_RUNS.c.trace_id == found, _RUNS.c.id == run_id))
        return 1

    return patiently(engine, work)


def delete_step(engine: Engine, caller: Caller, step_id: str, trace_id: str | None, deleted_by: str | None) -> int:
    """Delete a step and its metrics; its messages stay, without a step. Returns 1."""

    def work(conn: Connection, sql: Statements) -> int:
        trace, step = reads.step_key(conn, step_id, trace_id, caller.organization_id)
        _lock(conn, sql, trace)
        _delete_part(conn, sql, caller, Deletion(trace, "step", step, deleted_by), _STEPS)
        return 1

    return patiently(engine, work)


def delete_before(engine: Engine, caller: Caller, before: datetime | int, deleted_by: str | None) -> int:
    """Delete for good the traces whose last time lies before a moment, one by one. Returns how many."""
    moment_ns = filters.check_time_ns("before", before)
    old = select(_TRACES.c.trace_id).where(_TRACES.c.last_ns < moment_ns).order_by(_TRACES.c.last_ns)
    if caller.organization_id is not None:
        old = old.where(organizations.is_whole(_TRACES.c.trace_id, caller.organization_id))

    def work(conn: Connection, sql: Statements, trace_id: str) -> bool:
        _lock(conn, sql, trace_id)
        if conn.scalar(old.where(_TRACES.c.trace_id == trace_id)) is None:
            return False  # it went on until it was locked
        _delete_whole(conn, sql, caller, trace_id, deleted_by)
        return True

    count = 0
    # Many are looked up at once: an organization's may stand behind any number of others'.
    while found := patiently(engine, lambda conn, _: conn.scalars(old.limit(_FOUND)).all()):
        for trace_id in found:
            with suppress(NotFoundError):  # somebody else was faster
                count += patiently(engine, partial(work, trace_id=trace_id))
    return count


def purge(conn: Connection, trace_ids: Sequence[str]) -> None:
    """Delete every row of traces, which are locked."""
    for name in _OF_A_TRACE:
        table: Table = _TABLES[name]
        conn.execute(delete(table).where(table.c.trace_id.in_(trace_ids)))


def patiently(engine: Engine, work: Callable[[Connection, Statements], T], statements: Statements | None = None) -> T:
    """Do work in a transaction, again for a while if something passing is in the way. ``statements`` are those of the
    work before, where there was any."""
    sql = statements or Statements(engine.dialect)
    deadline, pause = time.monotonic() + PATIENCE_S, 0.01
    while True:
        try:
            with engine.begin() as conn:
                return work(conn, sql)
        except Exception as error:
            if not is_passing(error) or time.monotonic() + pause > deadline:
                raise
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 1.0)


def _annotate(
    engine: Engine,
    caller: Caller,
    action: Action,
    step_id: str,
    trace_id: str | None,
    said: Mapping[str, Any],
    set_by: str | None,
) -> None:
    actor = _actor(caller, set_by)

    def work(conn: Connection, sql: Statements) -> None:
        trace, step = reads.step_key(conn, step_id, trace_id, caller.organization_id)
        _lock(conn, sql, trace)
        row = select(*_BEFORE).where(_STEPS.c.trace_id == trace, _STEPS.c.id == step)
        was = conn.execute(row).mappings().one_or_none()
        if was is None or caller.organization_id not in (None, was["organization_id"]):
            raise NotFoundError(f"there is no step {step!r:.100} in trace {trace} any more")
        derivation = derivation_of(conn, trace)
        now = time.time_ns()  # one moment for all
        note(conn, sql, [Annotation(trace, was["span_id"], key, value, set_by, now) for key, value in said.items()])
        notes = [fact for fact in load_people(conn, [trace]).get(trace, ()) if isinstance(fact, Annotation)]
        derive(conn, sql, trace, derivation, notes)
        details = {key: {"old": was[key], "new": value} for key, value in said.items()}
        audit.write(conn, Entry(actor, action, trace, was["organization_id"], step, details))

    patiently(engine, work)


def derive(
    conn: Connection, sql: Statements, trace_id: str, derivation: Derivation, said: Sequence[Annotation | Deletion]
) -> None:
    """Write what the words of people change, and tell other writers by the revision."""
    write_changes(conn, sql, [(trace_id, derivation.apply(said))])
    changed = {"revision": _TRACES.c.revision + 1, "changed_at": models.utc_now()}
    conn.execute(update(_TRACES).where(_TRACES.c.trace_id == trace_id).values(changed))


def lock(conn: Connection, sql: Statements, trace_id: str) -> bool:
    """Lock a trace. Whether it was there; if not, it is now, with nothing in it."""
    offered = secrets.randbits(63)
    [(_, epoch, *_)] = sql.lock(conn, [(trace_id, offered, 0, None, None, sql.now())])
    return epoch != offered


def _lock(conn: Connection, sql: Statements, trace_id: str) -> None:
    if not lock(conn, sql, trace_id):
        raise NotFoundError(f"there is no trace {trace_id} any more")


def _delete_whole(conn: Connection, sql: Statements, caller: Caller, trace_id: str, deleted_by: str | None) -> None:
    owner = organizations.owner_of(conn, trace_id)
    audit.write(conn, Entry(_actor(caller, deleted_by), "delete", trace_id, owner, trace_id, {"kind": "trace"}))
    forget(conn, sql, Deletion(trace_id, "trace", trace_id, deleted_by))


def forget(conn: Connection, sql: Statements, deletion: Deletion) -> None:
    """Delete every row of a trace, which is locked, but that it was deleted."""
    purge(conn, [deletion.trace_id])
    conn.execute(delete(_DELETIONS).where(_DELETIONS.c.trace_id == deletion.trace_id))
    note(conn, sql, [deletion])


def _delete_part(conn: Connection, sql: Statements, caller: Caller, deletion: Deletion, table: Table) -> None:
    """Delete a run or a step of a trace, which is locked, by what follows from that."""
    trace_id, kind, id_, deleted_by, _ = astuple(deletion)
    organizations.check_whole(conn, trace_id, caller.organization_id)
    owner = conn.scalar(select(table.c.organization_id).where(table.c.trace_id == trace_id, table.c.id == id_))
    audit.write(conn, Entry(_actor(caller, deleted_by), "delete", trace_id, owner, id_, {"kind": kind}))
    derivation = derivation_of(conn, trace_id)
    note(conn, sql, [deletion])
    derive(conn, sql, trace_id, derivation, [deletion])


def note(conn: Connection, sql: Statements, said: Iterable[Annotation | Deletion]) -> None:
    """Store facts in the place of those under their keys; without a time of their own they are of now."""
    annotations: list[tuple[object, ...]] = []
    deletions: list[tuple[object, ...]] = []
    for fact in said:
        if isinstance(fact, Annotation):
            value = None if fact.value is None else models.canonical_json(fact.value)
            at = sql.now() if fact.set_at_ns is None else sql.time(fact.set_at_ns)
            annotations.append((fact.trace_id, fact.span_id, fact.key, value, fact.set_by, at))
        else:
            at = sql.now() if fact.deleted_at_ns is None else sql.time(fact.deleted_at_ns)
            deletions.append((fact.trace_id, fact.kind, fact.id, fact.deleted_by, at))
    sql.upsert(conn, "annotations", _ANNOTATION, annotations)
    sql.upsert(conn, "deletions", _DELETION, deletions)


def _trace_of_run(conn: Connection, run_id: str, trace_id: str | None, organization_id: str | None) -> str:
    query = select(_RUNS.c.trace_id).where(_RUNS.c.id == run_id).order_by(_RUNS.c.trace_id).limit(11)
    if trace_id is not None:
        query = query.where(_RUNS.c.trace_id == reads.find_trace(conn, trace_id, organization_id))
    if organization_id is not None:
        query = query.where(_RUNS.c.organization_id == organization_id)
    found = conn.scalars(query).all()
    if not found:
        raise NotFoundError(f"there is no run {run_id!r:.100}")
    if len(found) > 1:
        raise AmbiguousIdError(
            f"{run_id!r:.100} names runs in several traces; give the trace id as well: {', '.join(found)}"
        )
    return found[0]


def _actor(caller: Caller, by: str | None) -> str:
    if by is None:
        return caller.actor
    if not filters.check_text("by", by).strip():
        raise InputError("by says who it was; it is empty")
    return by


def _checked_tags(values: Sequence[str]) -> list[str]:
    tags = set(filters.check_texts("tags", values))
    if any(not tag.strip() for tag in tags):
        raise InputError("a tag is not empty; an empty list takes all tags away (on the command line --no-tags)")
    return sorted(tags)
