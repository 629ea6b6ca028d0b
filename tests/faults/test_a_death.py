"""A: processes die, and shut down badly."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_apps import ended, rows, run, start

from step_exporter.exporter import StepSpanExporter
from step_exporter.processor import StepSpanProcessor
from step_exporter.spool import spool_directory, spool_files
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.schema import ensure_schema

pytestmark = pytest.mark.once


def test_a2_kill_9_loses_only_what_was_not_flushed(db: Path, assert_invariants: Any) -> None:
    code, out, _ = run(
        """
        end(500)
        print(handle.flush(30).committed, flush=True)
        end(100)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        db,
    )
    assert (code, out) == (-signal.SIGKILL, "500\n")
    assert_invariants(db)
    assert StepSpanExporter(db).export([ended()]).name == "SUCCESS"


def test_a3_kill_9_while_the_spool_is_written_loses_no_acknowledged_span(
    tmp_path: Path, assert_invariants: Any
) -> None:
    db = tmp_path / "later" / "steps.db"
    code, out, _ = run(
        """
        threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        while True:
            end(1)
            print(handle.flush(10).spooled, flush=True)
        """,
        db,
    )
    acknowledged = int(out.split()[-1])
    assert (code, acknowledged > 0) == (-signal.SIGKILL, True)
    db.parent.mkdir()
    exporter = StepSpanExporter(db)
    exporter.export([ended()])
    while exporter.tend():
        pass
    assert acknowledged <= exporter.stats().adopted <= acknowledged + 1
    assert_invariants(db, exporter.stats(), spans=exporter.stats().adopted + 1)
    exporter.shutdown()


def test_a4_two_processes_bring_one_spool_in_once(tmp_path: Path, assert_invariants: Any) -> None:
    db = tmp_path / "later" / "steps.db"
    dead = StepSpanExporter(db)
    dead.export([ended(n) for n in range(1, 2001)])
    dead.shutdown()
    db.parent.mkdir()
    both = [start("end(1); handle.flush(60); print(handle.stats().adopted)", db) for _ in range(2)]
    adopted = [int(process.communicate(timeout=120)[0]) for process in both]
    assert sorted(adopted) == [0, 2000]
    assert_invariants(db, spans=2002)


def test_a5_sigterm_drains_or_spools_and_ends_in_time(tmp_path: Path, assert_invariants: Any) -> None:
    for place in (tmp_path / "steps.db", tmp_path / "no" / "steps.db"):
        process = start("end(5000); print('ready', flush=True); time.sleep(60)", place)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGTERM
        assert time.monotonic() - began < 5 + 1 + 5  # the deadline, 1 s, and a slow machine
    assert_invariants(tmp_path / "steps.db", spans=5000)
    directory = spool_directory(tmp_path / "no" / "steps.db")
    assert directory is not None
    assert sum(file.facts or 0 for file in spool_files(directory)) == 5000


