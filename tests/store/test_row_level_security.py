"""PostgreSQL's row-level security: a role of one organization sees its rows only, in every table and view."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from organization_seeds import ACME, ACMES, GLOBEX, GLOBEXES, NOBODY, NOBODYS, SHARED, fill, of_one
from query_seeds import TABLES, trace_id
from sqlalchemy import Engine, make_url

from step_exporter import ddl
from step_exporter.errors import DatabaseError, NotFoundError
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.query import StepStore
from step_exporter.store.row_level_security import script
from step_exporter.store.schema import ensure_schema

pytestmark = pytest.mark.once

PRIVATE = {"processes", "quarantine"}
"""Tables of which no reader sees a row."""


partitioned = pytest.mark.parametrize("engine", [2], indirect=True, ids=["partitioned"])


@pytest.fixture
def engine(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(postgres_url)
    ensure_schema(engine, getattr(request, "param", None))
    fill(engine)
    with StepStore(postgres_url) as store:
        for step in store.steps():
            store.tags(step.id, [f"tag of {step.organization_id or NOBODY}"], trace_id=step.trace_id)
        store.delete(run_id=store.trace(GLOBEXES).runs[0].id)
    for _ in range(2):  # it may be run again
        run(engine, script())
    yield engine
    engine.dispose()


@pytest.fixture
def reader_url(engine: Engine, postgres_url: str) -> Iterator[str]:
    """Acme's role, which may read every table, partition and view that there is, as far as grants go."""
    role = f"acme_{uuid.uuid4().hex}"
    run(engine, f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    run(engine, f"ALTER ROLE {role} SET step_exporter.organization_id = '{ACME}'")
    yield make_url(postgres_url).set(username=role).render_as_string(hide_password=False)
    run(engine, f"DROP OWNED BY {role}; DROP ROLE {role}")


def run(engine: Engine, statements: str) -> None:
    connection = engine.raw_connection()
    try:
        connection.driver_connection.autocommit = True  # pyright: ignore[reportOptionalMemberAccess]
        connection.driver_connection.execute(statements)  # pyright: ignore[reportOptionalMemberAccess]
    finally:
        connection.detach()
        connection.close()


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def test_a_role_sees_the_rows_of_its_organization_only(engine: Engine, postgres_url: str, reader_url: str) -> None:
    assert_own_rows(postgres_url, reader_url)


@partitioned
def test_partitions_cannot_be_read_past_their_tables(engine: Engine, postgres_url: str, reader_url: str) -> None:
    assert_own_rows(postgres_url, reader_url)
    parts = rows(reader_url, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'spans'::regclass")
    assert len(parts) == 2
    for (part,) in parts:
        assert rows(reader_url, f"SELECT * FROM {part}") == []


def assert_own_rows(postgres_url: str, reader_url: str) -> None:
    for name in (*TABLES, *ddl.VIEWS):
        found = rows(reader_url, f"SELECT * FROM {name}")
        assert GLOBEX not in repr(found), name
        assert f"of {NOBODY}" not in repr(found), name
        assert not {GLOBEXES, NOBODYS} & {value for row in found for value in row if isinstance(value, str)}, name
        every = rows(postgres_url, f"SELECT * FROM {name}")
        assert bool(found) == (bool(every) and name not in {*PRIVATE, "deletions"}), name
    assert {row[0] for row in rows(reader_url, "SELECT trace_id FROM traces")} == {ACMES, SHARED}
    assert {row[0] for row in rows(reader_url, "SELECT DISTINCT trace_id FROM spans")} == {ACMES}
    assert {row[0] for row in rows(reader_url, "SELECT body FROM message_content WHERE trace_id = '" + SHARED + "'")}


def test_a_store_of_such_a_role_reads_and_changes_nothing(engine: Engine, postgres_url: str, reader_url: str) -> None:
    with StepStore(reader_url) as store, StepStore(postgres_url, organization_id=ACME) as same:
        assert list(store.steps()) == list(same.steps())
        assert list(store.audit()) == list(same.audit())
        assert store.trace(ACMES) == same.trace(ACMES)
        assert store.trace(SHARED).steps
        assert list(store.verify([SHARED])) == []  # whose spans it does not see
        with pytest.raises(NotFoundError):
            store.trace(GLOBEXES)
        with pytest.raises(DatabaseError, match="permission denied"):
            store.tags(same.trace(ACMES).steps[0].id, ["x"])
    with psycopg.connect(reader_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("UPDATE steps SET feedback = 'negative'")


def test_a_role_without_an_organization_sees_nothing(engine: Engine, reader_url: str) -> None:
    with psycopg.connect(reader_url) as connection:
        for value in ("", "none"):
            connection.execute("SELECT set_config('step_exporter.organization_id', %s, false)", (value,))
            for table in ("steps", "traces", "messages", "spans", "contents", "audit"):
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]


def test_temporary_tables_do_not_stand_in_for_ours(engine: Engine, reader_url: str) -> None:
    with psycopg.connect(reader_url) as connection:
        connection.execute("CREATE TEMP TABLE steps (trace_id text, organization_id text)")
        connection.execute("INSERT INTO pg_temp.steps VALUES (%s, %s)", (GLOBEXES, ACME))
        connection.execute("CREATE TEMP TABLE runs (trace_id text, organization_id text)")
        found = connection.execute("SELECT DISTINCT trace_id FROM spans").fetchall()
    assert found == [(ACMES,)]


def test_who_writes_is_the_owner_and_not_concerned(engine: Engine, postgres_url: str) -> None:
    Writer(engine).write(of_one(trace_id(9), GLOBEX))
    with StepStore(postgres_url) as store:
        assert len(store.trace(trace_id(9)).spans) == 4
        assert store.verify() == []


def test_one_function_may_go_by_the_role_instead(engine: Engine, reader_url: str) -> None:
    """As docs/data-control.md says, for people who run SQL of their own."""
    run(
        engine,
        "CREATE OR REPLACE FUNCTION step_exporter_organization() RETURNS text LANGUAGE sql STABLE AS"
        " $$ SELECT split_part(session_user, '_', 1) $$",
    )
    with psycopg.connect(reader_url) as connection:
        connection.execute(f"SET step_exporter.organization_id = '{GLOBEX}'")
        assert connection.execute("SELECT DISTINCT organization_id FROM steps").fetchall() == [(ACME,)]
        assert connection.execute("SELECT DISTINCT trace_id FROM spans").fetchall() == [(ACMES,)]
