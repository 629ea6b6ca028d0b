"""E: threads, forks, loops and signals."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fault_apps import LLM, ended, rows, run
from opentelemetry.sdk.trace import TracerProvider

from step_exporter.processor import StepSpanProcessor, configure


def test_e1_a_fork_with_a_queue(db: Path, assert_invariants: Any) -> None:
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


def test_e1_a_fork_in_the_middle_of_a_write(database_url: str, assert_invariants: Any) -> None:
    """The child's copy of a half-done transaction is nobody's; the parent's goes on."""
    code, _, err = run(
        """
        from sqlalchemy import Engine, event
        inside = threading.Event()
        def wait(connection, cursor, statement, *rest):
            if statement.lstrip().startswith(("INSERT INTO spans", "COPY spans")) and not inside.is_set():
                inside.set()
                time.sleep(0.3)
        event.listen(Engine, "after_cursor_execute", wait)
        end(100)
        assert inside.wait(30)
        pid = os.fork()
        end(50)
        report = handle.shutdown(60)
        expected = 50 if pid == 0 else 150
        assert (report.committed, report.seen) == (expected, expected), report
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
        """,
        database_url,
    )
    assert (code, err) == (0, "")
    assert_invariants(database_url, spans=200)


WORKERS = """
import multiprocessing, os, sys, step_exporter
from opentelemetry import trace
LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
def work(number):
    step_exporter.configure(os.environ["DB"])
    for _ in range(50):
        trace.get_tracer("t").start_span("chat", attributes=LLM).end()
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    if sys.argv[1] == "fork":
        work(0)
    workers = [context.Process(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_e2_workers_of_multiprocessing_that_just_end(
    db: Path, tmp_path: Path, method: str, assert_invariants: Any
) -> None:
    """They end by ``os._exit``, past every atexit handler."""
    script = tmp_path / "app.py"
    script.write_text(WORKERS)
    subprocess.run(
        [sys.executable, "-W", "error", str(script), method], env={**os.environ, "DB": str(db)}, check=True, timeout=120
    )
    assert_invariants(db, spans=200 if method == "fork" else 150)


def test_e2_a_server_that_forks_its_workers_beforehand(db: Path, assert_invariants: Any) -> None:
    """As gunicorn with ``--preload``: configured in the master, workers end by ``sys.exit`` on SIGTERM."""
    code, _, err = run(
        """
        end(10)
        handle.flush(30)
        heard, say = os.pipe()
        workers = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
                end(100)
                os.write(say, b".")
                time.sleep(60)
            workers.append(pid)
        end(10)
        for pid in workers:
            os.read(heard, 1)
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        assert [os.waitpid(pid, 0)[1] for pid in workers] == [0, 0, 0]
        """,
        db,
    )
    assert (code, err) == (0, "")
    assert_invariants(db, spans=320)


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


@pytest.mark.parametrize("patched", ["first", "after configure", "after the first span"])
def test_e4_gevent(db: Path, tmp_path: Path, patched: str, assert_invariants: Any) -> None:
    pytest.importorskip("gevent")
    patch = "from gevent import monkey; monkey.patch_all()\n"
    code = (
        "end(10)\n" * (patched == "after the first span") + (patch if patched != "first" else "") + "import gevent\n"
        "gevent.joinall([gevent.spawn(end, 20) for _ in range(10)])\n"
        "assert handle.flush(30).committed >= 200\n"
        "end(10)\n"
        "report = handle.shutdown(30)\n"
        "assert (report.committed, report.pending, report.dropped) == (report.seen, 0, {}), report\n"
    )
    status, _, err = run(code, db, first=patch if patched == "first" else "")
    assert status == 0, err
    assert_invariants(db, spans=220 if patched == "after the first span" else 210)


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


def test_e7_an_async_generator_that_another_context_closes(
    db: Path, assert_invariants: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenTelemetry says that the context was another one; the step has ended all the same."""
    provider = TracerProvider(shutdown_on_exit=False)
    handle = configure(db, provider=provider, on_sigterm=False)

    async def answer() -> AsyncIterator[str]:
        with provider.get_tracer("t").start_as_current_span("chat", attributes=LLM):
            yield "a"
            yield "b"

    async def left_half_read() -> None:
        stream = answer()
        await asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]

    asyncio.run(left_half_read())
    assert "Failed to detach context" in caplog.text
    assert_invariants(db, handle.shutdown(), spans=1)
    assert rows(db, "SELECT state FROM spans") == [("ended",)]
    assert rows(db, "SELECT status FROM steps") == [("success",)]


def test_e8_a_second_interpreter_is_refused_by_name(db: Path, tmp_path: Path, assert_invariants: Any) -> None:
    """A compiled module that it needs goes into one interpreter of a process; that one's spans are none the worse."""
    script = tmp_path / "inner.py"
    script.write_text(
        "try:\n    import step_exporter.exporter\nexcept ImportError as error:\n    print(error, flush=True)\n"
    )
    code, out, err = run(
        """
        from pathlib import Path
        if sys.version_info < (3, 13):
            import _xxsubinterpreters as interpreters
            inner = interpreters.create(isolated=False)
        else:
            import _interpreters as interpreters
            inner = interpreters.create("legacy")
        interpreters.run_string(inner, Path(os.environ["INNER"]).read_text())
        interpreters.destroy(inner)
        end(100)
        """,
        db,
        INNER=str(script),
    )
    assert (code, err) == (0, "")
    assert "interpreter" in out
    assert_invariants(db, spans=100)


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


def test_e11_a_burst_in_an_app_that_makes_garbage_is_bounded_in_memory(db: Path, assert_invariants: Any) -> None:
    """As fast as the SDK can end spans, ten times what the queue holds."""
    code, out, err = run(
        """
        import resource
        from opentelemetry.sdk.trace import TracerProvider
        provider = TracerProvider(shutdown_on_exit=False)
        handle = step_exporter.configure(os.environ["DB"], provider=provider, max_queue=1_000)
        tracer = provider.get_tracer("burst")
        end(200)
        handle.flush(30)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(100):
            end(100)
            for _ in range(100):
                ring = ["x" * 1000]
                ring.append(ring)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        report = handle.shutdown(60)
        assert grown_kib < 100 * 1024, grown_kib
        assert (report.seen, report.pending, set(report.dropped) <= {"queue_full"}) == (10_200, 0, True), report
        print(report.committed)
        """,
        db,
    )
    assert code == 0, err
    assert ["are dropped (queue_full)" in line for line in err.splitlines()] in ([], [True])
    assert_invariants(db, spans=int(out))


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
