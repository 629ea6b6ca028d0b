"""Database URLs, and engines that are set up for many writers and readers.

The same URL serves sync and async: ``sqlite+aiosqlite`` and ``postgresql+asyncpg`` have sync twins, which write.
Making an engine never connects. What goes wrong on connecting is a ``DatabaseError`` that names the place, without
its password, and what to do.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote

import aiosqlite
from sqlalchemy import (
    URL,
    AsyncAdaptedQueuePool,
    Connection,
    Engine,
    NullPool,
    Pool,
    PoolProxiedConnection,
    QueuePool,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect, IsolationLevel
from sqlalchemy.exc import ArgumentError

from step_exporter.errors import ConfigurationError, DatabaseError, NotFoundError
from step_exporter.store import postgresql, sqlite
from step_exporter.store.encryption import OPTION, make_cipher

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

DatabaseURL = str | os.PathLike[str] | URL

BUSY_TIMEOUT_S = 10
"""How long a SQLite transaction waits for another process's."""

_PATIENCE = "step_exporter_patience_s"
"""The execution option that says so of one engine's transactions."""

_SYNCHRONOUS = ("NORMAL", "FULL")
_SQLITE = frozenset({"sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"})
_POSTGRESQL = frozenset(
    f"{scheme}{driver}"
    for scheme in ("postgresql", "postgres")
    for driver in ("", "+psycopg", "+psycopg_async", "+psycopg2", "+asyncpg")
)
_ACCEPTED = "Give sqlite:///steps.db, postgresql://user:password@host/database, or the path of a SQLite file."


def sync_url(url: DatabaseURL) -> URL:
    """The URL for the sync driver: pysqlite or psycopg.

    Takes every SQLite and PostgreSQL URL whatever its driver, and the path of a SQLite file; of a SQLite file,
    ``?synchronous=FULL`` makes each commit survive a power cut, at the price of an fsync. Raises
    ``ConfigurationError``, which names what is accepted, for anything else.
    """
    parsed = _parse(url)
    if parsed.drivername in _SQLITE:
        if parsed.host or parsed.username:
            raise ConfigurationError(f"A SQLite URL has three slashes before the path: sqlite:///{parsed.host}")
        if _is_uri(parsed) and parsed.query.get("uri") != "true":  # it would be a file of that name
            name = parsed.database
            raise ConfigurationError(f"Give the path of the SQLite file, or its URI as sqlite:///{name}?uri=true")
        _synchronous(parsed)
        return parsed.set(drivername="sqlite+pysqlite")
    if parsed.drivername in _POSTGRESQL:
        query = dict(parsed.query)
        if "ssl" in query:  # asyncpg's word for it
            ssl = query.pop("ssl")
            query.setdefault("sslmode", "require" if ssl == "true" else ssl)
        return parsed.set(drivername="postgresql+psycopg", query=query)
    raise ConfigurationError(f"{parsed.drivername!r} is not a database that steps can be kept in. {_ACCEPTED}")


def async_url(url: DatabaseURL) -> URL:
    """The URL for the async driver: aiosqlite or psycopg. Takes and raises what ``sync_url`` does."""
    parsed = sync_url(url)
    return parsed.set(drivername="sqlite+aiosqlite") if _is_sqlite(parsed) else parsed


def display_url(url: DatabaseURL) -> str:
    """The URL for people to read, passwords masked."""
    parsed = _parse(url)
    hidden = {key: "***" for key in parsed.query if "password" in key}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)


def sqlite_path(url: DatabaseURL) -> Path | None:
    """The absolute path of the SQLite file, or None (PostgreSQL, in memory, ``file:`` URIs)."""
    parsed = _parse(url)
    if parsed.drivername not in _SQLITE or _is_memory(parsed) or _is_uri(parsed):
        return None
    path = Path(parsed.database or "").absolute()
    # sqlite://// and an absolute path: pathlib leaves two slashes, and a file: URI takes them for a host
    return Path(str(path)[1:]) if str(path).startswith("//") else path


def absolute_url(url: DatabaseURL) -> DatabaseURL:
    """The same database from whatever working directory. Raises ``ConfigurationError``."""
    path = sqlite_path(url)
    return url if path is None else _parse(url).set(database=str(path))


def create_sync_engine(
    url: DatabaseURL,
    *,
    read_only: bool = False,
    encryption_key: str | None = None,
    answer_s: float | None = None,
    foreign_keys: bool = True,
) -> Engine:
    """An engine for threads; it outlives forks. ``encryption_key`` is as ``encryption.make_cipher`` takes it;
    ``answer_s`` is after how many seconds without an answer to a statement a PostgreSQL connection is taken for lost.
    Without ``foreign_keys`` SQLite does not look for the row that a new one refers to (9 µs a step), which is for who
    wrote that row in the same transaction.

    Every transaction of a writing one on SQLite begins IMMEDIATE, so that it waits for another writer at its start
    rather than fail in its middle. ``read_only`` ones see one snapshot per transaction and cannot write; on connect
    they raise ``NotFoundError`` where there is no file. Both raise ``DatabaseError`` on connect for what cannot be
    opened, ``ConfigurationError`` at once for what is not a database URL, or a key.
    """
    target = _target(sync_url(url), read_only)
    with _driver_needed():
        engine = create_engine(target, **_options(target, read_only, QueuePool, encryption_key))
    _prepare(engine, sync_url(url), read_only, answer_s, foreign_keys)
    if not read_only:
        _note_taken(engine)
    return engine


