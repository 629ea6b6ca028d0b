"""The tables: how they come to be, and what holds between them."""

from __future__ import annotations

import asyncio
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, bindparam, delete, inspect, select, text, update
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Session

from step_exporter import ddl
from step_exporter.derive import rows
from step_exporter.errors import DatabaseError, SchemaError
from step_exporter.models import (
    Base,
    Content,
    Message,
    Organization,
    Process,
    Provider,
    Quarantine,
    Run,
    Span,
    Step,
    StepMetrics,
    Trace,
    canonical_json,
    utc_datetime,
)
from step_exporter.store.engine import create_async_store_engine, create_sync_engine
from step_exporter.store.schema import check_schema, ensure_schema, migrate, schema_version, upgrade

TRACE = "0af7651916cd43dd8448eb211c80319c"
BEGAN = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A trace with two steps in one run, the second called by the first, and what goes with them."""
    ensure_schema(engine)
    with Session(engine) as session:
        session.add_all([Organization(id="org-1", name="acme"), Provider(id="provider-1", name="openai")])
        session.flush()
        session.add(Run(trace_id=TRACE, id="run-1", span_id="a", status="completed", created_at=BEGAN))
        session.add(Content(trace_id=TRACE, hash="h1", body='"What is the weather?"'))
        for number in (1, 2):
            session.add(
                Step(
                    trace_id=TRACE,
                    id=f"step-{number}",
                    span_id=f"b{number}",
                    parent_step_id="step-1" if number == 2 else None,
                    run_id="run-1",
                    organization_id="org-1",
                    provider_id="provider-1",
                    provider_name="openai",
                    model="gpt-4o",
                    prompt_tokens=100,
                    completion_tokens=10,
                    total_tokens=110,
                    status="success" if number == 1 else "failed",
                    created_at=BEGAN + timedelta(seconds=number),
                    metrics=StepMetrics(run_id="run-1", step_ns=2_000_000, llm_request_ns=1_500_000, tool_call_count=1),
                )
            )
            session.add(
                Message(
                    trace_id=TRACE,
                    id=f"message-{number}",
                    role="user",
                    content_hash="h1",
                    step_id=f"step-{number}",
                    run_id="run-1",
                    position=number,
                )
            )
        session.commit()
        yield session


# Making the tables


def test_a_database_made_by_the_migrations_equals_a_new_one(database_url: str) -> None:
    first, second = create_sync_engine(database_url), create_sync_engine(database_url)
    with first.begin() as connection:
        migrate(connection)
        made = description(connection)
        Base.metadata.drop_all(connection)
        assert description(connection) != made
    with second.begin() as connection:
        upgrade(connection, None)
        assert description(connection) == made
    first.dispose()
    second.dispose()


def test_create_all_makes_what_the_exporter_makes(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        made = description(connection)
    ensure_schema(engine)
    with engine.begin() as connection:
        check_schema(connection)
        assert description(connection) == made
    Base.metadata.drop_all(engine)
    with engine.connect() as connection:
        assert schema_version(connection) is None
        assert inspect(connection).get_view_names() == []
    ensure_schema(engine)


def test_ensure_schema_again_keeps_the_rows(engine: Engine) -> None:
    ensure_schema(engine)
    with engine.begin() as connection:
        connection.execute(Organization.__table__.insert(), {"id": "org-1", "name": "acme"})
    ensure_schema(engine)
    with engine.connect() as connection:
        assert connection.scalar(select(Organization.name)) == "acme"


def test_tables_are_made_beside_those_of_the_app(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE users (id INTEGER)"))
    ensure_schema(engine)
    with engine.connect() as connection:
        assert inspect(connection).has_table("users")
        assert inspect(connection).has_table("steps")


@pytest.mark.parametrize(
    ("statement", "name"),
    [("CREATE TABLE runs (id INTEGER)", "runs"), ("CREATE VIEW model_usage AS SELECT 1 AS x", "model_usage")],
)
def test_tables_of_the_same_name_that_are_not_ours_are_refused(engine: Engine, statement: str, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))
    with pytest.raises(SchemaError, match=f"named {name} that step_exporter did not make"):
        ensure_schema(engine)
    with engine.connect() as connection:
        assert schema_version(connection) is None
        assert not inspect(connection).has_table("steps")


def test_a_newer_schema_is_refused_with_both_versions_and_left_alone(engine: Engine) -> None:
    ensure_schema(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE step_exporter_version SET version_num = '9999'"))
        made = description(connection)
    with pytest.raises(SchemaError, match=f"9999.*{ddl.VERSION}"):
        ensure_schema(engine)
    with engine.connect() as connection:
        assert description(connection) == made
        with pytest.raises(SchemaError, match=f"9999.*{ddl.VERSION}"):
            check_schema(connection)


def test_an_older_schema_names_the_command_that_brings_it_up_to_date(engine: Engine) -> None:
    ensure_schema(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE step_exporter_version SET version_num = '0000'"))
        with pytest.raises(SchemaError, match="run step-exporter migrate"):
            check_schema(connection)


def test_a_database_without_tables_says_so_to_readers(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(SchemaError, match="no span was written"):
        check_schema(connection)


def test_a_process_that_dies_while_making_the_tables_leaves_nothing_behind(engine: Engine, database_url: str) -> None:
    program = (
        "import os, sys\n"
        "from step_exporter.store.engine import create_sync_engine\n"
        "from step_exporter.store.schema import migrate\n"
        "with create_sync_engine(sys.argv[1]).begin() as connection:\n"
        "    migrate(connection)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, database_url], timeout=60, check=False)
    assert killed.returncode == -9
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    ensure_schema(engine)
    with engine.connect() as connection:
        check_schema(connection)


def test_a_database_that_refuses_says_why(postgres_url: str) -> None:
    engine = create_sync_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER DATABASE " + engine.url.database + " SET default_transaction_read_only = on"))
    engine.dispose()
    with pytest.raises(DatabaseError, match=r"cannot be made: .*read-only"):
        ensure_schema(engine)
    engine.dispose()


def test_processes_that_start_at_once_make_one_schema(database_url: str) -> None:
    program = (
        "import sys\n"
        "from step_exporter.store.engine import create_sync_engine\n"
        "from step_exporter.store.schema import ensure_schema\n"
        "engine = create_sync_engine(sys.argv[1])\n"
        "sys.stdin.readline()\n"
        "ensure_schema(engine)\n"
        "engine.dispose()\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, database_url]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [("", 0)] * 4
    engine = create_sync_engine(database_url)
    with engine.connect() as connection:
        check_schema(connection)
    engine.dispose()


def test_a_current_database_needs_no_alembic(sqlite_url: str) -> None:
    program = (
        "import sys\n"
        "from step_exporter.store.engine import create_sync_engine\n"
        "from step_exporter.store.schema import ensure_schema\n"
        "ensure_schema(create_sync_engine(sys.argv[1]))\n"
        "assert 'alembic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, sqlite_url], check=True, timeout=60)


def test_async_callers_make_the_tables_too(database_url: str) -> None:
    async def make_and_check() -> None:
        engine = create_async_store_engine(database_url)
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
        await engine.dispose()
        reader = create_async_store_engine(database_url, read_only=True)
        async with reader.connect() as connection:
            await connection.run_sync(check_schema)
        await reader.dispose()

    asyncio.run(make_and_check())


def test_triggers_work_whatever_the_search_path_of_the_session(postgres_url: str) -> None:
    with_path = f"{postgres_url}{'&' if '?' in postgres_url else '?'}options=-csearch_path%3Dagents"
    plain, engine = create_sync_engine(postgres_url), create_sync_engine(with_path)
    with plain.begin() as connection:
        connection.execute(text("CREATE SCHEMA agents"))
    ensure_schema(engine)
    with plain.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO agents.runs (trace_id, id, status, created_at, updated_at)"
                " VALUES ('t', 'r', 'failed', now(), now())"
            )
        )
        connection.execute(
            text(
                "INSERT INTO agents.steps (trace_id, id, span_id, run_id, status, created_at, updated_at)"
                " VALUES ('t', 's', 'a', 'r', 'failed', now(), now())"
            )
        )
        connection.execute(text("DELETE FROM agents.runs"))
        assert connection.execute(text("SELECT id, run_id FROM agents.steps")).all() == [("s", None)]
    plain.dispose()
    engine.dispose()


def description(connection: Connection) -> list[tuple[object, ...]]:
    """Everything in the schema, as the engine itself tells it."""
    if connection.dialect.name == "sqlite":
        # Tables by their columns, as Alembic writes them on other lines; the rest by its text.
        objects = connection.execute(text("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"))
        found = [tuple(row) if row.type != "table" else tuple(row)[:3] for row in objects]
        tables = [row[1] for row in found if row[0] == "table"]
        for pragma in ("table_info", "foreign_key_list", "index_list"):
            for name in tables:
                described = connection.exec_driver_sql(f"PRAGMA {pragma}({name})")
                skip = 1 if pragma == "index_list" else 0  # the order of creation
                found += sorted((pragma, name, *row[skip:]) for row in described)
        return [tuple(" ".join(x.split()) if isinstance(x, str) else x for x in row) for row in found]
    queries = """
