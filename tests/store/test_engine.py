"""URLs that are accepted, engines, and what they say when a database cannot be opened."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from step_exporter.errors import ConfigurationError, DatabaseError, NotFoundError
from step_exporter.store.engine import (
    async_url,
    create_async_store_engine,
    create_sync_engine,
    display_url,
    sqlite_path,
    sync_url,
)
from step_exporter.store.schema import ensure_schema

# URLs


@pytest.mark.parametrize(
    ("given", "sync", "asynchronous"),
    [
        ("sqlite:///steps.db", "sqlite+pysqlite:///steps.db", "sqlite+aiosqlite:///steps.db"),
        ("sqlite+aiosqlite:////var/steps.db", "sqlite+pysqlite:////var/steps.db", "sqlite+aiosqlite:////var/steps.db"),
        ("sqlite+pysqlite:///steps.db", "sqlite+pysqlite:///steps.db", "sqlite+aiosqlite:///steps.db"),
        ("sqlite://", "sqlite+pysqlite://", "sqlite+aiosqlite://"),
        ("steps.db", "sqlite+pysqlite:///steps.db", "sqlite+aiosqlite:///steps.db"),
        ("/var/steps.db", "sqlite+pysqlite:////var/steps.db", "sqlite+aiosqlite:////var/steps.db"),
        (Path("a dir/steps.db"), "sqlite+pysqlite:///a dir/steps.db", "sqlite+aiosqlite:///a dir/steps.db"),
        (URL.create("sqlite", database="x.db"), "sqlite+pysqlite:///x.db", "sqlite+aiosqlite:///x.db"),
        *(
            (
                f"{scheme}://u:p%40ss@h:5433/d?sslmode=require",
                *["postgresql+psycopg://u:p%40ss@h:5433/d?sslmode=require"] * 2,
            )
            for scheme in ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg")
        ),
        ("postgresql+asyncpg://h/d?ssl=verify-full", *["postgresql+psycopg://h/d?sslmode=verify-full"] * 2),
        ("postgresql+asyncpg://h/d?ssl=true", *["postgresql+psycopg://h/d?sslmode=require"] * 2),
    ],
)
def test_every_url_of_the_two_databases_has_a_sync_and_an_async_twin(
    given: str | Path | URL, sync: str, asynchronous: str
) -> None:
    assert sync_url(given).render_as_string(hide_password=False) == sync
    assert async_url(given).render_as_string(hide_password=False) == asynchronous


def test_a_uri_of_sqlite_is_asked_for_in_full_and_makes_no_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("file:steps.db", "file:steps.db?mode=ro", "sqlite:///file:steps.db"):
        with pytest.raises(ConfigurationError, match=r"sqlite:///file:steps.db.*\?uri=true"):
            create_sync_engine(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/d",
        "http://u:secret@h",
        "",
        "  ",
        "postgresql://u:secret@h:port/d",
        "mssql+pyodbc://u:secret@h/d",
    ],
)
def test_other_urls_are_refused_with_what_is_accepted_and_without_the_password(url: str) -> None:
    for convert in (sync_url, async_url, create_sync_engine, create_async_store_engine):
        with pytest.raises(ConfigurationError, match=r"sqlite:///steps.db, postgresql://") as caught:
            convert(url)
        assert "secret" not in str(caught.value)


def test_a_slash_too_few_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:///steps.db"):
        sync_url("sqlite://steps.db")


def test_g11_passwords_are_masked() -> None:
    shown = display_url("postgresql+asyncpg://u:secret@h/d?sslpassword=secret&password=secret&application_name=app")
    assert "secret" not in shown
    assert "u:***@h/d" in shown
    assert "application_name=app" in shown


def test_the_path_of_a_file() -> None:
    assert sqlite_path("sqlite+aiosqlite:///x.db") == Path("x.db").absolute()
    assert sqlite_path("sqlite://") is None
    assert sqlite_path("sqlite:///file:x?mode=memory&uri=true") is None
    assert sqlite_path("postgresql://h/d") is None


# SQLite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a database, with everything in its name that a URI would take apart."""
    directory = tmp_path / "a dir?x=1#y%20z"
    directory.mkdir()
    return directory / "steps.db"


@pytest.fixture
def stored(path: Path) -> Path:
    """A database with one row."""
    engine = create_sync_engine(path)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
        connection.execute(text("INSERT INTO t VALUES (1)"))
    engine.dispose()
    return path


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM t")).scalar_one()


def test_making_an_engine_does_not_connect(path: Path) -> None:
    create_sync_engine(path).dispose()
    create_sync_engine("postgresql://nowhere.invalid/x").dispose()
    assert not path.exists()


def test_a_slash_too_many_is_the_same_file_for_writers_and_readers(stored: Path) -> None:
    url = URL.create("sqlite", database=f"/{stored}")
    assert str(url.database).startswith("//")
    assert sqlite_path(url) == stored
    for read_only in (False, True):
        engine = create_sync_engine(url, read_only=read_only)
        assert count(engine) == 1
        engine.dispose()