def replace_connections(engine: Engine) -> None:
    """Begin with new connections, and close those that this thread has taken and not given back: for after an
    exception that may have come at any point, as Ctrl-C does. A transaction that it left open would lock the others
    out. Those of other threads go on. ``engine`` is one of ``create_sync_engine`` that writes."""
    is_memory = engine.dialect.name == "sqlite" and engine not in _files
    if not is_memory:
        engine.dispose()
    for connection, thread in list(_taken[engine].items()):
        if thread != threading.get_ident() or not connection.is_valid:
            continue
        if is_memory:  # the connection is the database
            connection.close()
        else:
            connection.invalidate()


def create_async_store_engine(
    url: DatabaseURL, *, read_only: bool = False, encryption_key: str | None = None
) -> AsyncEngine:
    """The async twin of ``create_sync_engine``, with the same transactions and errors.

    On SQLite each transaction opens the file anew: a pooled aiosqlite connection that nobody closes can keep the
    interpreter from exiting.
    """
    from sqlalchemy.ext.asyncio import create_async_engine  # a fifth of the exporter's import time, for readers only

    target = _target(async_url(url), read_only)
    pool = NullPool if _is_sqlite(target) and not _is_memory(target) else AsyncAdaptedQueuePool
    with _driver_needed():
        engine = create_async_engine(target, **_options(target, read_only, pool, encryption_key))
    _prepare(engine.sync_engine, sync_url(url), read_only)
    return engine


def impatient(engine: Engine) -> Engine:
    """The engine, with its connections, whose transactions on a SQLite file do not wait for another process's."""
    return engine.execution_options(**{_PATIENCE: 0})


# URLs


def _parse(url: DatabaseURL) -> URL:
    if isinstance(url, URL):
        return url
    try:
        text = os.fspath(url)
    except TypeError:
        raise ConfigurationError(f"{url!r:.40} is no database URL. {_ACCEPTED}") from None
    if not text.strip():
        raise ConfigurationError(f"The database URL is empty. {_ACCEPTED}")
    if "://" not in text:
        return URL.create("sqlite", database=text)
    try:
        return make_url(text)
    except (ArgumentError, ValueError):  # its message holds the URL, and with it the password
        raise ConfigurationError(f"The {text.split('://')[0]} URL cannot be read. {_ACCEPTED}") from None


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _is_memory(url: URL) -> bool:
    return _is_sqlite(url) and url.database in (None, "", ":memory:")


def _is_uri(url: URL) -> bool:
    return (url.database or "").startswith("file:")


def _synchronous(url: URL) -> str:
    """How much a commit waits for the disk (sqlite.org/pragma.html#pragma_synchronous)."""
    value = url.query.get("synchronous", "NORMAL")
    if not isinstance(value, str) or value.upper() not in _SYNCHRONOUS:
        raise ConfigurationError(f"synchronous is {value!r}; it is {' or '.join(_SYNCHRONOUS)}")
    return value.upper()


def _target(url: URL, read_only: bool) -> URL:
    """What to connect to. Paths are made absolute: the working directory may change."""
    if _is_sqlite(url):
        url = url.difference_update_query(["synchronous"])  # ours, not the driver's
    if read_only and _is_memory(url):
        raise ConfigurationError("A SQLite database in memory can be read only through the engine that writes it.")
    path = sqlite_path(url)
    if path is None:
        return url
    if read_only:
        return url.set(database=f"file:{quote(str(path))}", query={**url.query, "mode": "ro", "uri": "true"})
    return url.set(database=str(path))


# Engines


class _Options(TypedDict, total=False):
    poolclass: type[Pool]
    pool_size: int
    max_overflow: int
    pool_pre_ping: bool
    hide_parameters: bool
    connect_args: dict[str, Any]
    isolation_level: IsolationLevel
    execution_options: dict[str, Any]


