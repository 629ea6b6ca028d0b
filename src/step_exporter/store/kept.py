"""Selects that are made once and run again and again, for other values each time."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import Connection, Select
from sqlalchemy.engine import Dialect

Row = Sequence[Any]
Values = Mapping[str, Any]
"""What a select binds, by the names of its parameters."""

IN_PARTS = {"yield_per": 5000}
"""Execution options of a select whose rows SQLAlchemy reads some at a time, each time from a server."""
_PART = 500
"""Rows that the driver reads at a time. So many, and what is made of them, stay in the processor's cache: statistics of
10,000 steps take 45 ms, with 5,000 at a time 53."""


class KeptSelect:
    """A select for one dialect, of columns and single values: without ``IN`` a list, which SQLAlchemy writes anew for
    each.

    SQLite's is run by the driver, and what it gives is read here by the types of the columns: SQLAlchemy's own work,
    55 µs a call and 1.5 a row, would be as much as SQLite's on the ten steps of a trace. Nor does it begin a
    transaction, which is 18 µs: one select reads one snapshot. Who runs several begins it.
    """

    def __init__(self, statement: Select[Any], dialect: Dialect) -> None:
        self._statement = statement
        self._is_sqlite = dialect.name == "sqlite"
        if self._is_sqlite:
            compiled: Any = statement.compile(dialect=dialect)
            self._sql = str(compiled)
            self._defaults: dict[str, Any] = compiled.params
            types = {name: compiled.binds[name].type.dialect_impl(dialect) for name in compiled.positiontup}
            self._binds = [(name, types[name].bind_processor(dialect)) for name in compiled.positiontup]
            columns = [column.type.dialect_impl(dialect) for column in statement.selected_columns]
            readers = [(at, type_.result_processor(dialect, None)) for at, type_ in enumerate(columns)]
            self._readers = [(at, read) for at, read in readers if read is not None]

    def rows(self, conn: Connection, values: Values) -> Sequence[Row]:
        """All rows."""
        if not self._is_sqlite:
            return conn.execute(self._statement, values).fetchall()
        with self._executed(conn, values) as cursor:
            return self._read(cursor.fetchall())

    def parts(self, conn: Connection, values: Values) -> Iterator[Sequence[Row]]:
        """All rows, some at a time."""
        if not self._is_sqlite:
            yield from conn.execute(self._statement, values, execution_options=IN_PARTS).partitions()
            return
        with self._executed(conn, values) as cursor:
            while part := cursor.fetchmany(_PART):
                yield self._read(part)

    @contextmanager
    def _executed(self, conn: Connection, values: Values) -> Generator[Any]:
        try:
            with closing(conn.connection.cursor()) as cursor:
                cursor.execute(self._sql, self._bound(values))
                yield cursor
        except sqlite3.Error as error:
            conn.invalidate(error)  # the file is opened anew, as ``sqlite.on_error`` has it where SQLAlchemy runs
            raise

    def _bound(self, values: Values) -> tuple[Any, ...]:
        given = {**self._defaults, **values}
        return tuple([given[name] if bind is None else bind(given[name]) for name, bind in self._binds])

    def _read(self, rows: Sequence[Row]) -> Sequence[Row]:
        if not self._readers:
            return rows
        found: list[Row] = []
        for row in rows:
            values = list(row)
            for at, read in self._readers:
                if values[at] is not None:
                    values[at] = read(values[at])
            found.append(tuple(values))
        return found
