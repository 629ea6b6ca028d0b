"""C: PostgreSQL goes, comes back, says no."""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from fault_apps import ended

import step_exporter.exporter as exporter_module
from step_exporter.exporter import StepSpanExporter
from step_exporter.processor import StepSpanProcessor
from step_exporter.store.schema import ensure_schema

KILL = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid()"""


def test_c1_connections_that_are_cut_in_the_middle_cost_nothing(postgres_url: str, assert_invariants: Any) -> None:
    processor = StepSpanProcessor(postgres_url, batch=20, interval_seconds=0.01)
    processor.on_end(ended(1))
    assert processor.flush(30).committed == 1
    done = threading.Event()
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            while not done.wait(0.05):
                cuts += len(admin.execute(KILL).fetchall())

    thread = threading.Thread(target=cut)
    thread.start()
    for number in range(2, 1002):
        processor.on_end(ended(number, trace_id=number % 7 + 1))
        if number % 100 == 0:
            processor.flush(0.2)
    done.set()
    thread.join(30)
    processor.shutdown(60)
    assert cuts > 0
    report = processor.flush()
    assert (report.committed + report.spooled, report.dropped) == (1001, {})
    assert_invariants(postgres_url, report, spans=1001)


def test_c2_a_commit_whose_answer_is_lost_is_repeated_without_effect(
    postgres_url: str, assert_invariants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step_exporter.store.ingest import Writer

    transact = Writer._transact
    lost = [1]

    def answer_is_lost(self: Writer, batch: Any) -> Any:
        result = transact(self, batch)
        if lost:
            lost.pop()
            raise ConnectionResetError("the answer to COMMIT never came")
        return result

    monkeypatch.setattr("step_exporter.store.ingest.is_passing", lambda error: isinstance(error, ConnectionResetError))
    monkeypatch.setattr(Writer, "_transact", answer_is_lost)
    exporter = StepSpanExporter(postgres_url)
    exporter.export([ended(number) for number in range(1, 101)])
    assert (exporter.stats().committed, exporter.stats().duplicates) == (100, 100)
    assert_invariants(postgres_url, exporter.stats(), spans=100, faults=0)
    exporter.shutdown()


def test_c4_writers_of_the_same_spans_in_any_order(postgres_url: str, assert_invariants: Any) -> None:
    from step_exporter.sdk import SpanConverter
    from step_exporter.store.engine import create_sync_engine
    from step_exporter.store.ingest import Writer

    raws = [SpanConverter()(ended(number, trace_id=number % 11 + 1)) for number in range(1, 201)]
    engines = [create_sync_engine(postgres_url) for _ in range(4)]
    ensure_schema(engines[0])
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            writer = Writer(engines[number])
            ordered = raws[number * 50 :] + raws[: number * 50]
            for at in range(0, 200, 20):
                writer.write(ordered[at : at + 20])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for engine in engines:
        engine.dispose()
    assert errors == []
    assert_invariants(postgres_url, spans=200)


def test_c7_no_connection_allowed_spools_and_recovers(
    postgres_server: Any, postgres_url: str, assert_invariants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter_module, "_PAUSE_S", 0.0)
    name = psycopg.conninfo.conninfo_to_dict(postgres_url)["dbname"]
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        exporter = StepSpanExporter(postgres_url)
        exporter.export([ended(number) for number in range(1, 11)])
        assert exporter.stats().spooled == 10
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    exporter.export([ended(99)])
    assert exporter.stats().committed == 11
    assert_invariants(postgres_url, exporter.stats(), spans=11, faults=1)
    exporter.shutdown()


def test_c9_a_wrong_address_names_no_password_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    exporter = StepSpanExporter(f"postgresql://user:{quote('hunter2')}@127.0.0.1:1/steps?connect_timeout=1")
    for number in range(1, 4):
        exporter.export([ended(number)])
    (line,) = [record.getMessage() for record in caplog.records]
    assert "127.0.0.1" in line
    assert "hunter2" not in caplog.text
    assert exporter.stats().spooled == 3
    exporter.shutdown()


def test_c11_time_zones_and_search_paths_change_nothing(postgres_url: str, assert_invariants: Any) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET timezone = 'Asia/Kathmandu'")
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET search_path = other, public")
    exporter = StepSpanExporter(postgres_url)
    exporter.export([ended(1, start_time=1_764_000_000_000_000_001, end_time=1_764_000_000_000_000_002)])
    exporter.shutdown()
    with psycopg.connect(postgres_url) as conn:
        assert conn.execute("SELECT start_ns, end_ns FROM spans").fetchall() == [
            (1_764_000_000_000_000_001, 1_764_000_000_000_000_002)
        ]
    assert_invariants(postgres_url, exporter.stats(), spans=1)