@pytest.fixture
def locked(db: Path) -> Iterator[Path]:
    """A database that another program does not let anybody write to, until the end of the test."""
    engine = create_sync_engine(db)
    ensure_schema(engine)
    engine.dispose()
    connection = sqlite3.connect(db, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield db
    connection.close()


def spooled_at(db: Path) -> int:
    directory = spool_directory(db)
    assert directory is not None
    return sum(file.facts or 0 for file in spool_files(directory))


@pytest.mark.parametrize(
    ("ending", "signals"),
    [
        ("time.sleep(60)", [signal.SIGTERM, signal.SIGTERM]),
        ("handle.shutdown(60)", [signal.SIGTERM]),
        ("handle.shutdown(60)", [signal.SIGINT]),
        ("handle.shutdown(60)", [signal.SIGTERM, signal.SIGINT]),
        ("", [signal.SIGTERM]),
        ("", [signal.SIGINT]),
        ("thread = threading.Thread(target=handle.shutdown); thread.start(); thread.join()", [signal.SIGTERM]),
    ],
)
def test_a5_a_signal_during_shutdown_loses_nothing(locked: Path, ending: str, signals: list[signal.Signals]) -> None:
    """Another SIGTERM, or Ctrl-C, while shutdown waits for a database: by hand, for a signal, or at the program's
    end."""
    process = start(
        f"""
        import step_exporter.processor
        step_exporter.processor.SIGTERM_S = 2
        end(3000)
        print('ready', flush=True)
        {ending}
        """,
        locked,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        time.sleep(0.5)
        process.send_signal(number)
    process.communicate(timeout=60)
    assert spooled_at(locked) == 3000
    if signal.SIGTERM in signals:
        assert process.returncode == -signal.SIGTERM


def test_a5_several_processors_keep_one_deadline(locked: Path) -> None:
    process = start(
        """
        from opentelemetry.sdk.trace import TracerProvider
        others = [step_exporter.configure(os.environ["DB"], provider=TracerProvider()) for _ in range(3)]
        for other in others:
            for _ in range(100):
                other.provider.get_tracer("app").start_span("chat", attributes=LLM).end()
        print('ready', flush=True)
        time.sleep(60)
        """,
        locked,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.terminate()
    process.communicate(timeout=60)
    assert time.monotonic() - began < 5 + 1 + 5  # the deadline, 1 s, and a slow machine
    assert (process.returncode, spooled_at(locked)) == (-signal.SIGTERM, 300)


def test_a5_a_full_queue_and_no_database_are_shut_down_in_time() -> None:
    """The next program brings the spans in; 100,000 of them in every case with STEP_EXPORTER_LONG=1."""
    long = ["--spans", "100000"]
    short = ["--spans", "2500", "--seconds", "1", "--only", "SQLite locked shutdown"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.shutdown", *(long if os.environ.get("STEP_EXPORTER_LONG") else short)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a6_ctrl_c_loses_nothing_and_shows_no_traceback_of_ours(db: Path, assert_invariants: Any) -> None:
    process = start("end(2000); print('ready', flush=True); time.sleep(60)", db)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert "step_exporter" not in err
    assert_invariants(db, spans=2000)


def test_a7_exits_of_every_kind(db: Path, assert_invariants: Any) -> None:
    for ending in ("sys.exit(3)", "raise ValueError"):
        _, _, err = run(f"end(100)\n{ending}", db)
        assert "step_exporter" not in err
    run("end(100); handle.flush(30); end(1); os._exit(0)", db)
    assert_invariants(db)
    assert rows(db, "SELECT count(*) FROM spans")[0][0] in (300, 301)  # the last one was not flushed


def test_a8_spans_that_end_while_the_interpreter_ends_are_stored(db: Path, assert_invariants: Any) -> None:
    code, out, err = run(
        """
        import atexit
        class Late:
            def __del__(self):
                end(1)
                handle.processor._exporter.export([])
        kept = Late()  # taken away with the module, after shutdown
        atexit.register(end, 20)
        end(1)
        """,
        db,
    )
    assert (code, out, err) == (0, "", "")
    assert_invariants(db, spans=21)


@pytest.mark.parametrize("away", [False, True])
def test_a8_where_no_thread_can_start_shutdown_writes_or_spools(
    tmp_path: Path, away: bool, assert_invariants: Any
) -> None:
    """As in atexit handlers since Python 3.12, and where a limit on threads is reached."""
    db = tmp_path / "later" / "steps.db"
    if not away:
        db.parent.mkdir()
    code, out, err = run(
        """
        def no_thread(self):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = no_thread
        end(300)
        report = handle.shutdown(30)
        print(report.committed, report.spooled, report.seen)
        """,
        db,
    )
    assert (code, out) == (0, "0 300 300\n" if away else "300 0 300\n")
    assert "Traceback" not in err
    db.parent.mkdir(exist_ok=True)
    exporter = StepSpanExporter(db)
    exporter.export([ended()])
    assert_invariants(db, exporter.stats(), spans=301)
    exporter.shutdown()


def test_a9_after_shutdown_is_counted(db: Path, assert_invariants: Any) -> None:
    processor = StepSpanProcessor(db)
    processor.on_end(ended())
    processor.shutdown()
    processor.on_end(ended(8))
    report = processor.flush()
    assert (report.committed, report.dropped) == (1, {"after_shutdown": 1})
    assert_invariants(db, report, spans=1)


def test_a10_shutdown_twice_and_from_two_threads(db: Path, assert_invariants: Any) -> None:
    processor = StepSpanProcessor(db)
    processor.on_end(ended())
    threads = [threading.Thread(target=processor.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    processor.shutdown()
    assert not any(thread.is_alive() for thread in threads)
    assert_invariants(db, processor.flush(), spans=1)


def test_a11_flush_says_that_the_database_is_down(tmp_path: Path) -> None:
    processor = StepSpanProcessor(tmp_path / "no" / "steps.db")
    processor.on_end(ended())
    assert processor.force_flush(5_000) is False
    assert processor.flush().spooled == 1
    processor.shutdown()


def test_a1_random_kills_lose_nothing_that_was_acknowledged() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "kills.py"
    kills = os.environ.get("STEP_EXPORTER_KILLS", "25")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", kills], capture_output=True, text=True, check=False, timeout=7200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 missing, 0 twice, 0 rows" in done.stdout