def test_a_file_is_set_up_for_readers_beside_a_writer(stored: Path) -> None:
    engine = create_sync_engine(stored)
    expected = {"journal_mode": "wal", "auto_vacuum": 2, "synchronous": 1, "foreign_keys": 1, "busy_timeout": 10}
    with engine.connect() as connection:
        assert {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in expected} == expected
    engine.dispose()


def test_a_commit_waits_for_the_disk_where_the_url_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'steps.db'}?synchronous=full"
    engine = create_sync_engine(url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    engine.dispose()
    engine = create_sync_engine(url, read_only=True)
    engine.connect().close()
    engine.dispose()
    assert sqlite_path(url) == tmp_path / "steps.db"
    with pytest.raises(ConfigurationError, match="'OFF'; it is NORMAL or FULL"):
        create_sync_engine(f"sqlite:///{tmp_path / 'steps.db'}?synchronous=OFF")


def test_a_reader_sees_one_snapshot_while_a_writer_goes_on(stored: Path) -> None:
    writer, reader = create_sync_engine(stored), create_sync_engine(stored, read_only=True)
    with reader.connect() as reading:
        assert reading.scalar(text("SELECT count(*) FROM t")) == 1
        with writer.begin() as writing:
            writing.execute(text("INSERT INTO t VALUES (2)"))
        assert reading.scalar(text("SELECT count(*) FROM t")) == 1
    assert count(reader) == 2
    writer.dispose()
    reader.dispose()


def test_a_reader_cannot_write(stored: Path) -> None:
    engine = create_sync_engine(stored, read_only=True)
    with pytest.raises(OperationalError, match="readonly"), engine.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (2)"))
    engine.dispose()


def test_a_transaction_that_reads_before_it_writes_waits_for_others(stored: Path) -> None:
    engine = create_sync_engine(stored)

    def add() -> None:
        for _ in range(20):
            with engine.begin() as connection:
                largest = connection.scalar(text("SELECT max(x) FROM t"))
                connection.execute(text("INSERT INTO t VALUES (:x)"), {"x": largest + 1})

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(DISTINCT x), max(x) FROM t")).one() == (81, 81)
    engine.dispose()


def test_tables_go_with_a_transaction_that_is_rolled_back(path: Path) -> None:
    engine = create_sync_engine(path)
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE gone (x INTEGER)"))
        connection.rollback()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sqlite_master")) == 0
    engine.dispose()


def test_threads_share_a_database_in_memory() -> None:
    engine = create_sync_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))

    def add() -> None:
        for _ in range(10):
            with engine.begin() as connection:
                connection.execute(text("INSERT INTO t VALUES (1)"))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(engine) == 40
    engine.dispose()


