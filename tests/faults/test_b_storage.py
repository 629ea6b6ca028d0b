"""B: the disk and the file."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fault_apps import LLM, ended, rows, start

from step_exporter.cli import main
from step_exporter.errors import DatabaseError
from step_exporter.exporter import StepSpanExporter
from step_exporter.processor import StepSpanProcessor
from step_exporter.spool import spool_directory, spool_files
from step_exporter.store import sqlite
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.query import StepStore


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


def filled(db: Path, traces: int = 20) -> StepSpanExporter:
    exporter = StepSpanExporter(db)
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
    for trace in range(1, traces + 1):
        at = {"trace_id": trace, "start_time": trace * 10**9, "end_time": trace * 10**9 + 5}
        exporter.export(
            [ended(1, agent, **at), *(ended(n, {**LLM, "text": "x" * 2_000}, parent=1, **at) for n in range(2, 11))]
        )
    return exporter


@pytest.mark.parametrize("seed", range(4))
def test_b6_a_damaged_file_is_named_and_never_replaced(db: Path, no_pause: None, seed: int, capsys: Any) -> None:
    """Of every third page 64 bytes are another's; or half of the file is missing."""
    filled(db).shutdown()
    rng = random.Random(seed)
    body = bytearray(db.read_bytes())
    if seed == 0:
        del body[len(body) // 2 // 4096 * 4096 :]
    else:
        for page in range(4096 * (seed % 3), len(body), 3 * 4096):
            at = page + rng.choice([0, rng.randrange(4000)])
            body[at : at + 64] = rng.randbytes(64)
    db.write_bytes(body)
    exporter = StepSpanExporter(db)
    for number in range(1, 6):
        exporter.export([ended(number, trace_id=1), ended(number, trace_id=1000 + number)])
    stats = exporter.stats()
    exporter.shutdown()
    assert stats.seen == 10 == stats.committed + stats.spooled
    assert main(["doctor", "--db", str(db)]) == 1
    said = capsys.readouterr()
    assert any(words in said.err + said.out for words in ("not a SQLite database", "is damaged", "integrity"))
    assert db.stat().st_size >= len(body)
    db.rename(db.with_name("damaged.db"))  # what its owner decides
    exporter = StepSpanExporter(db)
    exporter.export([ended(99, trace_id=99)])
    assert exporter.stats().adopted == stats.spooled
    exporter.shutdown()


def test_b7_a_network_file_system_has_no_write_ahead_log(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_invariants: Any, caplog: pytest.LogCaptureFixture
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"27 1 254:0 / / rw - ext4 /dev/vda rw\n40 27 0:42 / {tmp_path} rw - nfs4 server:/export rw\n")
    monkeypatch.setattr(sqlite, "_MOUNTINFO", mounts)
    for number in (1, 2):
        exporter = StepSpanExporter(db)
        exporter.export([ended(number)])
        assert not db.with_name("steps.db-wal").exists()
        exporter.shutdown()
    assert caplog.text.count(f"{db} is on nfs4") == 1
    assert rows(db, "PRAGMA journal_mode") == [("delete",)]
    assert_invariants(db, exporter.stats(), spans=2)
    mounts.write_text(mounts.read_text().replace("nfs4", "xfs"))  # on a local disk again
    exporter = StepSpanExporter(db)
    exporter.export([ended(3)])
    exporter.shutdown()
    assert rows(db, "PRAGMA journal_mode") == [("wal",)]
    assert_invariants(db, exporter.stats())


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc/steps.db", "ext4"),
        ("/home/me/steps.db", "nfs"),
        ("/home/me/my disk/a/steps.db", "xfs"),
        ("/home/media/steps.db", "ext4"),
        ("/srv/steps.db", "cifs"),
    ],
)
def test_b7_the_file_system_of_a_path(path: str, kind: str) -> None:
    mounts = """\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:30 / /home/me rw - nfs server:/home/me rw
31 30 0:31 / /home/me/my\\040disk rw - xfs /dev/vdb rw
32 27 0:32 / /srv rw - ext4 /dev/vdc rw
33 32 0:33 / /srv rw master:2 propagate_from:1 - cifs //server/share rw
"""
    assert sqlite.filesystem(Path(path), mounts) == kind
    assert sqlite.filesystem(Path(path), "") is None


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
    """Four of 1,000 spans; 32 of 10,000 with STEP_EXPORTER_LONG=1. A batch that waits for more than 10 s, as some of
    32 do, is spooled, which is said; the next program brings it in."""
    processes, spans = (32, 10_000) if os.environ.get("STEP_EXPORTER_LONG") else (4, 1_000)
    code = f"""
    for _ in range({spans // 100}):
        with tracer.start_as_current_span("agent", attributes={{"gen_ai.operation.name": "invoke_agent"}}):
            end(99)
    report = handle.flush(1_800)
    sys.exit(report.committed + report.spooled != {spans})
    """
    apps = [start(code, db) for _ in range(processes)]
    for app in apps:
        _, err = app.communicate(timeout=2_400)
        assert app.returncode == 0, err
        assert not err or (processes > 4 and " dropped" not in err.replace("(0 dropped", "")), err
    directory = spool_directory(db)
    assert directory is not None
    exporter = filled(db, 1)
    before = exporter.stats().committed
    while directory.is_dir() and any(file.facts for file in spool_files(directory)):
        exporter.tend()
    exporter.shutdown()
    assert_invariants(db, spans=processes * spans + before)