def _options(url: URL, read_only: bool, pool: type[Pool], encryption_key: str | None) -> _Options:
    # Errors are logged; their parameters would be prompts and answers.
    cipher = make_cipher(encryption_key)
    execution: dict[str, Any] = {} if cipher is None else {OPTION: cipher}
    options = _Options(poolclass=pool, hide_parameters=True, execution_options=execution)
    if _is_sqlite(url):
        # No isolation level: the driver leaves transactions to the "begin" event. Any thread may use a connection,
        # one at a time, which the pool sees to.
        options["connect_args"] = {"isolation_level": None, "timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
        if _is_memory(url):  # the one connection is the database; threads take turns
            options |= _Options(pool_size=1, max_overflow=0)
        return options
    options["connect_args"] = {key: value for key, value in postgresql.LIBPQ_DEFAULTS.items() if key not in url.query}
    options["pool_pre_ping"] = True
    options["isolation_level"] = "REPEATABLE READ" if read_only else "READ COMMITTED"
    if read_only:
        execution["postgresql_readonly"] = True
    return options


class _driver_needed:  # noqa: N801  reads as a statement
    """Say what to install where a driver is missing."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise ConfigurationError(
                f"This database needs {error.name}: pip install 'step_exporter[postgres]'"
            ) from error


def _prepare(
    engine: Engine, url: URL, read_only: bool, answer_s: float | None = None, foreign_keys: bool = True
) -> None:
    place = display_url(url)
    path = sqlite_path(url)
    _engines.add(engine)
    if path is not None and engine.dialect.driver == "pysqlite":
        _files.add(engine)

    def connect(dialect: Dialect, record: object, args: list[Any], kwargs: dict[str, Any]) -> DBAPIConnection:
        if read_only and path is not None and not path.exists():
            raise NotFoundError(f"There is no database at {path}. Write steps to it first, or name another one.")
        connection = None
        try:
            if _is_sqlite(url) and not read_only:
                sqlite.check(path)
            if dialect.driver == "aiosqlite":
                # Its thread outlives a failed open and then complains of a closed event loop, so look first.
                sqlite3.connect(*args, **kwargs).close()
                kwargs["async_creator_fn"] = _in_daemon_thread
            if answer_s is not None and not _is_sqlite(url):
                connection = postgresql.connect(*args, answer_s=answer_s, **kwargs)
            else:
                connection = dialect.connect(*args, **kwargs)
            if _is_sqlite(url):
                if read_only:
                    sqlite.set_up_reader(connection)
                else:
                    sqlite.set_up_writer(connection, path, _synchronous(url), BUSY_TIMEOUT_S, foreign_keys)
            else:
                postgresql.set_up(connection, place)
        except (dialect.loaded_dbapi.Error, DatabaseError, UnicodeDecodeError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, DatabaseError):
                raise
            why = f"Cannot connect to {place}: {error}" if path is None else sqlite.why_not(path, error, read_only)
            raise DatabaseError(why.strip()) from error
        return connection

    event.listen(engine, "do_connect", connect)
    if not _is_sqlite(url):
        postgresql.leave_bad_connections(engine)
        if not read_only:
            from step_exporter.store.copying import take_copies  # its imports are for PostgreSQL's users only

            take_copies(engine)
    else:

        def begin(connection: Connection) -> None:
            if read_only:
                sqlite.begin_reading(connection)
            else:
                patience_s: float = connection.get_execution_options().get(_PATIENCE, BUSY_TIMEOUT_S)
                sqlite.begin_writing(connection, patience_s)

        event.listen(engine, "begin", begin)
        event.listen(engine, "close", sqlite.roll_back)
        event.listen(engine, "handle_error", sqlite.on_error)


def _in_daemon_thread(*args: Any, **kwargs: Any) -> aiosqlite.Connection:
    """A connection that does not keep the interpreter from ending. SQLAlchemy 2.0 says so to the connection, where
    aiosqlite 0.22 has a thread."""
    connection = aiosqlite.connect(*args, **kwargs)
    thread: Any = getattr(connection, "_thread", connection)
    thread.daemon = True
    return connection


_taken: weakref.WeakKeyDictionary[Engine, weakref.WeakKeyDictionary[PoolProxiedConnection, int]]
_taken = weakref.WeakKeyDictionary()
"""The connections that are in use, or were, and the threads that took them."""


def _note_taken(engine: Engine) -> None:
    taken = _taken[engine] = weakref.WeakKeyDictionary[PoolProxiedConnection, int]()

    def note(connection: object, record: object, proxy: PoolProxiedConnection) -> None:
        taken[proxy] = threading.get_ident()

    event.listen(engine, "checkout", note)


# Forks

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_files: weakref.WeakSet[Engine] = weakref.WeakSet()
_inherited: list[Pool] = []


def close_idle_files() -> None:
    """Close SQLite files that nobody is at; they are opened again when they are needed.

    SQLite notes its locks on a file in memory. A child that inherits the note takes them for its own, though the system
    gives none of the parent's to it: whoever closes the file next believes to be the last, brings the log in and
    deletes it while the child writes to it, and the file is damaged (sqlite.org/howtocorrupt.html, 2.6).
    """
    for engine in tuple(_files):
        engine.dispose()


def _after_fork_in_child() -> None:
    """A connection belongs to the process that opened it. The child opens its own, and keeps the parent's unused:
    closing them would end the parent's PostgreSQL sessions, and warn of unclosed SQLite files."""
    for engine in tuple(_engines):
        _inherited.append(engine.pool)
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=close_idle_files, after_in_child=_after_fork_in_child)
