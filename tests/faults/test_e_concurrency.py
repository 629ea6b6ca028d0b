"""E: threads, forks, loops and signals."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from fault_apps import LLM, ended, rows, run
from opentelemetry.sdk.trace import TracerProvider

from step_exporter.processor import StepSpanProcessor, configure


def test_e1_a_fork_with_a_queue_and_a_write_going_on(db: Path, assert_invariants: Any) -> None:
    code, _, err = run(
        """
        children = []
        for _ in range(2):
            end(200)
            pid = os.fork()
            if pid == 0:
                end(100)
                report = handle.shutdown(30)
                os._exit(0 if (report.committed, report.seen) == (100, 100) else 1)
            children.append(pid)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        assert statuses == [0, 0], statuses
        report = handle.shutdown(30)
        assert report.committed == 400, report
        """,
        db,
    )
    assert (code, err) == (0, "")
    assert_invariants(db, spans=600)


def test_e2_spawned_workers(db: Path, tmp_path: Path, assert_invariants: Any) -> None:
    script = tmp_path / "app.py"
    script.write_text(
        "import multiprocessing, os, step_exporter\n"
        "from opentelemetry import trace\n"
        f"LLM = {LLM!r}\n"
        "def work(n):\n"
        f"    handle = step_exporter.configure({str(db)!r})\n"
        "    for _ in range(50):\n"
        "        trace.get_tracer('t').start_span('chat', attributes=LLM).end()\n"
        "    return handle.flush(30).committed\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "        pool.map(work, range(4), chunksize=1)\n"
    )
    import subprocess
    import sys

    subprocess.run([sys.executable, str(script)], check=True, timeout=120)
    assert_invariants(db, spans=200)


def test_e3_two_hundred_threads(db: Path, assert_invariants: Any) -> None:
    processor = StepSpanProcessor(db)

    def work(number: int) -> None:
        for at in range(20):
            processor.on_end(ended(1 + number * 20 + at))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    processor.shutdown()
    assert_invariants(db, processor.flush(), spans=4000)


def test_e5_and_e6_loops_that_close_and_tasks_that_are_cancelled(db: Path, assert_invariants: Any) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    handle = configure(db, provider=provider, on_sigterm=False)
    tracer = provider.get_tracer("t")

    async def call() -> None:
        with tracer.start_as_current_span("chat", attributes=LLM):
            await asyncio.sleep(60)

    async def cancelled() -> None:
        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        handle.flush(30)

    for _ in range(2):
        asyncio.run(cancelled())
    assert_invariants(db, handle.shutdown(), spans=2)


def test_e9_a_signal_handler_that_ends_spans(db: Path, assert_invariants: Any) -> None:
    code, _, err = run(
        """
        def handler(number, frame):
            end(1)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        end(500)
        handle.flush(30)
        signal.setitimer(signal.ITIMER_REAL, 0)
        report = handle.shutdown(60)
        assert report.committed == report.seen > 500, report
        """,
        db,
    )
    assert (code, err) == (0, "")
    assert_invariants(db)


def test_e10_our_own_queries_are_not_traced(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry import context
    from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
    from sqlalchemy import Engine, event

    seen = set[object]()

    def look(*_: Any) -> None:
        seen.add(context.get_value(_SUPPRESS_INSTRUMENTATION_KEY))

    event.listen(Engine, "before_cursor_execute", look)
    try:
        provider = TracerProvider(shutdown_on_exit=False)
        handle = configure(db, provider=provider, on_sigterm=False)
        with provider.get_tracer("t").start_as_current_span("chat", attributes=LLM):
            threading.Event().wait(1.2)
        handle.shutdown()
    finally:
        event.remove(Engine, "before_cursor_execute", look)
    assert seen == {True}


def test_e11_a_burst_is_bounded_and_counted(db: Path, assert_invariants: Any) -> None:
    processor = StepSpanProcessor(db, max_queue=500)
    for number in range(1, 20_001):
        processor.on_end(ended(number))
    processor.shutdown(60)
    report = processor.flush()
    assert report.seen == 20_000
    assert set(report.dropped) <= {"queue_full"}
    assert_invariants(db, report, spans=report.committed)


def test_e12_a_clock_that_jumps_back(db: Path, assert_invariants: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    processor = StepSpanProcessor(db, interval_seconds=0.01)
    processor.on_end(ended(1))
    assert processor.flush(30).committed == 1
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    processor.on_end(ended(2))
    assert processor.flush(30).committed == 2
    processor.shutdown()
    assert rows(db, "SELECT start_ns, end_ns FROM spans") == [(1_000, 2_000)] * 2
    assert_invariants(db, processor.flush(), spans=2)
