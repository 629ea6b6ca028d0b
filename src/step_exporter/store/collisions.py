"""Two different facts under one key: which one stands is decided by the facts alone, never by their arrival.

A span open at a fork is ended by both processes, a program with a seeded random number generator gives its spans the
ids of its last run, an open span is followed by its end. Ended beats open, then the later end wins, then the smaller
SHA-256. An ended loser goes to the quarantine as ``id_collision``; an open one has done its duty.
"""

from __future__ import annotations

from msgspec.structs import replace
from sqlalchemy import Connection, select

from step_exporter.facts import SpanFacts
from step_exporter.models import Base
from step_exporter.store.bulk import Statements
from step_exporter.store.codec import FACT, SpanRow, fact_hash
from step_exporter.store.encryption import open_value
from step_exporter.store.load import decoded
from step_exporter.store.prepare import Prepared, reject
from step_exporter.store.reading import ID_COLLISION, read

_QUARANTINE = Base.metadata.tables["quarantine"]
QUARANTINE_COLUMNS = ("trace_id", "span_id", "reason", "detail", "body", "created_at")


def settle(
    conn: Connection, sql: Statements, challenger: Prepared, current: SpanRow, revision: int
) -> tuple[SpanFacts | None, bool]:
    """Let a span meet the one that is stored under its key. Returns the facts that hold now, if they are new, and
    whether the two collided."""
    encoded = challenger.encoded
    if encoded.fact == current[FACT]:
        return None, False
    row = encoded.row
    ended = row.state == current.state == "ended"
    mine, theirs = _rank(row), _rank(current)
    if mine != theirs and not ended:
        if mine < theirs:
            return None, False
        sql.upsert(conn, "spans", SpanRow._fields, [challenger.row(revision)])
        return challenger.facts, False
    (stored,) = decoded(conn, current.trace_id, [current])
    my_hash, their_hash = fact_hash(encoded.raw), fact_hash(stored.raw)
    if my_hash == their_hash:
        return None, False
    wins = my_hash < their_hash if mine == theirs else mine > theirs
    if not ended:
        if wins:
            sql.upsert(conn, "spans", SpanRow._fields, [challenger.row(revision)])
        return (challenger.facts if wins else None), False
    loser, loser_hash = (stored.raw, their_hash) if wins else (encoded.raw, my_hash)
    known = _losers(conn, current)
    if loser_hash in known:
        return None, True
    sql.insert(conn, "quarantine", QUARANTINE_COLUMNS, [(*reject(loser, ID_COLLISION, loser_hash), sql.now())])
    count = len(known) + 1
    if wins:
        sql.upsert(conn, "spans", SpanRow._fields, [(*challenger.row(revision)[:-2], count, revision)])
        return read(replace(encoded.raw, collisions=count), encoded.contents, encoded.has_escapes), True
    key = (current.trace_id, current.span_id)
    sql.update(conn, "spans", ("trace_id", "span_id"), ("collisions", "revision"), [(*key, count, revision)])
    return read(replace(stored.raw, collisions=count), stored.contents, stored.has_escapes), True


def _rank(row: SpanRow) -> tuple[bool, int, int]:
    """Ended beats open, then the later end; of open ones the one whose process was found gone."""
    return (
        row.state == "ended",
        -1 if row.end_ns is None else row.end_ns,
        -1 if row.abandoned_ns is None else row.abandoned_ns,
    )


def _losers(conn: Connection, current: SpanRow) -> set[str]:
    """The hashes of the facts that lost under this key before."""
    if not current.collisions:
        return set()
    query = select(_QUARANTINE.c.detail).where(
        _QUARANTINE.c.trace_id == current.trace_id,
        _QUARANTINE.c.span_id == current.span_id,
        _QUARANTINE.c.reason == ID_COLLISION,
    )
    place = ("quarantine.detail", current.trace_id, current.span_id)
    return {open_value(conn, detail, *place) for detail in conn.scalars(query)}
