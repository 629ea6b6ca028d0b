"""Open spans of processes that are gone become abandoned; an end that comes late still wins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine

from step_exporter.facts import RawSpan
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.processes import Account, find_abandoned, heartbeat, register
from step_exporter.store.rebuild import verify
from step_exporter.store.schema import ensure_schema

LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
DONE = RawSpan("a" * 32, "b" * 16, None, "chat", start_ns=1, end_ns=9, attributes=LLM)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    yield engine
    engine.dispose()


def status(engine: Engine) -> object:
    with engine.begin() as conn:
        return conn.exec_driver_sql("SELECT status FROM steps").scalar_one()


def begin(engine: Engine) -> str:
    process = register(engine)
    Writer(engine).write([replace(DONE, ended=False, end_ns=None, process_id=process)])
    return process


def change(engine: Engine, sql: str) -> None:
    with engine.begin() as conn:
        conn.exec_driver_sql(f"UPDATE processes SET {sql}")


def test_a_process_that_lives_is_left_alone(engine: Engine) -> None:
    begin(engine)
    assert find_abandoned(engine) == 0
    assert status(engine) == "pending"


def test_one_that_said_it_ends(engine: Engine) -> None:
    heartbeat(engine, begin(engine), Account(1, 0, 0, {}), ended=True)
    assert find_abandoned(engine) == 1
    assert status(engine) == "abandoned"
    assert find_abandoned(engine) == 0
    Writer(engine).write([DONE])
    assert status(engine) == "success"
    assert list(verify(engine)) == []


def test_one_whose_pid_another_process_has_now(engine: Engine) -> None:
    begin(engine)
    change(engine, "pid_start = 1")
    assert find_abandoned(engine) == 1


def test_one_elsewhere_is_gone_when_it_is_silent(engine: Engine) -> None:
    begin(engine)
    change(engine, "host = 'elsewhere'")
    assert find_abandoned(engine) == 0
    change(engine, "heartbeat_at = '2020-01-01 00:00:00.000000'")
    assert find_abandoned(engine) == 1


def test_a_marker_of_logfire_becomes_the_open_span(engine: Engine) -> None:
    marker = RawSpan(
        "a" * 32,
        "c" * 16,
        "b" * 16,
        "chat (pending)",
        start_ns=1,
        end_ns=1,
        attributes={**LLM, "logfire.span_type": "pending_span", "logfire.pending_parent_id": "0" * 16},
    )
    writer = Writer(engine)
    writer.write([marker])
    assert status(engine) == "pending"
    writer.write([DONE])
    writer.write([marker])
    assert status(engine) == "success"
    with engine.begin() as conn:
        assert conn.exec_driver_sql("SELECT span_id, state FROM spans").fetchall() == [("b" * 16, "ended")]