def test_b14_two_exporters_on_one_file(db: Path, assert_invariants: Any) -> None:
    one, other = StepSpanExporter(db), StepSpanProcessor(db)
    for number in range(1, 101):
        one.export([ended(number)])
        other.on_end(ended(number))
    other.shutdown()
    one.shutdown()
    assert_invariants(db, one.stats(), spans=100)


def test_b9_a_reader_that_does_not_end_is_named_and_its_log_is_cut(
    db: Path, monkeypatch: pytest.MonkeyPatch, assert_invariants: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sqlite, "WAL_LIMIT", 1_000_000)
    exporter = filled(db, 1)
    reader = sqlite3.connect(db, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM spans").fetchall()
    for number in range(100, 140):
        exporter.export([ended(number, {**LLM, "text": "x" * 200_000})])
    assert exporter.stats().committed == 50
    assert sqlite.wal_bytes(db) > 8_000_000
    assert main(["doctor", "--db", str(db)]) == 0
    assert "some program reads in one transaction that does not end" in " ".join(capsys.readouterr().out.split())
    reader.execute("COMMIT")
    reader.close()
    for number in range(140, 143):
        exporter.export([ended(number)])
    assert sqlite.wal_bytes(db) <= 1_000_000
    assert main(["doctor", "--db", str(db)]) == 0
    assert "some program" not in capsys.readouterr().out
    assert_invariants(db, exporter.stats(), spans=53)
    exporter.shutdown()


def test_b11_vacuum_backup_and_foreign_checkpoints_while_writing(
    db: Path, tmp_path: Path, assert_invariants: Any
) -> None:
    processor = StepSpanProcessor(db, interval_seconds=0.01)
    processor.on_end(ended(1))
    processor.flush(30)
    copies: list[Path] = []
    done = threading.Event()

    def meddle() -> None:
        other = sqlite3.connect(db, isolation_level=None, timeout=60)
        while not done.is_set() or len(copies) < 3:
            other.execute("VACUUM")
            copy = tmp_path / f"copy{len(copies)}.db"
            with contextlib.closing(sqlite3.connect(copy)) as target:
                other.backup(target, pages=20, sleep=0)
            copies.append(copy)
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # as Litestream does
        other.close()

    thread = threading.Thread(target=meddle)
    thread.start()
    for number in range(2, 302):
        processor.on_end(ended(number))
        if number % 20 == 0:
            processor.flush(60)
    done.set()
    thread.join(60)
    processor.shutdown(60)
    report = processor.flush()
    assert (report.committed, report.spooled) == (301, 0)
    assert_invariants(db, report, spans=301)
    for copy in copies[:3]:
        assert_invariants(copy)


def test_b12_nine_tenths_are_deleted_while_people_read(db: Path, assert_invariants: Any) -> None:
    exporter = filled(db, 100)
    before = sum(path.stat().st_size for path in db.parent.glob("steps.db*"))
    done = threading.Event()
    seen: list[int] = []

    def look() -> None:
        with StepStore(db) as store:
            while not done.is_set():
                seen.append(len(store.runs(limit=100)))

    thread = threading.Thread(target=look)
    thread.start()
    with StepStore(db) as store:
        pruned = store.prune(older_than=datetime.fromtimestamp(90.5, UTC))
    done.set()
    thread.join(30)
    exporter.export([ended(500)])
    exporter.shutdown()
    assert pruned.traces == 90
    assert seen[0] == 100
    assert seen == sorted(seen, reverse=True)
    assert db.stat().st_size < 0.3 * before
    assert_invariants(db, spans=101)


def test_b13_an_sqlite_that_is_too_old_is_named(
    db: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    exporter = StepSpanExporter(db, spool=False)
    exporter.export([ended()])
    assert exporter.stats().dropped == {"database": 1}
    exporter.shutdown()
    assert "SQLite is 3.34.1; step_exporter needs 3.35.0 or newer" in caplog.text
    assert not db.exists()


def test_b13_an_sqlite_without_json_says_what_it_lacks(db: Path) -> None:
    engine = create_sync_engine(db)
    with engine.connect() as conn, pytest.raises(DatabaseError, match="without its JSON functions"):
        conn.exec_driver_sql("SELECT json_of_no_sqlite('[]')")
    engine.dispose()


def test_a_provider_that_somebody_deleted_is_there_again_with_its_next_step(db: Path, assert_invariants: Any) -> None:
    exporter = StepSpanExporter(db)
    exporter.export([ended(1, LLM, trace_id=1)])
    with contextlib.closing(sqlite3.connect(db)) as other:
        other.execute("DELETE FROM steps")
        assert other.execute("DELETE FROM providers").rowcount == 1
        other.execute("DELETE FROM spans")
        other.execute("DELETE FROM traces")
        other.commit()
    exporter.export([ended(2, LLM, trace_id=2)])
    assert rows(db, "SELECT p.name FROM steps s JOIN providers p ON p.id = s.provider_id") == [("openai",)]
    assert_invariants(db, exporter.stats())
    exporter.shutdown()
