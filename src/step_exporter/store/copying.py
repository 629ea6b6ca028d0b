"""Many rows to PostgreSQL at once, by the driver's own means.

``Copying`` puts rows that nobody else can have into their table by COPY. ``ArrayStatement`` merges rows with what is
there: each column goes as one array, in one statement that is prepared once. CPU of client and server, in multiples of
COPY into a temporary table that is kept, and INSERT … SELECT from there, which poolers do not allow: COPY 0.65, arrays
1.0, a temporary table for each transaction 1.5, an INSERT for each row 1.8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    DateTime,
    Engine,
    LargeBinary,
    Table,
    TableValuedAlias,
    Text,
    bindparam,
    cast,
    event,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import TypeDecorator, TypeEngine

Row = Sequence[Any]

_MAX_ARRAY = 64 * 2**20
"""Characters of one array; PostgreSQL takes no value of 1 GiB."""
_OPTION = "step_exporter_copy"
# Row-level security concerns the role, which may not copy then; or a row is there, whose trace was deleted without it.
_REFUSALS = frozenset({"0A000", "23505"})
_TYPES: dict[type, TypeEngine[Any]] = {
    str: Text(),
    int: BigInteger(),
    bool: Boolean(),
    datetime: DateTime(timezone=True),
    bytes: LargeBinary(),
}


class Copying:
    """COPY into tables, by engines that ``take_copies``, until the database refuses it."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._made: dict[tuple[str, tuple[str, ...]], tuple[str, dict[str, Any]]] = {}
        self.is_refused = False

    def run(self, conn: Connection, table: Table, columns: Sequence[str], rows: list[Row]) -> None:
        """Copy rows whose keys are not in the table."""
        key = table.name, tuple(columns)
        made = self._made.get(key)
        if made is None:
            # Binary: for the client a tenth cheaper than text, and nothing to escape.
            sql = f"COPY {table.name} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
            types = [self._dialect.type_compiler_instance.process(_type(table, name)).lower() for name in columns]
            made = self._made[key] = sql, {_OPTION: _Copy(self, types)}
        if not isinstance(rows[0], tuple):  # SQLAlchemy takes no lists, which encrypted rows are
            rows = [tuple(row) for row in rows]
        # Through SQLAlchemy, which makes its errors of the driver's and sees to connections that are lost.
        conn.exec_driver_sql(made[0], rows, execution_options=made[1])


class _Copy(NamedTuple):
    """What a statement that copies carries with it."""

    copying: Copying
    types: Sequence[str]


def take_copies(engine: Engine) -> None:
    """Have an engine run the statements of ``Copying``.

    Where a COPY is refused for what an INSERT may do, the transaction is to be tried again without: on another
    connection, as SQLAlchemy knows no other error after which it may.
    """

    def run(cursor: Any, statement: str, rows: Sequence[Row], context: Any) -> bool | None:
        copied: _Copy | None = context.execution_options.get(_OPTION)
        if copied is None:
            return None
        with cursor.copy(statement) as copy:
            copy.set_types(copied.types)
            for row in rows:
                copy.write_row(row)
        return True

    def look(context: ExceptionContext) -> None:
        execution = context.execution_context
        copied: _Copy | None = execution.execution_options.get(_OPTION) if execution is not None else None
        if copied is not None and getattr(context.original_exception, "sqlstate", None) in _REFUSALS:
            copied.copying.is_refused = True
            context.is_disconnect = True
            context.invalidate_pool_on_disconnect = False

    event.listen(engine, "do_executemany", run)
    event.listen(engine, "handle_error", look)


class ArrayStatement:
    """SQL for the driver that takes the rows of ``arrays``."""

    def __init__(self, clause: ClauseElement, dialect: Dialect, table: Table, columns: Sequence[str]) -> None:
        self.sql = str(clause.compile(dialect=dialect))
        self._literals = [_array(_type(table, name)) for name in columns]

    def run(self, conn: Connection, rows: Collection[Row]) -> int:
        """Execute for rows; how many rows of the table that touched."""
        values = self.arrays(rows)
        if len(rows) > 1 and max(map(len, values)) > _MAX_ARRAY:
            rows = list(rows)
            return self.run(conn, rows[: len(rows) // 2]) + self.run(conn, rows[len(rows) // 2 :])
        return conn.exec_driver_sql(self.sql, values).rowcount

    def arrays(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """The columns of rows as what the statement takes."""
        return tuple(literal(values) for literal, values in zip(self._literals, zip(*rows, strict=True), strict=True))


def arrays(table: Table, columns: Sequence[str]) -> TableValuedAlias:
    """The rows that an ``ArrayStatement`` is given."""
    given = (cast(bindparam(name), ARRAY(_type(table, name))) for name in columns)
    return func.unnest(*given).table_valued(*columns).render_derived()


def _type(table: Table, column: str) -> TypeEngine[Any]:
    kind = table.c[column].type
    return _TYPES[(kind.impl_instance if isinstance(kind, TypeDecorator) else kind).python_type]


def _array(type_: TypeEngine[Any]) -> Callable[[Sequence[Any]], str]:
    """How the values of a column become what PostgreSQL reads as an array."""
    of_known = _texts if isinstance(type_, Text) else _numbers if isinstance(type_, BigInteger | Boolean) else _others

    def literal(values: Sequence[Any]) -> str:
        if values[0] is None and values.count(None) == len(values):  # half of a step's columns are mostly unknown
            return "{NULL" + ",NULL" * (len(values) - 1) + "}"
        return "{" + of_known(values) + "}"

    return literal


def _texts(values: Sequence[str | None]) -> str:
    text = ",".join(["NULL" if value is None else '"' + value + '"' for value in values])
    if "\\" in text or text.count('"') != 2 * (len(values) - values.count(None)):
        escaped = (None if value is None else value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
        text = ",".join(["NULL" if value is None else '"' + value + '"' for value in escaped])
    return text


def _numbers(values: Sequence[Any]) -> str:
    return ",".join(["NULL" if value is None else str(value) for value in values])


def _others(values: Sequence[Any]) -> str:
    return ",".join(["NULL" if value is None else _element(value) for value in values])


def _element(value: Any) -> str:
    return f'"\\\\x{value.hex()}"' if isinstance(value, bytes) else f'"{value}"'
