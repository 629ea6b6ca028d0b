"""What people set and deleted, on its way from one database to another.

An OTLP export writes it after the spans of its trace, as one more document that has no spans and a field of ours. Who
reads OTLP knows no such field and leaves it out, as the JSON mapping of protobuf has it. Times are nanoseconds, ids as
OTLP writes them:

    {"resourceSpans": [], "stepExporter": {
        "annotations": [{"traceId", "spanId", "key", "value", "setBy", "setAtUnixNano"}],
        "deletions": [{"traceId", "kind", "id", "deletedBy", "deletedAtUnixNano"}]}}

``take`` stores it in any order, before or after its spans, and as often as it comes: of two things that were set under
one key the later one stays, whoever brings it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Engine, delete, union
from sqlalchemy.exc import DBAPIError

from step_exporter.errors import DatabaseError, InputError
from step_exporter.facts import MAX_NS, Annotation, Deletion
from step_exporter.models import Base, canonical_json
from step_exporter.otlp.decode import PEOPLE, SPAN_ID, TRACE_ID, Object, Problem, hex_id, integer
from step_exporter.store import editing, filters, organizations
from step_exporter.store.audit import Entry
from step_exporter.store.audit import write as write_audit
from step_exporter.store.bulk import Statements
from step_exporter.store.failures import cause, is_data
from step_exporter.store.load import load_people
from step_exporter.store.trace_spans import derivation_of

Said = Annotation | Deletion

_KEYS = ("feedback", "tags", "tid")
_KINDS = ("trace", "run", "step")


# The document


def encode(said: Iterable[Said]) -> bytes:
    """One document, without spans."""
    fields: dict[str, list[dict[str, Any]]] = {}
    for fact in said:
        if isinstance(fact, Annotation):
            entry = {"traceId": fact.trace_id, "spanId": fact.span_id, "key": fact.key, "value": fact.value}
            entry |= {"setBy": fact.set_by, "setAtUnixNano": str(fact.set_at_ns)}
            fields.setdefault("annotations", []).append(entry)
        else:
            entry = {"traceId": fact.trace_id, "kind": fact.kind, "id": fact.id}
            entry |= {"deletedBy": fact.deleted_by, "deletedAtUnixNano": str(fact.deleted_at_ns)}
            fields.setdefault("deletions", []).append(entry)
    return json.dumps({"resourceSpans": [], PEOPLE: fields}, separators=(",", ":")).encode()


def decode(fields: Any) -> Iterator[Said | Problem]:
    """What the field of a document says. An entry that cannot be read is a ``Problem``, and costs its neighbours
    nothing."""
    if not isinstance(fields, Mapping):
        yield Problem(f"{PEOPLE} is no object")
        return
    readers: Mapping[str, Callable[[Object], Said]] = {"annotations": _annotation, "deletions": _deletion}
    for name, read in readers.items():
        entries: Any = cast("Object", fields).get(name) or []
        if not isinstance(entries, list):
            yield Problem(f"{PEOPLE}: {name} is not a list")
            continue
        for entry in cast("list[Any]", entries):
            try:
                if not isinstance(entry, Mapping):
                    raise InputError("is no object")
                yield read(cast("Object", entry))
            except InputError as error:
                yield Problem(f"one of the {name}: {error}")


def _annotation(entry: Object) -> Annotation:
    key = filters.check_one_of("key", entry.get("key"), _KEYS)  # pyright: ignore[reportArgumentType]
    value: Any = entry.get("value")
    if key == "tags" and not isinstance(value, list):
        raise InputError("tags is not a list")
    return Annotation(
        _id(entry, "traceId", 32),
        _id(entry, "spanId", 16),
        key,
        editing.checked(key, value),
        _by(entry, "setBy"),
        _time(entry, "setAtUnixNano"),
    )


def _deletion(entry: Object) -> Deletion:
    trace_id = _id(entry, "traceId", 32)
    kind = filters.check_one_of("kind", entry.get("kind"), _KINDS)  # pyright: ignore[reportArgumentType]
    id_ = filters.check_text("id", entry.get("id"))  # pyright: ignore[reportArgumentType]
    if kind == "trace" and id_ != trace_id:
        raise InputError(f"the id of a trace is its trace id, not {id_!r:.100}")
    return Deletion(trace_id, kind, id_, _by(entry, "deletedBy"), _time(entry, "deletedAtUnixNano"))


def _id(entry: Object, name: str, digits: int) -> str:
    found = hex_id(entry.get(name), TRACE_ID if digits == 32 else SPAN_ID)
    if found is None:
        raise InputError(f"{name} {entry.get(name)!r:.100} is not {digits} hexadecimal digits, or zero")
    return found


def _by(entry: Object, name: str) -> str | None:
    by: Any = entry.get(name)
    return None if by is None else filters.check_text(name, by)


def _time(entry: Object, name: str) -> int:
    """To the microsecond, as databases keep it."""
    moment = integer(entry.get(name))
    if moment is None or not 0 < moment <= MAX_NS:
        raise InputError(f"{name} {entry.get(name)!r:.100} is no time in nanoseconds")
    return moment // 1000 * 1000


# The database


def traces_with_people(conn: Connection) -> list[str]:
    """The traces that people set or deleted anything of, sorted; such as are gone, or have not come yet, as well."""
    annotations, deletions = (Base.metadata.tables[name] for name in ("annotations", "deletions"))
    query = union(*(table.select().with_only_columns(table.c.trace_id) for table in (annotations, deletions)))
    return sorted(conn.scalars(query))


def is_deleted(said: Iterable[Said]) -> bool:
    """Whether a trace was deleted as a whole."""
    return any(isinstance(fact, Deletion) and fact.kind == "trace" for fact in said)


def take(engine: Engine, actor: str, said: Iterable[Said]) -> list[Problem]:
    """Store what people set and deleted, and what follows from it, each trace in a transaction under its lock.

    What is there already changes nothing. A trace that was deleted as a whole goes with all that is there of it; what
    was set on it goes too, whichever comes first. ``actor`` is who the audit trail says brought it.

    Returns what could not be stored, because the database refuses it or its trace cannot be derived. Raises
    ``DatabaseError``.
    """
    by_trace: dict[str, list[Said]] = {}
    for fact in said:
        by_trace.setdefault(fact.trace_id, []).append(fact)
    sql = Statements(engine.dialect)
    problems: list[Problem] = []
    for trace_id in sorted(by_trace):
        try:
            editing.patiently(engine, partial(_take, actor, trace_id, by_trace[trace_id]), sql)
        except Exception as error:
            if is_data(error):
                problems.append(Problem(f"what people said of trace {trace_id} cannot be stored: {cause(error)}"))
            elif isinstance(error, DBAPIError):
                raise DatabaseError(cause(error)) from error
            else:
                raise
    return problems


class _Key(NamedTuple):
    """Under which two facts of a trace are one."""

    kind: str
    """The key of an annotation, the kind of a deletion: no name is both."""
    id: str


def _key(fact: Said) -> _Key:
    return _Key(fact.key, fact.span_id) if isinstance(fact, Annotation) else _Key(fact.kind, fact.id)


def _order(fact: Said) -> tuple[Any, ...]:
    """What decides which of two stays: time, then the rest of the fact, never who came first."""
    if isinstance(fact, Annotation):
        value = "" if fact.value is None else canonical_json(fact.value)
        return fact.set_at_ns or 0, fact.set_by is not None, fact.set_by or "", value
    return fact.deleted_at_ns or 0, fact.deleted_by is not None, fact.deleted_by or ""


def _take(actor: str, trace_id: str, said: Sequence[Said], conn: Connection, sql: Statements) -> None:
    is_there = editing.lock(conn, sql, trace_id)
    kept = {_key(fact): fact for fact in load_people(conn, [trace_id]).get(trace_id, ())}
    new: dict[_Key, Said] = {}
    for fact in said:
        key = _key(fact)
        other = kept.get(key)
        # Set again, the later one counts; deleted again, the first one did it.
        if other is None or (
            _order(fact) > _order(other) if isinstance(fact, Annotation) else _order(fact) < _order(other)
        ):
            kept[key] = new[key] = fact
    whole = kept.get(_Key("trace", trace_id))
    if isinstance(whole, Deletion):
        # Late spans of a trace that is deleted may be there: they came in with the same files, perhaps, and go again.
        new = {key: fact for key, fact in new.items() if fact is whole}
        if new or (is_there and is_deleted(said)):
            _note(conn, actor, trace_id, [whole])
            editing.forget(conn, sql, whole)
            is_there = True
    elif new:
        _note(conn, actor, trace_id, list(new.values()))
        derivation = derivation_of(conn, trace_id) if is_there else None
        editing.note(conn, sql, new.values())
        if derivation is not None:
            editing.derive(conn, sql, trace_id, derivation, list(new.values()))
    if not is_there:  # the lock made it: it begins with its first span
        traces = Base.metadata.tables["traces"]
        conn.execute(delete(traces).where(traces.c.trace_id == trace_id))


def _note(conn: Connection, actor: str, trace_id: str, said: Sequence[Said]) -> None:
    annotations = sum(isinstance(fact, Annotation) for fact in said)
    details: dict[str, Any] = {"annotations": annotations, "deletions": len(said) - annotations}
    owner = organizations.owner_of(conn, trace_id)
    write_audit(conn, Entry(actor, "import", trace_id, owner, trace_id, details))
