"""Encrypt a database by another key, or one that was written without any.

Trace by trace: each in one transaction that holds its lock, while writers go on. What the key has sealed already is
passed over, so that a rotation that was broken off goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import astuple
from sqlalchemy import ColumnElement, Connection, Engine, Text, delete, or_, select, type_coerce, update

from step_exporter.errors import ConfigurationError
from step_exporter.models import Base
from step_exporter.store import audit
from step_exporter.store.audit import Caller, Entry
from step_exporter.store.bulk import Statements
from step_exporter.store.editing import patiently
from step_exporter.store.encryption import (
    KEYS,
    SEALED,
    Cipher,
    check_keys,
    cipher_of,
    open_value,
    opened_spans,
    sealed_by,
)
from step_exporter.store.load import load_contents, trace_ids
from step_exporter.store.rebuild import derive_again

_TABLES = Base.metadata.tables
_TRACES, _SPANS, _CONTENTS, _QUARANTINE = (_TABLES[name] for name in ("traces", "spans", "contents", "quarantine"))
_OF_A_TRACE = [table for table in SEALED if table != "quarantine"]
_ENTRIES = 200
"""Rows of the quarantine in one transaction."""

Progress = Callable[[int, int], object]
"""Called after each trace with how many are done and how many there are."""


def rotate_key(engine: Engine, progress: Progress | None = None, caller: Caller = audit.ITSELF) -> int:
    """Encrypt everything by the first of the engine's keys; returns how many traces had to be.

    The others, that values are encrypted by, must be among them: ``EncryptionError``. In the end the database needs
    the first only. A database that was written without a key takes no spans meanwhile. Raises ``ConfigurationError``
    without a key.
    """
    cipher = cipher_of(engine)
    if cipher is None:
        raise ConfigurationError("There is no key to encrypt by. Make one: step-exporter generate-key")
    had_plain_text = patiently(engine, lambda conn, sql: _begin(conn, cipher))
    with engine.connect() as conn:
        chosen = trace_ids(conn)
    count = 0
    for number, trace_id in enumerate(chosen, 1):
        count += patiently(engine, lambda conn, sql, trace_id=trace_id: _rotate_trace(conn, sql, cipher, trace_id))
        if progress is not None:
            progress(number, len(chosen))
    last: int | None = 0
    while last is not None:
        last = patiently(engine, lambda conn, sql, after=last: _rotate_quarantine(conn, cipher, after))
    if engine.dialect.name == "sqlite":
        _clean_file(engine, whole=had_plain_text)
    patiently(engine, lambda conn, sql: _end(conn, cipher, caller, count))
    return count


def _begin(conn: Connection, cipher: Cipher) -> bool:
    """Put the key down: from now on no writer without it begins. Whether there is plain text."""
    known = conn.scalars(select(KEYS.c.id)).all()
    check_keys(cipher, known)
    if cipher.key_ids[0] not in known:
        cipher.add_to(conn, is_converting=not known)
    cipher.load(conn)
    return bool(conn.scalar(select(KEYS.c.is_converting).where(KEYS.c.is_converting)))


def _end(conn: Connection, cipher: Cipher, caller: Caller, count: int) -> None:
    """Forget the other keys, which nothing needs any more."""
    conn.execute(delete(KEYS).where(KEYS.c.id != cipher.key_ids[0]))
    conn.execute(update(KEYS).values(is_converting=False))
    audit.write(conn, Entry(caller.actor, "rotate_key", details={"key": cipher.key_ids[0], "traces": count}))


def _rotate_trace(conn: Connection, sql: Statements, cipher: Cipher, trace_id: str) -> bool:
    """Whether there was anything to do."""
    _overwrite(conn)
    lock = select(_TRACES.c.epoch).where(_TRACES.c.trace_id == trace_id).with_for_update()
    if conn.scalar(lock) is None or not any(_is_due(conn, cipher, table, trace_id) for table in _OF_A_TRACE):
        return False
    contents = load_contents(conn, trace_id).values()
    conn.execute(delete(_CONTENTS).where(_CONTENTS.c.trace_id == trace_id))
    rows = [(trace_id, *astuple(content)) for content in contents]
    sql.insert(conn, "contents", ("trace_id", "hash", "parent_hash", "body"), rows)
    names = ("trace_id", "span_id", *SEALED["spans"])
    columns: list[Any] = [type_coerce(_SPANS.c[name], Text).label(name) for name in names]
    found = conn.execute(select(*columns).where(_SPANS.c.trace_id == trace_id))
    sql.update(conn, "spans", names[:2], names[2:], list(opened_spans(conn, names, found)))
    derive_again(conn, sql, trace_id)
    return True


def _is_due(conn: Connection, cipher: Cipher, table: str, trace_id: str) -> bool:
    """Whether a table has a value of the trace that the first key has not sealed."""
    of = _TABLES[table]
    columns: list[ColumnElement[str]] = [type_coerce(of.c[name], Text) for name in SEALED[table]]
    due = or_(*(column.is_not(None) & ~column.startswith(sealed_by(cipher.key_ids[0])) for column in columns))
    return conn.execute(select(of.c.trace_id).where(of.c.trace_id == trace_id, due).limit(1)).first() is not None


def _rotate_quarantine(conn: Connection, cipher: Cipher, after: int) -> int | None:
    """Encrypt some entries, in the order of their ids; the last one's, or None at the end."""
    _overwrite(conn)
    columns = [_QUARANTINE.c[name] for name in ("id", "trace_id", "span_id", "detail", "body")]
    query = select(*columns).where(_QUARANTINE.c.id > after).order_by(_QUARANTINE.c.id).limit(_ENTRIES)
    rows = conn.execute(query).all()
    for row in rows:
        place = (row.trace_id or "", row.span_id or "")
        values: dict[str, Any] = {}
        for name in SEALED["quarantine"]:
            value = open_value(conn, getattr(row, name), f"quarantine.{name}", *place)
            if value is not None:
                sealed = cipher.seal(value, f"quarantine.{name}", *place)
                values[name] = sealed.encode() if isinstance(value, bytes) else sealed
        if any(value != getattr(row, name) for name, value in values.items()):
            conn.execute(update(_QUARANTINE).where(_QUARANTINE.c.id == row.id).values(values))
    return rows[-1].id if rows else None


def _clean_file(engine: Engine, *, whole: bool) -> None:
    """Empty the write-ahead log, which holds what was there before; and (``whole``) rewrite the file, whose free pages
    hold what was deleted long ago. Not in a transaction, hence the driver's own connection."""
    connection = engine.raw_connection()
    try:
        for statement in (*(("VACUUM",) if whole else ()), "PRAGMA wal_checkpoint(TRUNCATE)"):
            connection.cursor().execute(statement)
    finally:
        connection.close()


def _overwrite(conn: Connection) -> None:
    """SQLite leaves what is replaced in the file, unless told to overwrite it."""
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql("PRAGMA secure_delete = ON")
