"""What went wrong with a transaction, and whether to try it again, halve it or give up."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

from step_exporter.errors import DatabaseError

# SQLSTATE: serialization failure, deadlock, lock not available, query cancelled (statement and lock timeouts),
# read-only transaction (a failover is on), connection exceptions, shutdown and start of the server.
_PASSING_STATES = frozenset({"40001", "40P01", "55P03", "57014", "25006", "57P01", "57P02", "57P03"})
_PASSING_CLASSES = frozenset({"08"})
# Data exceptions and integrity violations: it is the values, so that a part of them may pass.
_DATA_CLASSES = frozenset({"22", "23", "54"})


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may well succeed in a moment: another writer was in the way, the connection went."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = _sqlstate(error)
    if state is not None:
        return state in _PASSING_STATES or state[:2] in _PASSING_CLASSES
    if isinstance(error.orig, sqlite3.OperationalError):
        return any(word in str(error.orig) for word in ("locked", "busy"))
    return False


def is_data(error: BaseException) -> bool:
    """Whether it is the values that the database, its driver or this package refuses."""
    if isinstance(error, DatabaseError | MemoryError):
        return False
    if not isinstance(error, DBAPIError):
        return isinstance(error, Exception)
    state = _sqlstate(error)
    if state is not None:
        return state[:2] in _DATA_CLASSES
    if isinstance(error.orig, sqlite3.Error):
        # "string or blob too big" is SQLITE_TOOBIG; other operational errors are the file's
        return not isinstance(error.orig, sqlite3.OperationalError) and "malformed" not in str(error.orig)
    return not error.connection_invalidated and type(error).__name__ in ("DataError", "ProgrammingError")


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def cause(error: BaseException) -> str:
    """The error in one line, for people: the driver's own words, no SQL and no values."""
    inner = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = " ".join(str(inner).split()) or type(inner).__name__
    return text[:300]