SELECT table_name, column_name, ordinal_position, column_default, is_nullable, data_type, collation_name
    FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 3;
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2;
SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1;
SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1;
SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1;
SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1;
SELECT relname, reloptions::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1;
SELECT attrelid::regclass::text, attname, attcompression FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'public'::regnamespace AND attcompression <> '' ORDER BY 1, 2"""
    return [tuple(row) for query in queries.split(";") for row in connection.exec_driver_sql(query)]


# What holds between rows


def test_relationships_lead_both_ways(session: Session) -> None:
    step = session.get_one(Step, (TRACE, "step-1"))
    run = session.get_one(Run, (TRACE, "run-1"))
    assert step.run is run
    assert [s.id for s in run.steps] == ["step-1", "step-2"]
    assert [s.id for s in step.children] == ["step-2"]
    assert step.metrics is not None
    assert (step.metrics.step, step.metrics.run) == (step, run)
    assert [m.id for m in run.messages] == ["message-1", "message-2"]
    assert [m.id for m in step.messages] == ["message-1"]
    assert (step.messages[0].step, step.messages[0].run) == (step, run)
    assert step.messages[0].content is not None
    assert step.messages[0].content.body == '"What is the weather?"'
    assert step.organization is not None
    assert step.provider is not None
    assert (step.organization.name, step.provider.name) == ("acme", "openai")


def test_deleting_a_run_by_sql_keeps_its_steps(session: Session) -> None:
    session.execute(text("DELETE FROM runs"))
    session.commit()
    check_orphans(session)


def test_deleting_a_run_by_the_orm_keeps_its_steps(session: Session) -> None:
    run = session.get_one(Run, (TRACE, "run-1"))
    assert len(run.steps) == 2
    session.delete(run)
    session.commit()
    check_orphans(session)


def check_orphans(session: Session) -> None:
    for column in (Step.run_id, StepMetrics.run_id, Message.run_id):
        assert session.scalars(select(column)).all() == [None, None]
    step = session.get_one(Step, (TRACE, "step-1"))
    assert (step.run, [m.id for m in step.messages]) == (None, ["message-1"])


def test_a_run_of_the_same_id_in_another_trace_is_left_alone(session: Session) -> None:
    session.add(Run(trace_id="f" * 32, id="run-1", status="running", created_at=BEGAN))
    session.commit()
    session.execute(delete(Run).where(Run.trace_id == "f" * 32))
    assert session.scalars(select(Step.run_id)).all() == ["run-1", "run-1"]


def test_deleting_a_step_by_sql_takes_its_metrics_and_keeps_its_messages(session: Session) -> None:
    session.execute(text("DELETE FROM steps WHERE id = 'step-1'"))
    session.commit()
    check_without_step(session)


@pytest.mark.parametrize("loaded", [True, False])
def test_deleting_a_step_by_the_orm_takes_its_metrics_and_keeps_its_messages(session: Session, loaded: bool) -> None:
    step = session.get_one(Step, (TRACE, "step-1"))
    if loaded:
        assert step.metrics is not None
    session.delete(step)
    session.commit()
    check_without_step(session)


def check_without_step(session: Session) -> None:
    assert session.scalars(select(StepMetrics.id)).all() == ["step-2"]
    assert session.execute(select(Message.id, Message.step_id, Message.run_id).order_by(Message.id)).all() == [
        ("message-1", None, "run-1"),
        ("message-2", "step-2", "run-1"),
    ]


def test_the_sqlite_shell_which_checks_no_foreign_keys_takes_the_metrics_as_well(sqlite_url: str) -> None:
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    with Session(engine) as session:
        session.add(
            Step(trace_id=TRACE, id="s", span_id="a", status="success", created_at=BEGAN, metrics=StepMetrics())
        )
        session.commit()
    with engine.connect() as connection:
        connection.commit()
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("DELETE FROM steps")
        assert raw.execute("SELECT count(*) FROM step_metrics").fetchone() == (0,)
    engine.dispose()


@pytest.mark.parametrize("table", ["organizations", "providers"])
def test_an_organization_or_provider_in_use_cannot_be_deleted(session: Session, table: str) -> None:
    with pytest.raises(IntegrityError):
        session.execute(text(f"DELETE FROM {table}"))
    session.rollback()
    session.execute(text("DELETE FROM steps"))
    session.execute(text(f"DELETE FROM {table}"))


def test_only_metrics_organizations_and_providers_are_foreign_keys() -> None:
    """Facts arrive in any order, and a run may come after its steps."""
    keys = {
        (table.name, key.referred_table.name)
        for table in Base.metadata.tables.values()
        for key in table.foreign_key_constraints
    }
    assert keys == {("step_metrics", "steps"), ("steps", "organizations"), ("steps", "providers")}


def test_every_row_of_telemetry_is_keyed_on_its_trace() -> None:
    shared = {
        "audit",
        "encryption_keys",
        "maintenance",
        "organizations",
        "providers",
        "processes",
        "quarantine",
        "step_exporter_version",
    }
    for table in Base.metadata.tables.values():
        if table.name not in shared:
            assert next(iter(table.primary_key)).name == "trace_id", table.name
        assert not any(index.unique for index in table.indexes)


@pytest.mark.parametrize(
    ("model", "row"),
    [(Step, rows.StepRow), (StepMetrics, rows.StepMetricsRow), (Run, rows.RunRow), (Message, rows.MessageRow)],
)
def test_the_columns_are_the_fields_of_the_derived_rows_in_their_order(model: type[Base], row: type) -> None:
    columns = [column.name for column in model.__table__.columns if column.name != "updated_at"]
    assert columns == ["created_at" if field == "created_ns" else field for field in row.__struct_fields__]


def test_a_step_needs_no_more_than_its_key_its_state_and_its_start(session: Session) -> None:
    session.execute(
        text(
            "INSERT INTO steps (trace_id, id, span_id, status, created_at, updated_at)"
            " VALUES ('t', 's', 'a', 'pending', '2026-01-02 03:04:05', '2026-01-02 03:04:05')"
        )
    )
    step = session.get_one(Step, ("t", "s"))
    assert (step.prompt_tokens, step.completion_tokens, step.total_tokens) == (0, 0, 0)
    assert step.cached_input_tokens is None


# Values


def test_times_come_back_as_utc_to_the_microsecond(session: Session) -> None:
    elsewhere = BEGAN.astimezone(timezone(timedelta(hours=-7)))
    session.execute(update(Step).where(Step.id == "step-1").values(created_at=elsewhere))
    session.commit()
    step = session.get_one(Step, (TRACE, "step-1"))
    assert step.created_at == BEGAN
    assert step.created_at.tzinfo is UTC
    assert session.scalars(select(Step.id).where(Step.created_at <= BEGAN)).all() == ["step-1"]


def test_times_in_sqlite_are_text_that_sorts(sqlite_url: str) -> None:
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    with engine.begin() as connection:
        connection.execute(
            Quarantine.__table__.insert(), {"reason": "poison", "created_at": BEGAN.replace(microsecond=0)}
        )
        assert connection.scalar(text("SELECT created_at FROM quarantine")) == "2026-01-02 03:04:05.000000"
    engine.dispose()


def test_a_time_without_zone_is_refused(session: Session) -> None:
    session.add(Process(id="p", started_at=datetime(2026, 1, 2)))
    with pytest.raises(StatementError, match="no time zone"):
        session.flush()


@pytest.mark.parametrize(("ns", "expected"), [(0, 0), (999, 0), (1_700_000_000_123_456_789, 1_700_000_000_123_456)])
def test_nanoseconds_become_microseconds(ns: int, expected: int) -> None:
    assert (utc_datetime(ns) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) == expected


def test_the_largest_time_is_a_date() -> None:
    assert utc_datetime(2**63 - 1).year == 2262


@pytest.mark.parametrize(
    "value",
    [
        {"b": [1, 2.5, True, None], "a": {"y": "ü", "x": "nul \0 here"}},
        [],
        {},
        "text",
        "",
        0,
        False,
        ["tag", "tag"],
        2**70,
    ],
)
def test_json_comes_back_as_it_was(session: Session, value: object) -> None:
    session.execute(update(Step).values(error_data=value))
    session.commit()
    stored = session.scalars(select(Step.error_data)).first()
    assert (stored, type(stored)) == (value, type(value))
    assert session.scalar(select(text("error_data")).select_from(Step)) == canonical_json(value)
    assert session.scalars(select(Step.id).where(Step.error_data == value)).all() == ["step-1", "step-2"]


def test_json_none_is_null(session: Session) -> None:
    assert session.scalars(select(Step.id).where(Step.tags.is_(None)).order_by(Step.id)).all() == ["step-1", "step-2"]


def test_json_can_be_searched_as_text(session: Session) -> None:
    session.execute(update(Step).where(Step.id == "step-2").values(tags=["nightly", "eval"]))
    assert session.scalars(select(Step.id).where(Step.tags.like('%"eval"%'))).all() == ["step-2"]


def test_equal_json_is_equal_text() -> None:
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_epochs_differ_and_fit(session: Session) -> None:
    session.add_all([Trace(trace_id=str(number)) for number in range(20)])
    session.add(Trace(trace_id="largest", epoch=2**63 - 1, last_ns=2**63 - 1))
    session.commit()
    epochs = session.scalars(select(Trace.epoch)).all()
    assert len(set(epochs)) == 21
    assert max(epochs) == 2**63 - 1


def test_ids_sort_bytewise_on_both_engines(session: Session) -> None:
    """As in Python: PostgreSQL's own order would leave hyphens and case out."""
    ids = ["step-b", "step-B", "step_a", "stepa", "step-", "é"]
    session.execute(
        Span.__table__.insert().values(
            trace_id="t", span_id=bindparam("id"), name="", kind="", state="ended", status_code="", role=""
        ),
        [{"id": each} for each in ids],
    )
    assert session.scalars(select(Span.span_id).order_by(Span.span_id)).all() == sorted(ids)


