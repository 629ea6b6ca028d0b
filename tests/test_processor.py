"""``configure()`` and its processor: steps that are seen while they run, and a flush that tells the truth."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider, sampling

import step_exporter
from sdk_spans import AGENT, LLM, SECRET, ended, query, run_program
from step_exporter.processor import Handle, StepSpanProcessor, configure
from step_exporter.store.ingest import Writer


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "steps.db"


@pytest.fixture
def handle(db: Path) -> Iterator[Handle]:
    handle = configure(db, provider=TracerProvider(shutdown_on_exit=False), on_sigterm=False)
    yield handle
    handle.shutdown()


def tracer_of(handle: Handle) -> trace.Tracer:
    return handle.provider.get_tracer("tests")


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def states(db: Path) -> list[tuple[Any, ...]]:
    try:
        return query(db, "SELECT name, state FROM spans ORDER BY name")
    except sqlite3.OperationalError:  # no tables yet
        return []


# --- steps in flight


def test_a_step_is_seen_while_it_runs(db: Path, handle: Handle) -> None:
    tracer = tracer_of(handle)
    with tracer.start_as_current_span("agent", attributes=AGENT):
        with tracer.start_as_current_span("chat", attributes=LLM):
            until(lambda: states(db) == [("agent", "open"), ("chat", "open")])
            assert query(db, "SELECT status FROM steps") == [("pending",)]
            assert query(db, "SELECT status FROM runs") == [("running",)]
        assert handle.flush().committed == 1
        assert query(db, "SELECT status, total_tokens FROM steps") == [("success", 18)]
    report = handle.flush()
    assert (report.committed, report.dropped, report.pending, report.seen) == (2, {}, 0, 2)
    assert query(db, "SELECT status FROM runs") == [("completed",)]
    assert states(db) == [("agent", "ended"), ("chat", "ended")]
    assert handle.stats().collisions == 0


def test_a_role_that_is_set_late_is_read_from_the_live_span(db: Path, handle: Handle) -> None:
    tracer = tracer_of(handle)
    with tracer.start_as_current_span("agent", attributes=AGENT), tracer.start_as_current_span("work") as span:
        until(lambda: states(db) == [("agent", "open")])
        span.set_attributes(LLM)
        until(lambda: states(db) == [("agent", "open"), ("work", "open")])


def test_a_span_that_is_recorded_and_not_sampled_leaves_no_open_step(db: Path) -> None:
    class RecordOnly(sampling.Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> sampling.SamplingResult:
            return sampling.SamplingResult(sampling.Decision.RECORD_ONLY)

        def get_description(self) -> str:
            return "records, and samples nothing"

    provider = TracerProvider(sampler=RecordOnly(), shutdown_on_exit=False)
    handle = configure(db, provider=provider, on_sigterm=False)
    with tracer_of(handle).start_as_current_span("chat", attributes=LLM) as span:
        assert span.is_recording()
        assert handle.flush().seen == handle.stats().open == 0
    handle.shutdown()
    assert states(db) == []


def test_what_redaction_leaves_of_an_open_span_counts_nowhere(db: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    handle = configure(db, provider=provider, on_sigterm=False, redact=lambda name, text: "x")
    with tracer_of(handle).start_as_current_span("chat", attributes=LLM):
        handle.flush()
    report = handle.flush()
    assert (report.seen, report.let_go) == (1, 1)
    handle.shutdown()


def test_a_span_that_means_nothing_is_not_put_down(db: Path, handle: Handle) -> None:
    tracer = tracer_of(handle)
    with tracer.start_as_current_span("agent", attributes=AGENT), tracer.start_as_current_span("GET /"):
        until(lambda: states(db) == [("agent", "open")])
        time.sleep(0.6)
        assert states(db) == [("agent", "open")]


def test_the_process_is_put_down_and_says_when_it_ends(db: Path, handle: Handle) -> None:
    with tracer_of(handle).start_as_current_span("agent", attributes=AGENT):
        until(lambda: states(db) == [("agent", "open")])
    assert query(db, "SELECT pid, ended_at FROM processes") == [(os.getpid(), None)]
    handle.shutdown()
    assert query(db, "SELECT ended_at IS NULL, seen, committed, spooled, dropped FROM processes") == [
        (0, 1, 1, 0, "{}")
    ]


# --- truth about itself


def test_a_second_configure_changes_nothing(db: Path, handle: Handle) -> None:
    assert configure(db, provider=handle.provider).processor is handle.processor
    assert step_exporter.configure is configure


def test_a_second_configure_that_asks_for_something_else_says_that_it_is_not_done(
    db: Path, handle: Handle, caplog: pytest.LogCaptureFixture
) -> None:
    configure(db, provider=handle.provider)
    assert not caplog.records
    assert configure("other.db", provider=handle.provider, content="off").processor is handle.processor
    (line,) = [record.getMessage() for record in caplog.records]
    assert "not used: url, content." in line


@pytest.mark.parametrize("given", [{"batch": 0}, {"batch": -1}, {"interval_seconds": 0}, {"interval_seconds": -1.0}])
def test_a_setting_that_the_writer_cannot_work_with_is_said_and_nothing_is_lost(
    db: Path, given: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    processor = StepSpanProcessor(db, **given)
    processor.on_end(ended())
    assert processor.flush(30).committed == 1
    processor.shutdown()
    (line,) = [record.getMessage() for record in caplog.records]
    assert next(iter(given)) in line


def test_unsampled_spans_are_no_matter(handle: Handle) -> None:
    span = ended()
    span._context = trace.SpanContext(1, 2, is_remote=False)
    handle.processor.on_end(span)
    assert handle.flush().seen == 0


def test_a_full_queue_drops_and_counts(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    inside = threading.Event()
    commit = Writer.commit

    def slow(self: Writer, *args: Any) -> Any:
        inside.set()
        go_on.wait(30)
        return commit(self, *args)

    monkeypatch.setattr(Writer, "commit", slow)
    processor = StepSpanProcessor(db, max_queue=10, batch=1, interval_seconds=0.01)
    processor.on_end(ended(span_id=1))
    assert inside.wait(30)
    for number in range(2, 22):
        processor.on_end(ended(span_id=number))
    report = processor.flush(0.1)
    assert (report.dropped, report.pending, report.seen) == ({"queue_full": 10}, 11, 21)
    assert processor.force_flush(100) is False
    go_on.set()
    assert processor.flush(30) == (11, 0, {"queue_full": 10}, 0, 0)
    assert processor.force_flush() is True
    processor.shutdown()
    processor.on_end(ended(span_id=99))
    assert processor.flush().dropped == {"queue_full": 10, "after_shutdown": 1}


def test_the_queue_is_bounded_by_bytes_too(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = StepSpanProcessor(db, max_queue_bytes=1_000_000, interval_seconds=0.01)
    big = {**LLM, "text": "x" * 100_000}
    processor.on_end(ended(big, span_id=1))
    assert processor.flush().committed == 1
    monkeypatch.setattr(processor, "_wake", type(processor._wake)())  # the writer hears nothing
    monkeypatch.setattr(processor, "_interval_s", 60)
    time.sleep(0.1)
    for number in range(2, 102):
        processor.on_end(ended(big, span_id=number))
    assert processor.stats().queued <= 10
    assert processor.stats().report.dropped["queue_full"] >= 80
    processor.shutdown()


def test_shutdown_keeps_its_deadline_while_the_database_hangs(
    db: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, inside = threading.Event(), threading.Event()
    commit = Writer.commit

    def hang(self: Writer, *args: Any) -> Any:
        inside.set()
        go_on.wait(60)
        return commit(self, *args)

    monkeypatch.setattr(Writer, "commit", hang)
    processor = StepSpanProcessor(db, batch=10, interval_seconds=0.01)
    for number in range(1, 201):
        processor.on_end(ended(span_id=number))
    assert inside.wait(30)
    processor.shutdown(2)
    report = processor.flush()
    assert (report.spooled, report.dropped, report.seen) == (200, {}, 200)
    monkeypatch.setattr(Writer, "commit", commit)
    after = StepSpanProcessor(db, interval_seconds=0.01)
    after.on_end(ended(span_id=2000))
    until(lambda: after.stats().adopted == 200)
    go_on.set()
    after.shutdown()
    assert query(db, "SELECT count(*), count(DISTINCT span_id) FROM spans") == [(201, 201)]


def test_a_second_shutdown_hurries_the_first_and_waits_for_it(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, inside = threading.Event(), threading.Event()

    def hang(self: Writer, *args: Any) -> Any:
        inside.set()
        go_on.wait(60)
        raise OSError

    monkeypatch.setattr(Writer, "commit", hang)
    processor = StepSpanProcessor(db, batch=10, interval_seconds=0.01)
    for number in range(1, 201):
        processor.on_end(ended(span_id=number))
    assert inside.wait(30)
    first = threading.Thread(target=processor.shutdown, args=(600,))
    first.start()
    until(lambda: processor.is_closed)
    processor.shutdown(1)
    report = processor.flush(0)
    assert (report.spooled, report.dropped, report.seen) == (200, {}, 200)
    first.join(30)
    assert not first.is_alive()
    go_on.set()


def test_shutdown_from_two_threads_and_inside_a_span(handle: Handle) -> None:
    with tracer_of(handle).start_as_current_span("chat", attributes=LLM):
        threads = [threading.Thread(target=handle.shutdown) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert handle.flush().dropped == {"after_shutdown": 1}


def test_content_off_and_redaction_hold_for_open_spans(tmp_path: Path) -> None:
    path = tmp_path / "steps.db"
    provider = TracerProvider(shutdown_on_exit=False)
    handle = configure(path, provider=provider, content="off", on_sigterm=False)
    said = {"gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "' + SECRET + '"}]}]'}
    with provider.get_tracer("t").start_as_current_span("chat", attributes={**LLM, **said}):
        until(lambda: states(path) == [("chat", "open")])
        assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    handle.shutdown()


# --- processes

APP = """
import os, signal, sys, threading, time
import step_exporter
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 5}
handle = step_exporter.configure("sqlite:///steps.db")
tracer = trace.get_tracer("app")
"""


def run_app(code: str, db: Path) -> subprocess.CompletedProcess[str]:
    return run_program(APP + textwrap.dedent(code), db.parent)


def test_the_end_of_the_program_loses_nothing_and_prints_nothing(db: Path) -> None:
    done = run_app("for _ in range(1000):\n    tracer.start_span('chat', attributes=LLM).end()", db)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert query(db, "SELECT count(*) FROM steps") == [(1000,)]


def test_sigterm_loses_nothing_and_still_ends_the_process(db: Path) -> None:
    done = run_app(
        """
        for _ in range(1000):
            tracer.start_span('chat', attributes=LLM).end()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        """,
        db,
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert query(db, "SELECT count(*) FROM steps") == [(1000,)]


def test_a_forked_child_writes_for_itself(db: Path) -> None:
    done = run_app(
        """
        tracer.start_span("before", attributes=LLM).end()
        open_span = tracer.start_span("open", attributes=LLM)
        time.sleep(0.8)
        tracer.start_span("queued", attributes=LLM).end()
        pid = os.fork()
        tracer.start_span("child" if pid == 0 else "parent", attributes=LLM).end()
        report = handle.flush(30)
        assert report.seen == report.committed == (1 if pid == 0 else 3), report
        if pid == 0:
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        open_span.end()
        handle.shutdown()
        """,
        db,
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = [name for (name,) in query(db, "SELECT name FROM spans ORDER BY name")]
    assert names == ["before", "child", "open", "parent", "queued"]
    assert query(db, "SELECT sum(collisions) FROM spans") == [(0,)]


def test_what_a_killed_process_left_open_is_abandoned(db: Path) -> None:
    done = run_app(
        """
        span = tracer.start_span("chat", attributes=LLM)
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        db,
    )
    assert done.returncode == -signal.SIGKILL
    assert query(db, "SELECT status FROM steps") == [("pending",)]
    handle = configure(db, provider=TracerProvider(shutdown_on_exit=False), on_sigterm=False)
    tracer_of(handle).start_span("next", attributes=LLM).end()
    handle.shutdown()
    assert query(db, "SELECT status FROM steps ORDER BY created_at") == [("abandoned",), ("success",)]
    assert query(
        db, "SELECT json_extract(attributes, '$.\"step_exporter.abandoned\"') FROM spans WHERE state='open'"
    ) == [("not_running",)]


def test_zero_code_is_gated_by_an_environment_variable(tmp_path: Path) -> None:
    code = """
        from opentelemetry import trace
        from step_exporter.processor import post_instrument
        post_instrument()
        print(type(trace.get_tracer_provider()).__name__)
    """
    for value, expected in (("", "ProxyTracerProvider"), ("true", "TracerProvider")):
        done = run_program(code, tmp_path, OTEL_EXPORTER_STEPS_PENDING=value)
        assert done.stdout.strip() == expected
