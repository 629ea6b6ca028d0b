"""Retention on a schedule: what is too old is deleted while the app runs, by one process at a time."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Engine, text

from step_exporter import StepSpanExporter, StepStore, configure, keeper
from step_exporter.errors import ConfigurationError
from step_exporter.keeper import EVERY_S, TASK, Keeper, Retention
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.maintenance import claim, prolong
from step_exporter.store.schema import ensure_schema

DAYS_NS = 86_400 * 10**9
AGENT = {"gen_ai.operation.name": "invoke_agent"}


def record(url: str, days_ago: float, count: int = 1) -> None:
    """Traces of an agent that ended so long ago."""
    provider = TracerProvider(shutdown_on_exit=False)
    handle = configure(url, provider=provider, spool="off", on_sigterm=False)
    for _ in range(count):
        at = time.time_ns() - round(days_ago * DAYS_NS)
        provider.get_tracer("app").start_span("agent", attributes=AGENT, start_time=at).end(at + 10**9)
    assert handle.flush().committed == count
    handle.shutdown()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def traces(engine: Engine) -> int:
    with engine.connect() as conn:
        return conn.execute(text("SELECT count(*) FROM traces")).scalar_one()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_FIRST_S", 0.01)


@pytest.mark.usefixtures("_soon")
def test_old_traces_go_while_the_app_runs(database_url: str, engine: Engine) -> None:
    record(database_url, days_ago=40, count=3)
    provider = TracerProvider(shutdown_on_exit=False)
    handle = configure(database_url, provider=provider, spool="off", on_sigterm=False, retention={"days": 30})
    provider.get_tracer("app").start_span("agent", attributes=AGENT).end()
    assert handle.flush().committed == 1
    wait_for(lambda: traces(engine) == 1)
    assert handle.shutdown().dropped == {}
    with StepStore(database_url) as store:
        assert store.verify() == []
        [entry] = store.audit()
        assert (entry.actor, entry.action) == ("step_exporter", "prune")


@pytest.mark.usefixtures("_soon")
def test_the_environment_says_how_long_and_how_much(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record(sqlite_url, days_ago=1, count=3)
    monkeypatch.setenv("OTEL_EXPORTER_STEPS_RETENTION_DAYS", "30")
    monkeypatch.setenv("OTEL_EXPORTER_STEPS_RETENTION_MAX_BYTES", "1kB")
    provider = TracerProvider(shutdown_on_exit=False)
    handle = configure(sqlite_url, provider=provider, spool="off", on_sigterm=False)
    provider.get_tracer("app").start_span("agent", attributes=AGENT).end()
    handle.flush()
    engine = create_sync_engine(sqlite_url)
    wait_for(lambda: traces(engine) == 0)  # no file is as small
    handle.shutdown()
    engine.dispose()


def test_a_task_is_for_one_process_at_a_time(engine: Engine) -> None:
    assert claim(engine, TASK, EVERY_S)
    assert not claim(engine, TASK, EVERY_S)
    assert claim(engine, "another", EVERY_S)
    prolong(engine, TASK, 0)
    assert claim(engine, TASK, EVERY_S)


def test_of_processes_that_ask_at_once_one_gets_the_task(engine: Engine, database_url: str) -> None:
    answers: list[bool] = []
    ready = threading.Barrier(4)

    def ask() -> None:
        own = create_sync_engine(database_url)
        ready.wait()
        answers.append(claim(own, TASK, EVERY_S))
        own.dispose()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False, False, False, True]


@pytest.mark.usefixtures("_soon")
def test_what_goes_wrong_is_said_and_tried_again(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "_LOOK_S", 0.01)
    engine = create_sync_engine(sqlite_url)
    one = Keeper(engine, "here", Retention(days=30))
    with caplog.at_level(logging.WARNING):
        one.start()
        wait_for(lambda: "could not prune here" in caplog.text)  # there are no tables
        ensure_schema(engine)
        wait_for(lambda: not claim(engine, TASK, EVERY_S))
    one.stop()
    engine.dispose()


def test_the_thread_ends_with_the_last_exporter(sqlite_url: str) -> None:
    first = StepSpanExporter(sqlite_url, retention=Retention(days=30))
    second = StepSpanExporter(sqlite_url, retention=Retention(days=7, max_bytes=10**9))
    provider = TracerProvider(shutdown_on_exit=False)
    span = provider.get_tracer("app").start_span("agent", attributes=AGENT)
    span.end()
    for exporter in (first, second):
        exporter.export([span])  # pyright: ignore[reportArgumentType]
    [thread] = [thread for thread in threading.enumerate() if thread.name == "step_exporter-retention"]
    assert thread.daemon
    first.shutdown()
    assert thread.is_alive()
    second.shutdown()
    assert not thread.is_alive()


def test_several_exporters_keep_to_the_strictest() -> None:
    assert Retention(days=30).stricter(Retention(days=7, max_bytes=5)) == Retention(7, 5)
    assert Retention(days=30).stricter(None) == Retention(30)


def test_without_settings_nothing_is_deleted(sqlite_url: str) -> None:
    assert Retention.of(None) is None
    record(sqlite_url, days_ago=4000)
    assert not [thread for thread in threading.enumerate() if thread.name == "step_exporter-retention"]


@pytest.mark.parametrize(
    "given",
    [{"days": 0}, {"days": "many"}, {"days": 10**12}, {"max_bytes": "big"}, {"max_bytes": -1}, {"years": 1}, 30],
    ids=str,
)
def test_a_retention_that_cannot_be_is_refused(given: object) -> None:
    with pytest.raises(ConfigurationError):
        Retention.of(given)  # pyright: ignore[reportArgumentType]


def test_a_variable_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_STEPS_RETENTION_DAYS", "x")
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_STEPS_RETENTION_DAYS is a number of days, not 'x'"):
        Retention.of(None)


def test_sizes_are_as_people_write_them() -> None:
    assert Retention.of({"max_bytes": "2GB", "days": "0.5"}) == Retention(0.5, 2 * 10**9)
    assert Retention.of(Retention(max_bytes=5)) == Retention(None, 5)


def test_the_file_shrinks_by_itself(sqlite_url: str, tmp_path: Path) -> None:
    record(sqlite_url, days_ago=40, count=400)
    path = tmp_path / "steps.db"
    before = path.stat().st_size
    engine = create_sync_engine(sqlite_url)
    one = Keeper(engine, "here", Retention(days=30))
    one._prune()
    assert path.stat().st_size < 0.7 * before
    engine.dispose()
    with sqlite3.connect(path) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    conn.close()
