"""Statements that write many rows at once: all SQL of the write path that depends on the engine.

Each is compiled once per dialect from Core and run by the driver itself (``exec_driver_sql`` with tuples), past
SQLAlchemy's work per row, which cost more than SQLite's own. JSON columns take canonical text, times the engine's
own form (``Statements.time``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, cast

from sqlalchemy import Connection, Table, bindparam, delete, update
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement

from step_exporter.models import Base, utc_datetime
from step_exporter.store.encryption import cipher_of

Row = Sequence[Any]

TABLES = Base.metadata.tables
TRACE = ("trace_id", "epoch", "revision", "first_ns", "last_ns", "changed_at")
"""The columns of ``traces``, as ``Statements.lock`` takes them."""
_LOCK_SIZES = (64, 8, 1)
"""Traces per locking statement: three statements serve any number, none names a key twice."""
_MAX_STATEMENTS = 200


class Statement:
    """SQL for the driver, and in which order it takes the named values of a row."""

    def __init__(self, clause: ClauseElement, dialect: Dialect, names: Sequence[str]) -> None:
        compiled = clause.compile(dialect=dialect)
        positions: Sequence[str] = getattr(compiled, "positiontup", None) or ()
        order = [names.index(name) for name in positions]
        self.sql = str(compiled)
        self._arranged: Callable[[Row], Row] | None = None
        if order != list(range(len(names))):
            self._arranged = itemgetter(*order) if len(order) > 1 else lambda row: (row[order[0]],)

    def run(self, conn: Connection, rows: Iterable[Row]) -> int:
        """Execute for each row; how many rows of the table that touched."""
        values = [tuple(row) for row in rows] if self._arranged is None else [self._arranged(row) for row in rows]
        if not values:
            return 0
        return conn.exec_driver_sql(self.sql, values).rowcount


class Statements:
    """The statements of one engine, made as they are needed."""

    def __init__(self, dialect: Dialect) -> None:
        self._postgresql = dialect.name == "postgresql"
        # SQLAlchemy names the parameters of psycopg; tuples need them by position.
        self._dialect = cast(Any, type(dialect))(paramstyle="format") if self._postgresql else dialect
        if self._postgresql:
            from sqlalchemy.dialects.postgresql import insert  # 25 ms to import, for its users only
        else:
            from sqlalchemy.dialects.sqlite import insert
        self._insert: Callable[[Table], Any] = insert
        self._made: dict[object, Statement] = {}

    def time(self, ns: int) -> Any:
        """A time as the engine's driver takes it for ``UtcDateTime``."""
        return utc_datetime(ns) if self._postgresql else time_text(ns)

    def now(self) -> Any:
        """The current time, for ``updated_at``."""
        return datetime.now(UTC) if self._postgresql else time_text(time.time_ns())

    def insert(self, conn: Connection, table: str, columns: Sequence[str], rows: Collection[Row]) -> int:
        """Insert rows; those whose key is there already are left alone. How many were new."""
        if not rows:
            return 0
        columns, rows = self._given(columns, _stored(conn, table, columns, rows))
        made = self._made.get(("insert", table, columns))
        if made is None:
            clause = self._insert(TABLES[table]).values({name: bindparam(name) for name in columns})
            made = self._keep(("insert", table, columns), clause.on_conflict_do_nothing(), columns)
        return made.run(conn, rows)

    def upsert(self, conn: Connection, table: str, columns: Sequence[str], rows: Collection[Row]) -> None:
        """Insert rows or, by primary key, replace them. No key may come twice."""
        if not rows:
            return
        written = tuple(columns)
        columns, rows = self._given(columns, _stored(conn, table, columns, rows))
        made = self._made.get(("upsert", table, written, columns))
        if made is None:
            target = TABLES[table]
            clause = self._insert(target).values({name: bindparam(name) for name in columns})
            keys = _keys(target)
            changed = {name: clause.excluded[name] for name in written if name not in keys}  # left out: NULL
            clause = clause.on_conflict_do_update(index_elements=keys, set_=changed)
            made = self._keep(("upsert", table, written, columns), clause, columns)
        made.run(conn, rows)

    def update(
        self, conn: Connection, table: str, keys: Sequence[str], columns: Sequence[str], rows: Collection[Row]
    ) -> None:
        """Set columns of rows; a row is the values of its keys, then of the columns."""
        if not rows:
            return
        rows = _stored(conn, table, (*keys, *columns), rows)
        made = self._made.get(("update", table, *columns))
        if made is None:
            target = TABLES[table]
            clause = update(target).where(*(target.c[name] == bindparam(f"key_{name}") for name in keys))
            names = [*(f"key_{name}" for name in keys), *columns]
            clause = clause.values({name: bindparam(name) for name in columns})
            made = self._keep(("update", table, *columns), clause, names)
        made.run(conn, rows)

    def delete(self, conn: Connection, table: str, rows: Collection[Row]) -> None:
        """Delete rows by their primary keys."""
        if not rows:
            return
        rows = _stored(conn, table, _keys(TABLES[table]), rows)
        made = self._made.get(("delete", table))
        if made is None:
            target = TABLES[table]
            keys = _keys(target)
            clause = delete(target).where(*(target.c[name] == bindparam(name) for name in keys))
            made = self._keep(("delete", table), clause, keys)
        made.run(conn, rows)

    def lock(self, conn: Connection, traces: Sequence[Row]) -> list[Row]:
        """Lock traces, in the given order. Each is given as what its row is made of where it is not there yet, in the
        order of ``TRACE``.

        Returns (trace_id, epoch, revision, first_ns, last_ns) of each. The update of nothing is what locks a row
        that is there: DO NOTHING does not.
        """
        locked: list[Row] = []
        at = 0
        for size in _LOCK_SIZES:
            while len(traces) - at >= size:
                sql = self._lock_sql(size)
                locked.extend(conn.exec_driver_sql(sql, tuple(chain.from_iterable(traces[at : at + size]))).fetchall())
                at += size
        return locked

    def _lock_sql(self, size: int) -> str:
        made = self._made.get(("lock", size))
        if made is None:
            table = TABLES["traces"]
            names = [f"{name}_{n}" for n in range(size) for name in TRACE]
            rows: list[dict[str, Any]] = [{name: bindparam(f"{name}_{n}") for name in TRACE} for n in range(size)]
            clause = self._insert(table).values(rows)
            locking = clause.on_conflict_do_update(index_elements=["trace_id"], set_={"revision": table.c.revision})
            returned = (table.c.trace_id, table.c.epoch, table.c.revision, table.c.first_ns, table.c.last_ns)
            made = self._keep(("lock", size), locking.returning(*returned), names)
        return made.sql

    def _given(self, columns: Sequence[str], rows: Collection[Row]) -> tuple[tuple[str, ...], Collection[Row]]:
        """Rows without the columns that are NULL in all of them. SQLite's driver looks for an adapter of each None that
        it is given: 0.5 µs on Python 3.11, and half of a step's columns are mostly unknown."""
        if self._postgresql:
            return tuple(columns), rows
        given = [
            (name, values)
            for name, values in zip(columns, zip(*rows, strict=True), strict=True)
            if values.count(None) < len(values)
        ]
        if len(given) == len(columns):
            return tuple(columns), rows
        names, kept = zip(*given, strict=True)
        return names, list(zip(*kept, strict=True))

    def _keep(self, key: object, clause: ClauseElement, names: Sequence[str]) -> Statement:
        if len(self._made) >= _MAX_STATEMENTS:  # sets of columns that are NULL; an app has few
            self._made.clear()
        self._made[key] = made = Statement(clause, self._dialect, names)
        return made


def _stored(conn: Connection, table: str, columns: Sequence[str], rows: Collection[Row]) -> Collection[Row]:
    """Rows as they are stored: encrypted, where the database is."""
    cipher = cipher_of(conn)
    return rows if cipher is None else cipher.sealed_rows(conn, table, columns, rows)


def _keys(table: Table) -> list[str]:
    return [column.name for column in table.primary_key]


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def time_text(ns: int) -> str:
    """``YYYY-MM-DD HH:MM:SS.ffffff`` in UTC, as ``UtcDateTime`` keeps it in SQLite (0.3 µs)."""
    seconds, micros = divmod(ns // 1000, 1_000_000)
    return f"{_second(seconds)}.{micros:06d}"