def test_the_file_stays_the_same_when_the_directory_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    engine = create_sync_engine("steps.db")
    monkeypatch.chdir("/")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
    assert path.exists()
    engine.dispose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_uses_connections_of_its_own(stored: Path) -> None:
    engine = create_sync_engine(stored)
    with engine.begin() as connection:
        parents = id(connection.connection.driver_connection)
    pid = os.fork()
    if pid == 0:
        try:
            with engine.begin() as connection:
                own = id(connection.connection.driver_connection) != parents
                connection.execute(text("INSERT INTO t VALUES (2)"))
            os._exit(0 if own else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert count(engine) == 2
    engine.dispose()


def test_async_readers_see_what_was_written(stored: Path) -> None:
    async def read() -> int:
        engine = create_async_store_engine(stored, read_only=True)
        async with engine.connect() as connection:
            found = (await connection.execute(text("SELECT count(*) FROM t"))).scalar_one()
        with pytest.raises(OperationalError, match="readonly"):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO t VALUES (2)"))
        await engine.dispose()
        return found

    assert asyncio.run(read()) == 1


def test_async_writers_wait_for_others_too(stored: Path) -> None:
    async def add(number: int) -> None:
        async with engine.begin() as connection:
            largest = (await connection.execute(text("SELECT max(x) FROM t"))).scalar_one()
            await connection.execute(text("INSERT INTO t VALUES (:x)"), {"x": largest + 1})

    async def main() -> int:
        await asyncio.gather(*(add(number) for number in range(10)))
        async with engine.connect() as connection:
            return (await connection.execute(text("SELECT max(x) FROM t"))).scalar_one()

    engine = create_async_store_engine(stored)
    assert asyncio.run(main()) == 11


# What goes wrong


def connect(url: str | Path, *, read_only: bool, asynchronous: bool) -> None:
    async def connect_async() -> None:
        engine = create_async_store_engine(url, read_only=read_only)
        try:
            async with engine.connect():
                pass
        finally:
            await engine.dispose()

    if asynchronous:
        asyncio.run(connect_async())
        return
    engine = create_sync_engine(url, read_only=read_only)
    try:
        with engine.connect():
            pass
    finally:
        engine.dispose()


@pytest.mark.parametrize("asynchronous", [False, True])
class TestWhatCannotBeOpened:
    def test_a_file_that_is_missing(self, path: Path, asynchronous: bool) -> None:
        with pytest.raises(NotFoundError, match=r"no database at .*steps.db"):
            connect(path, read_only=True, asynchronous=asynchronous)
        assert not path.exists()

    def test_a_directory_that_is_missing(self, path: Path, asynchronous: bool) -> None:
        with pytest.raises(DatabaseError, match=r"directory .*/nowhere does not exist"):
            connect(path.parent / "nowhere" / "steps.db", read_only=False, asynchronous=asynchronous)

    @pytest.mark.parametrize("read_only", [False, True])
    def test_a_directory(self, path: Path, asynchronous: bool, read_only: bool) -> None:
        with pytest.raises(DatabaseError, match="is a directory"):
            connect(path.parent, read_only=read_only, asynchronous=asynchronous)

    @pytest.mark.parametrize("read_only", [False, True])
    def test_a_file_of_another_kind(self, path: Path, asynchronous: bool, read_only: bool) -> None:
        path.write_text("not a database at all, but longer than the header of one " * 30)
        with pytest.raises(DatabaseError, match=r"steps.db is not a SQLite database"):
            connect(path, read_only=read_only, asynchronous=asynchronous)

    def test_memory_for_readers(self, asynchronous: bool) -> None:
        with pytest.raises(ConfigurationError, match="in memory"):
            connect("sqlite://", read_only=True, asynchronous=asynchronous)

    def test_a_server_that_is_not_there(self, asynchronous: bool) -> None:
        with pytest.raises(
            DatabaseError, match=r"Cannot connect to postgresql\+psycopg://u:\*\*\*@127.0.0.1:1/d"
        ) as caught:
            connect("postgresql://u:secret@127.0.0.1:1/d", read_only=False, asynchronous=asynchronous)
        assert "secret" not in str(caught.value)

    def test_a_database_that_cannot_hold_every_text(self, postgres_url: str, asynchronous: bool) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute("DROP DATABASE IF EXISTS ascii_only")
            admin.execute("CREATE DATABASE ascii_only ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
            url = sync_url(postgres_url).set(database="ascii_only").render_as_string(hide_password=False)
            with pytest.raises(DatabaseError, match=r"SQL_ASCII.*ENCODING 'UTF8'"):
                connect(url, read_only=False, asynchronous=asynchronous)
            admin.execute("DROP DATABASE ascii_only")


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "fork"), reason="needs another user")
def test_a_file_without_permission_names_it(stored: Path) -> None:
    """In a child that is nobody: root may open everything."""
    stored.chmod(0o400)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for directory in (stored.parent, *stored.parent.parents):
                if os.getuid() == 0 and directory.stat().st_uid == 0 and directory != Path("/"):
                    directory.chmod(directory.stat().st_mode | 0o011)
            if os.getuid() == 0:
                os.setuid(65534)
            try:
                connect(stored, read_only=False, asynchronous=False)
            except DatabaseError as error:
                os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert os.read(read, 1000).decode() == f"No permission to write {stored}."
    os.close(read)


# PostgreSQL


def test_postgresql_readers_see_one_snapshot_and_cannot_write(postgres_url: str) -> None:
    writer, reader = create_sync_engine(postgres_url), create_sync_engine(postgres_url, read_only=True)
    with writer.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
    with reader.connect() as reading:
        assert reading.scalar(text("SELECT count(*) FROM t")) == 0
        with writer.begin() as writing:
            writing.execute(text("INSERT INTO t VALUES (1)"))
        assert reading.scalar(text("SELECT count(*) FROM t")) == 0
    assert count(reader) == 1
    with pytest.raises(DBAPIError, match="read-only"), reader.begin() as connection:
        connection.execute(text("INSERT INTO t VALUES (2)"))
    writer.dispose()
    reader.dispose()


def test_postgresql_shows_who_is_connected_unless_the_url_says_otherwise(postgres_url: str) -> None:
    engine = create_sync_engine(postgres_url)
    named = create_sync_engine(sync_url(postgres_url).update_query_dict({"application_name": "mine"}))
    for each, name in ((engine, "step_exporter"), (named, "mine")):
        with each.connect() as connection:
            assert connection.scalar(text("SHOW application_name")) == name
        each.dispose()


def test_postgresql_connections_that_the_server_dropped_are_made_again(postgres_url: str) -> None:
    engine = create_sync_engine(postgres_url)
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [pid])
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


def test_async_postgresql(postgres_url: str) -> None:
    async def main() -> None:
        engine = create_async_store_engine(postgres_url.replace("postgresql://", "postgresql+asyncpg://"))
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
        await engine.dispose()

    asyncio.run(main())


def test_errors_do_not_show_the_values(database_url: str) -> None:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    with pytest.raises(DBAPIError) as caught, engine.begin() as connection:
        connection.execute(
            text("INSERT INTO contents VALUES (:t, :h, NULL, :b, 1)"), {"t": "t", "h": "h", "b": "private"}
        )
    assert "private" not in str(caught.value)
    engine.dispose()


def test_old_files_without_wal_are_switched_once(path: Path) -> None:
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE t (x INTEGER)")
    raw.close()
    engine = create_sync_engine(path)
    assert count(engine) == 0
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()
