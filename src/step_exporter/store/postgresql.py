"""How a PostgreSQL connection is set up, and which ones are not gone on with."""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import cache
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect, ExceptionContext

from step_exporter.errors import DatabaseError

OLDEST = 15
# A server that is gone is noticed within a minute, by libpq and the kernel; what the URL says wins.
LIBPQ_DEFAULTS = {
    "connect_timeout": 10,
    "tcp_user_timeout": 40_000,
    "application_name": "step_exporter",
    "client_encoding": "UTF8",  # a database may have another default
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
ANSWER_S = 60.0
"""How long an exporter waits for the answer to a statement. libpq itself waits for ever where the network swallows what
is sent but says that it came, as a pooler or a balancer that hangs does."""
_READ_ONLY = "25006"
_NOT_PREPARED = frozenset({"26000", "42P05"})
"""SQLSTATE: there is no such prepared statement, or there is one already."""


def set_up(connection: DBAPIConnection, place: str) -> None:
    """Look whether this is a database to keep steps in, and let it speak as psycopg reads. Raises ``DatabaseError``."""
    info = getattr(connection, "driver_connection", connection).info
    version = info.server_version // 10000
    if version < OLDEST:
        raise DatabaseError(f"{place} is PostgreSQL {version}; step_exporter needs {OLDEST} or newer.")
    encoding = info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        raise DatabaseError(
            f"{place} stores text as {encoding}, which cannot hold every span. Use a database made with"
            " CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0."
        )
    if not (info.parameter_status("DateStyle") or "ISO").startswith("ISO"):  # psycopg reads no other times
        cursor = connection.cursor()
        cursor.execute("SET datestyle = 'ISO'")
        cursor.close()
        connection.commit()


def leave_bad_connections(engine: Engine) -> None:
    """Take errors for lost connections after which the transaction that is tried again needs another one, though the
    connection is open.

    - After a failover the old primary, or what a pooler still leads to, takes no writes.
    - A pooler that hands each transaction to another session knows no statement prepared in one (PgBouncer in
      transaction mode without ``max_prepared_statements``). From the first such error on none is prepared.
    - An error without SQLSTATE is not the server's, but libpq's: it is out of step.
    """
    prepares = True

    def look(context: ExceptionContext) -> None:
        nonlocal prepares
        error, dialect = context.original_exception, context.dialect
        state = getattr(error, "sqlstate", None)
        if state in _NOT_PREPARED:
            prepares = False
        is_libpq = state is None and isinstance(error, dialect.loaded_dbapi.OperationalError)
        if is_libpq or state == _READ_ONLY or state in _NOT_PREPARED:
            context.is_disconnect = True

    def connect(dialect: Dialect, record: object, args: list[Any], kwargs: dict[str, Any]) -> None:
        if not prepares:
            kwargs["prepare_threshold"] = None

    event.listen(engine, "handle_error", look)
    event.listen(engine, "do_connect", connect, insert=True)


def connect(*args: Any, answer_s: float, **kwargs: Any) -> Any:
    """A connection of psycopg's sync driver that waits so long for the answer to a statement."""
    connection = _connection_class().connect(*args, **kwargs)
    connection.answer_s = answer_s
    return connection


@cache
def _connection_class() -> Any:
    import psycopg  # an extra

    class PatientConnection(psycopg.Connection[Any]):
        answer_s = ANSWER_S

        def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
            return super().wait(_within(gen, self.answer_s), *args, **kwargs)

    def _within(steps: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
        """psycopg's own steps. It sends nothing each tenth of a second while the socket has nothing to say."""
        end = time.monotonic() + seconds
        try:
            wanted = next(steps)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > end:
                    raise psycopg.OperationalError(f"no answer within {seconds:.0f} s")
                wanted = steps.send(ready)
        except StopIteration as done:
            return done.value

    return PatientConnection