# Views


def test_the_views_say_what_the_tables_hold(session: Session) -> None:
    steps = session.execute(text("SELECT id, model, step_ms, llm_request_ms FROM step_overview ORDER BY id")).all()
    assert steps == [("step-1", "gpt-4o", 2, 1.5), ("step-2", "gpt-4o", 2, 1.5)]
    runs = session.execute(text("SELECT id, failed_step_count, tool_call_count FROM run_overview")).all()
    assert runs == [("run-1", 1, 2)]
    usage = session.execute(text("SELECT model, step_count, failed_step_count, total_tokens FROM model_usage")).all()
    assert usage == [("gpt-4o", 2, 1, 220)]
    messages = session.execute(text("SELECT id, body FROM message_content ORDER BY id")).all()
    assert messages == [("message-1", '"What is the weather?"'), ("message-2", '"What is the weather?"')]


# Query plans


def test_deleting_does_not_walk_the_trace(sqlite_url: str) -> None:
    """Of the statements in the triggers, each finds its rows by the id, not by the trace alone."""
    engine = create_sync_engine(sqlite_url)
    ensure_schema(engine)
    with engine.begin() as connection:
        for trigger in connection.scalars(text("SELECT sql FROM sqlite_master WHERE type = 'trigger'")).all():
            for line in trigger.splitlines():
                if "WHERE" in line:
                    query = line.replace("OLD.trace_id", ":trace_id").replace("OLD.id", ":id").strip(" ;")
                    plan = connection.execute(text(f"EXPLAIN QUERY PLAN {query}"), {"trace_id": "t", "id": "x"}).all()
                    for row in plan:
                        assert re.search(r"\b(run_id|step_id|id)=\?", row.detail), (query, row.detail)
    engine.dispose()


# Documentation


def test_the_page_about_the_schema_is_up_to_date() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "make_schema.py"))["page"]()
    assert (docs / "schema.md").read_text(encoding="utf-8") == page, "run python docs/make_schema.py"
