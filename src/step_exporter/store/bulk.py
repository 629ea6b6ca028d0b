"""Statements that write many rows at once: all SQL of the write path that depends on the engine.

Each is compiled once per dialect from Core and run by the driver itself (``exec_driver_sql`` with tuples), past
SQLAlchemy's work per row, which cost more than SQLite's own. JSON columns take canonical text, times the engine's
own form (``Statements.time``). Many rows go to PostgreSQL as ``copying`` has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import ColumnElement, Connection, Table, bindparam, delete, select, update
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement

from step_exporter.models import Base, utc_datetime
from step_exporter.store.encryption import cipher_of

if TYPE_CHECKING:
    from step_exporter.store.copying import ArrayStatement, Copying

Row = Sequence[Any]

TABLES = Base.metadata.tables
TRACE = ("trace_id", "epoch", "revision", "first_ns", "last_ns", "changed_at")
"""The columns of ``traces``, as ``Statements.lock`` takes them."""
_LOOKED_UP = (64, 8, 1)
"""Traces that one statement looks for: three statements serve any number."""
_TRACES_SQL = {
    size: f"SELECT {', '.join(TRACE[:5])} FROM traces WHERE trace_id IN ({', '.join('?' * size)})"  # noqa: S608
    for size in _LOOKED_UP
}
_MANY = 4
"""From so many rows on ``copying`` is cheaper than an INSERT for each row."""
_MAX_STATEMENTS = 200
_GIVEN = "given_"
"""How the names of values begin: in an UPDATE, SQLAlchemy keeps those of the columns for itself."""


class Statement:
    """SQL for the driver, and in which order it takes the named values of a row."""

    def __init__(self, clause: ClauseElement, dialect: Dialect, names: Sequence[str]) -> None:
        compiled = clause.compile(dialect=dialect)
        positions: Sequence[str] = getattr(compiled, "positiontup", None) or ()
        order = [names.index(name.removeprefix(_GIVEN)) for name in positions]
        self.sql = str(compiled)
        self._arranged: Callable[[Row], Row] | None = None
        if order != list(range(len(names))):
            self._arranged = itemgetter(*order) if len(order) > 1 else lambda row: (row[order[0]],)

    def run(self, conn: Connection, rows: Iterable[Row]) -> int:
        """Execute for each row; how many rows of the table that touched."""
        values = list(map(tuple, rows)) if self._arranged is None else [self._arranged(row) for row in rows]
        if not values:
            return 0
        return conn.exec_driver_sql(self.sql, values).rowcount


class Statements:
    """The statements of one engine, made as they are needed."""

    def __init__(self, dialect: Dialect) -> None:
        self._postgresql = dialect.name == "postgresql"
        # SQLAlchemy names the parameters of psycopg; tuples need them by position.
        self._dialect = cast(Any, type(dialect))(paramstyle="format") if self._postgresql else dialect
        self._copying: Copying | None = None
        if self._postgresql:
            from sqlalchemy.dialects.postgresql import insert  # 25 ms to import, for its users only

            from step_exporter.store.copying import Copying

            self._copying = Copying(self._dialect)
        else:
            from sqlalchemy.dialects.sqlite import insert
        self._insert: Callable[[Table], Any] = insert
        self._made: dict[object, Statement | ArrayStatement] = {}

    def time(self, ns: int) -> Any:
        """A time as the engine's driver takes it for ``UtcDateTime``."""
        return utc_datetime(ns) if self._postgresql else time_text(ns)

    def now(self) -> Any:
        """The current time, for ``updated_at``."""
        return datetime.now(UTC) if self._postgresql else time_text(time.time_ns())

    def insert(
        self,
        conn: Connection,
        table: str,
        columns: Sequence[str],
        rows: Collection[Row],
        new_traces: Container[str] = (),
    ) -> int:
        """Insert rows; those whose key is there already are left alone. How many were new.

        ``new_traces`` are traces, first column of the rows, that this transaction made, so that nobody else has rows
        of them. No key of theirs may come twice.
        """
        if not rows:
            return 0
        copied, rows = self._copied(conn, table, columns, _stored(conn, table, columns, rows), new_traces)
        if not rows:
            return copied
        columns, rows = self._known(columns, rows)
        at_once = self._at_once(rows)
        made = self._made.get(("insert", table, columns, at_once))
        if made is None:
            clause = self._into(table, columns, at_once).on_conflict_do_nothing()
            made = self._keep(("insert", table, columns, at_once), clause, columns, table if at_once else None)
        return copied + made.run(conn, rows)

    def upsert(
        self,
        conn: Connection,
        table: str,
        columns: Sequence[str],
        rows: Collection[Row],
        new_traces: Container[str] = (),
    ) -> None:
        """Insert rows or, by primary key, replace them. No key may come twice. ``new_traces`` are as for ``insert``."""
        if not rows:
            return
        _, rows = self._copied(conn, table, columns, _stored(conn, table, columns, rows), new_traces)
        if not rows:
            return
        written = tuple(columns)
        columns, rows = self._known(columns, rows)
        at_once = self._at_once(rows)
        made = self._made.get(("upsert", table, written, columns, at_once))
        if made is None:
            keys = _keys(TABLES[table])
            clause = self._into(table, columns, at_once)
            changed = {name: clause.excluded[name] for name in written if name not in keys}  # left out: NULL
            clause = clause.on_conflict_do_update(index_elements=keys, set_=changed)
            key = ("upsert", table, written, columns, at_once)
            made = self._keep(key, clause, columns, table if at_once else None)
        made.run(conn, rows)

    def update(
        self, conn: Connection, table: str, keys: Sequence[str], columns: Sequence[str], rows: Collection[Row]
    ) -> None:
        """Set columns of rows; a row is the values of its keys, then of the columns."""
        if not rows:
            return
        names = (*keys, *columns)
        rows = _stored(conn, table, names, rows)
        at_once = self._at_once(rows)
        made = self._made.get(("update", table, names, at_once))
        if made is None:
            target, given = TABLES[table], _given(table, names, at_once)
            clause = update(target).where(*(target.c[name] == given[name] for name in keys))
            clause = clause.values({name: given[name] for name in columns})
            made = self._keep(("update", table, names, at_once), clause, names, table if at_once else None)
        made.run(conn, rows)

    def delete(self, conn: Connection, table: str, rows: Collection[Row]) -> None:
        """Delete rows by their primary keys."""
        if not rows:
            return
        keys = _keys(TABLES[table])
        rows = _stored(conn, table, keys, rows)
        at_once = self._at_once(rows)
        made = self._made.get(("delete", table, at_once))
        if made is None:
            target, given = TABLES[table], _given(table, keys, at_once)
            clause = delete(target).where(*(target.c[name] == given[name] for name in keys))
            made = self._keep(("delete", table, at_once), clause, keys, table if at_once else None)
        made.run(conn, rows)

    def lock(self, conn: Connection, traces: Sequence[Row]) -> list[Row]:
        """Lock traces, in the given order. Each is given as what its row is made of where it is not there yet, in the
        order of ``TRACE``.

        Returns (trace_id, epoch, revision, first_ns, last_ns) of each. On PostgreSQL the update of nothing is what
        locks a row that is there: DO NOTHING does not. On SQLite the transaction is the lock; there that statement
        takes 13 µs a trace once 10,000 are there, to look and to insert takes 4.
        """
        if self._postgresql:
            made = self._made.get("lock")
            if made is None:
                made = self._keep("lock", self._locking(), TRACE, "traces")
            return list(conn.exec_driver_sql(made.sql, cast("ArrayStatement", made).arrays(traces)).fetchall())
        there: dict[str, Row] = {}
        at = 0
        for size in _LOOKED_UP:
            while len(traces) - at >= size:
                ids = tuple([trace[0] for trace in traces[at : at + size]])
                there.update((row[0], row) for row in conn.exec_driver_sql(_TRACES_SQL[size], ids))
                at += size
        self.insert(conn, "traces", TRACE, [trace for trace in traces if trace[0] not in there])
        return [there.get(trace[0]) or trace[:5] for trace in traces]

    def _locking(self) -> ClauseElement:
        table = TABLES["traces"]
        clause = self._into("traces", TRACE, at_once=True)
        locking = clause.on_conflict_do_update(index_elements=["trace_id"], set_={"revision": table.c.revision})
        return locking.returning(*(table.c[name] for name in TRACE[:5]))

    def _copied(
        self,
        conn: Connection,
        table: str,
        columns: Sequence[str],
        rows: Collection[Row],
        new_traces: Container[str],
    ) -> tuple[int, Collection[Row]]:
        """Copy the rows of new traces, where that is cheaper. How many, and the rows that are left."""
        if self._copying is None or self._copying.is_refused or not new_traces or not self._at_once(rows):
            return 0, rows
        new: list[Row] = []
        left: list[Row] = []
        for row in rows:
            (new if row[0] in new_traces else left).append(row)
        if not self._at_once(new):
            return 0, rows
        self._copying.run(conn, TABLES[table], columns, new)
        return len(new), left

    def _at_once(self, rows: Collection[Row]) -> bool:
        """Whether rows are so many that PostgreSQL is better given them in one statement."""
        return self._postgresql and len(rows) >= _MANY

    def _into(self, table: str, columns: Sequence[str], at_once: bool) -> Any:
        """INSERT of one row or, at once, of the rows of arrays."""
        insert, given = self._insert(TABLES[table]), _given(table, columns, at_once)
        if not at_once:
            return insert.values(given)
        return insert.from_select(columns, select(*given.values()), include_defaults=False)

    def _known(self, columns: Sequence[str], rows: Collection[Row]) -> tuple[tuple[str, ...], Collection[Row]]:
        """Rows without the columns that are NULL in all of them. SQLite's driver looks for an adapter of each None that
        it is given: 0.5 µs on Python 3.11, and half of a step's columns are mostly unknown."""
        if self._postgresql:
            return tuple(columns), rows
        known = [
            (name, values)
            for name, values in zip(columns, zip(*rows, strict=True), strict=True)
            if values[0] is not None or values.count(None) < len(values)  # to compare None with a text takes 30 ns
        ]
        if len(known) == len(columns):
            return tuple(columns), rows
        names, kept = zip(*known, strict=True)
        return names, list(zip(*kept, strict=True))

    def _keep(
        self, key: object, clause: ClauseElement, names: Sequence[str], table: str | None = None
    ) -> Statement | ArrayStatement:
        """A statement for rows of values or, with a table, of the arrays of its columns."""
        if len(self._made) >= _MAX_STATEMENTS:  # sets of columns that are NULL; an app has few
            self._made.clear()
        if table is None:
            made = Statement(clause, self._dialect, names)
        else:
            from step_exporter.store.copying import ArrayStatement

            made = ArrayStatement(clause, self._dialect, TABLES[table], names)
        self._made[key] = made
        return made


def _stored(conn: Connection, table: str, columns: Sequence[str], rows: Collection[Row]) -> Collection[Row]:
    """Rows as they are stored: encrypted, where the database is."""
    cipher = cipher_of(conn)
    return rows if cipher is None else cipher.sealed_rows(conn, table, columns, rows)


def _given(table: str, names: Sequence[str], at_once: bool) -> Mapping[str, ColumnElement[Any]]:
    """What a statement takes, by column: the values of one row or, at once, the rows of arrays."""
    if not at_once:
        return {name: bindparam(_GIVEN + name) for name in names}
    from step_exporter.store.copying import arrays

    return dict(arrays(TABLES[table], names).c.items())


def _keys(table: Table) -> list[str]:
    return [column.name for column in table.primary_key]


@lru_cache(maxsize=256)
def _minute(minutes: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:", time.gmtime(60 * minutes))


def time_text(ns: int) -> str:
    """``YYYY-MM-DD HH:MM:SS.ffffff`` in UTC, as ``UtcDateTime`` keeps it in SQLite (0.5 µs)."""
    minutes, micros = divmod(ns // 1000, 60_000_000)
    return f"{_minute(minutes)}{micros // 1_000_000:02d}.{micros % 1_000_000:06d}"
