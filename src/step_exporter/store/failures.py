"""What went wrong with a transaction, and whether to try it again, halve it or give up."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

from step_exporter.errors import DatabaseError

# SQLSTATE: serialization failure, deadlock, lock not available (a lock timeout), query cancelled (a statement timeout),
# read-only transaction (a failover is on), connection exceptions, shutdown and start of the server.
_PASSING_STATES = frozenset({"40001", "40P01", "55P03", "57014", "25006", "57P01", "57P02", "57P03"})
_PASSING_CLASSES = frozenset({"08"})
# Statement, idle-in-transaction and transaction timeouts: what takes too long may not where there is less of it.
_TIMEOUT_STATES = frozenset({"57014", "25P03", "25P04"})
# Data exceptions and integrity violations: it is the values, so that a part of them may pass.
_DATA_CLASSES = frozenset({"22", "23", "54"})
_FOREIGN_KEY_STATE = "23503"


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may well succeed in a moment: another writer was in the way, the connection went."""
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):  # no connection that goes, but one that is closed after a disk's error
        return any(word in str(error.orig) for word in ("locked", "busy"))
    if error.connection_invalidated:
        return True
    state = _sqlstate(error)
    if state is not None:
        return state in _PASSING_STATES or state[:2] in _PASSING_CLASSES
    return False


def is_lost(error: BaseException) -> bool:
    """Whether the connection went."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def is_timeout(error: BaseException) -> bool:
    """Whether the database gave up because the transaction took longer than it allows."""
    return isinstance(error, DBAPIError) and _sqlstate(error) in _TIMEOUT_STATES


def is_missing_parent(error: BaseException | None) -> bool:
    """Whether a row that others refer to is not there."""
    return isinstance(error, DBAPIError) and _sqlstate(error) == _FOREIGN_KEY_STATE


def is_data(error: BaseException) -> bool:
    """Whether it is the values that the database, its driver or this package refuses."""
    if isinstance(error, DatabaseError | MemoryError):
        return False
    if not isinstance(error, DBAPIError):
        return isinstance(error, Exception)
    state = _sqlstate(error)
    if state is not None:
        return state[:2] in _DATA_CLASSES and not error.connection_invalidated
    if isinstance(error.orig, sqlite3.Error):
        # Operational errors are the file's, and so is what has no class of its own: malformed, not a database.
        return not isinstance(error.orig, sqlite3.OperationalError) and type(error.orig) is not sqlite3.DatabaseError
    return not error.connection_invalidated and type(error).__name__ in ("DataError", "ProgrammingError")


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def cause(error: BaseException) -> str:
    """The error in one line, for people: the driver's own words, no SQL and no values."""
    inner = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = " ".join(str(inner).split()) or type(inner).__name__
    return text[:600]
