"""B: the disk and the file."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fault_apps import ended, start

from step_exporter.exporter import StepSpanExporter
from step_exporter.processor import StepSpanProcessor

as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def test_b1_a_full_database_spools_and_recovers(
    db: Path, no_pause: None, assert_invariants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = StepSpanExporter(db)
    exporter.export([ended(1)])
    shared = exporter._shared
    assert shared is not None
    with shared.engine.connect() as conn:  # SQLITE_FULL, as when the disk is
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
        conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    big = {"gen_ai.operation.name": "chat", "text": "x" * 50_000}
    exporter.export([ended(n, big) for n in range(2, 12)])
    assert exporter.stats().spooled == 10
    with shared.engine.connect() as conn:
        conn.exec_driver_sql("PRAGMA max_page_count = 1000000")
    exporter.export([ended(99)])
    assert exporter.stats().committed == 12
    assert_invariants(db, exporter.stats(), spans=12, faults=1)
    exporter.shutdown()


@as_root
def test_b3_read_only_file_spools(db: Path, no_pause: None, assert_invariants: Any) -> None:
    exporter = StepSpanExporter(db)
    exporter.export([ended(1)])
    exporter.shutdown()
    db.chmod(0o444)
    exporter = StepSpanExporter(db)
    exporter.export([ended(2)])
    assert exporter.stats().spooled == 1
    db.chmod(0o644)
    exporter.export([ended(3)])
    assert_invariants(db, exporter.stats(), spans=3, faults=1)
    exporter.shutdown()


@pytest.mark.parametrize("replaced", [False, True])
def test_b4_a_file_that_is_deleted_or_replaced_is_made_anew(
    db: Path, replaced: bool, assert_invariants: Any, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = StepSpanExporter(db)
    exporter.export([ended(1)])
    for path in db.parent.glob("steps.db*"):
        path.unlink()
    if replaced:
        sqlite3.connect(db).close()
        db.touch()
    exporter.export([ended(2)])
    assert "deleted or replaced" in caplog.text
    assert_invariants(db, exporter.stats(), spans=1)
    exporter.shutdown()


def test_b5_a_place_that_cannot_be_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "directory").mkdir()
    for place in (tmp_path / "no" / "steps.db", tmp_path / "directory"):
        caplog.clear()
        exporter = StepSpanExporter(place)
        for number in range(1, 4):
            exporter.export([ended(number)])
        (line,) = [record.getMessage() for record in caplog.records]
        assert str(place.parent) in line
        assert exporter.stats().spooled == 3
        exporter.shutdown()


def test_b6_a_file_that_is_no_database_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes, not a database\n" * 100)
    before = path.read_bytes()
    exporter = StepSpanExporter(path)
    exporter.export([ended()])
    exporter.shutdown()
    assert path.read_bytes() == before
    assert exporter.stats().spooled == 1


def test_b8_another_writer_that_holds_the_file_costs_nothing(
    db: Path, no_pause: None, assert_invariants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("step_exporter.store.engine.BUSY_TIMEOUT_S", 0.2)
    processor = StepSpanProcessor(db, interval_seconds=0.05)
    processor.on_end(ended(1))
    processor.flush(30)
    shared = processor._exporter._shared
    assert shared is not None
    shared.writer._patience_s = 0.3
    other = sqlite3.connect(db, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for number in range(2, 302):
        processor.on_end(ended(number))
    assert processor.flush(30).spooled == 300
    other.execute("COMMIT")
    other.close()
    processor.on_end(ended(999))
    processor.flush(30)
    processor.shutdown()
    assert_invariants(db, processor.flush(), spans=302)
    assert processor.flush().committed == 302


def test_b10_processes_share_a_file(db: Path, assert_invariants: Any) -> None:
    apps = [start("end(1000); sys.exit(handle.shutdown(60).committed != 1000)", db) for _ in range(4)]
    for app in apps:
        _, err = app.communicate(timeout=240)
        assert (app.returncode, err) == (0, "")
    assert_invariants(db, spans=4000)


def test_b14_two_exporters_on_one_file(db: Path, assert_invariants: Any) -> None:
    one, other = StepSpanExporter(db), StepSpanProcessor(db)
    for number in range(1, 101):
        one.export([ended(number)])
        other.on_end(ended(number))
    other.shutdown()
    one.shutdown()
    assert_invariants(db, one.stats(), spans=100)
