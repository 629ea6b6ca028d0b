"""The exporter behind real processors: spans become steps, the app never notices a fault, and the counts add up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from sdk_spans import AGENT, LLM, SECRET, adds_up, ended, fail_with, on_disk, provider_for, query, run_program
from step_exporter.exporter import StepSpanExporter
from step_exporter.facts import Scope
from step_exporter.processor import configure
from step_exporter.redaction import FAILED
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.load import load_spans


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "steps.db"


def run_agent(provider: TracerProvider, **attributes: Any) -> str:
    tracer = provider.get_tracer("tests", "1.0")
    with tracer.start_as_current_span("invoke_agent helper", attributes=AGENT) as span:
        with tracer.start_as_current_span("chat gpt-4o", kind=SpanKind.CLIENT, attributes={**LLM, **attributes}):
            pass
        return trace.format_trace_id(span.get_span_context().trace_id)


# --- spans become steps


@pytest.mark.parametrize("batch", [False, True])
def test_steps_are_stored_behind_either_processor(db: Path, batch: bool) -> None:
    exporter = StepSpanExporter(f"sqlite:///{db}")
    provider = provider_for(exporter, batch)
    trace_id = run_agent(provider)
    assert provider.force_flush()
    assert query(db, "SELECT trace_id, model, total_tokens, status FROM steps") == [(trace_id, "gpt-4o", 18, "success")]
    provider.shutdown()
    stats = exporter.stats()
    assert (stats.seen, stats.committed, stats.dropped) == (2, 2, {})


def test_on_postgresql_too(postgres_url: str) -> None:
    exporter = StepSpanExporter(postgres_url)
    provider = provider_for(exporter)
    run_agent(provider)
    assert exporter.stats().committed == 2
    provider.shutdown()


def test_everything_that_a_span_carries_is_stored(db: Path) -> None:
    exporter = StepSpanExporter(db, record="all")
    provider = provider_for(exporter)
    tracer = provider.get_tracer("tests", "1.0", schema_url="https://example.com/s", attributes={"a": "b"})
    remote = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("k", "v")]))
    parent = trace.set_span_in_context(trace.NonRecordingSpan(remote))
    link = Link(SpanContext(5, 6, is_remote=False, trace_state=TraceState([("x", "y")])), {"l": 1})
    with tracer.start_as_current_span("work", parent, SpanKind.CONSUMER, {"n": [1, 2]}, [link]) as span:
        span.add_event("happened", {"e": 1.5}, 1_764_000_000_000_000_001)
        span.set_status(Status(StatusCode.ERROR, "broken"))
    engine = create_sync_engine(db)
    with engine.connect() as conn:
        ((raw, _),) = [(found.raw, found.row) for found in load_spans(conn, f"{0xABC:032x}")]
    engine.dispose()
    provider.shutdown()
    assert (raw.name, raw.kind, raw.parent_span_id, raw.parent_is_remote) == ("work", "consumer", f"{0xDEF:016x}", True)
    assert (raw.status_code, raw.status_message, raw.attributes) == ("error", "broken", {"n": (1, 2)})
    assert (raw.start_ns, raw.end_ns) == (span.start_time, span.end_time)  # type: ignore[attr-defined]
    assert raw.trace_state == "k=v"
    assert [(e.name, e.time_ns, e.attributes) for e in raw.events] == [
        ("happened", 1_764_000_000_000_000_001, {"e": 1.5})
    ]
    assert [(found.trace_id, found.span_id, found.trace_state, found.attributes) for found in raw.links] == [
        (f"{5:032x}", f"{6:016x}", "x=y", {"l": 1})
    ]
    assert raw.scope == Scope("tests", "1.0", {"a": "b"}, "https://example.com/s")
    assert raw.resource.attributes["service.name"] == "app"


def test_spans_that_have_nothing_to_do_with_agents_leave_nothing_behind(db: Path) -> None:
    exporter = StepSpanExporter(db)
    provider = provider_for(exporter)
    tracer = provider.get_tracer("web")
    with tracer.start_as_current_span("GET /health"), tracer.start_as_current_span("SELECT"):
        pass
    run_agent(provider)
    stats = exporter.stats()
    assert (stats.seen, stats.committed, stats.let_go, stats.waiting) == (4, 2, 2, 0)
    assert query(db, "SELECT count(*) FROM spans") == [(2,)]
    provider.shutdown()


def test_an_agent_that_goes_on_after_its_request_was_accepted_keeps_its_caller_in_another_process(db: Path) -> None:
    caller, exporter = StepSpanExporter(db), StepSpanExporter(db)
    boss, worker = provider_for(caller), provider_for(exporter)
    named = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "boss"}
    with boss.get_tracer("tests").start_as_current_span("invoke_agent boss", attributes=named) as agent:
        here = agent.get_span_context()
        remote = trace.NonRecordingSpan(
            SpanContext(here.trace_id, here.span_id, is_remote=True, trace_flags=TraceFlags(1))
        )
        accepted = worker.get_tracer("web").start_span("POST /jobs", trace.set_span_in_context(remote), SpanKind.SERVER)
        accepted.end()
        assert exporter.stats().let_go == 1
        with trace.use_span(accepted):
            run_agent(worker)
    stats = exporter.stats()
    assert (stats.seen, stats.committed, stats.let_go, stats.waiting) == (3, 3, 0, 0)
    assert query(db, "SELECT agent_name FROM runs WHERE parent_run_id IS NOT NULL") == [("helper",)]
    boss.shutdown()
    worker.shutdown()


def test_what_waits_for_its_root_is_written_at_shutdown(db: Path) -> None:
    exporter = StepSpanExporter(db)
    provider = provider_for(exporter)
    tracer = provider.get_tracer("web")
    root = tracer.start_span("job")
    with trace.use_span(root), tracer.start_as_current_span("SELECT"):
        pass
    assert exporter.stats().waiting == 1
    provider.shutdown()
    assert query(db, "SELECT name FROM spans") == [("SELECT",)]
    assert exporter.stats().committed == 1


def test_record_all_keeps_every_span(db: Path) -> None:
    exporter = StepSpanExporter(db, record="all")
    provider = provider_for(exporter)
    with provider.get_tracer("web").start_as_current_span("GET /health"):
        pass
    provider.shutdown()
    assert query(db, "SELECT name FROM spans") == [("GET /health",)]


# --- what must not be stored


def test_content_off_leaves_no_byte_of_it_on_disk(db: Path) -> None:
    exporter = StepSpanExporter(db, content="off")
    fail_with(provider_for(exporter), SECRET)
    assert SECRET.encode() not in on_disk(db)
    assert query(db, "SELECT error_type, prompt_tokens FROM steps") == [("ValueError", 11)]
    exporter.shutdown()


def test_content_is_kept_by_default(db: Path) -> None:
    exporter = StepSpanExporter(db)
    fail_with(provider_for(exporter), SECRET)
    assert SECRET.encode() in on_disk(db)
    exporter.shutdown()


def test_redaction_happens_before_anything_is_written(db: Path) -> None:
    seen = set[str]()

    def redact(name: str, text: str) -> str:
        seen.add(name)
        return text.replace(SECRET, "[secret]")

    exporter = StepSpanExporter(db, redact=redact)
    fail_with(provider_for(exporter), SECRET)
    assert SECRET.encode() not in on_disk(db)
    assert b"[secret]" in on_disk(db)
    assert {"span.name", "status.message", "gen_ai.input.messages", "content", "exception.message"} <= seen
    exporter.shutdown()


def test_a_redaction_that_fails_stores_nothing_of_the_text(db: Path) -> None:
    exporter = StepSpanExporter(db, redact=lambda name, text: text if name.startswith("gen_ai.op") else 1 / 0)  # type: ignore[arg-type,return-value]
    fail_with(provider_for(exporter), SECRET)
    assert SECRET.encode() not in on_disk(db)
    assert query(db, "SELECT count(*) FROM spans") == [(1,)]
    exporter.shutdown()


@pytest.mark.parametrize("sampler", [sampling.DEFAULT_ON, sampling.ALWAYS_ON])
@pytest.mark.parametrize("kind", ["simple", "batch", "configure"])
def test_what_redaction_traces_is_not_stored_for_ever(db: Path, kind: str, sampler: sampling.Sampler) -> None:
    """A redaction that asks a service over traced HTTP makes a span for each text."""
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    tracer = provider.get_tracer("tests")
    calls: list[str] = []

    def redact(name: str, text: str) -> str:
        calls.append(name)
        with tracer.start_as_current_span("POST /analyze", attributes={**LLM, "engine": "spacy"}):
            return text

    if kind == "configure":
        configure(db, provider=provider, redact=redact, record="all", on_sigterm=False)
    else:
        exporter = StepSpanExporter(db, redact=redact, record="all")
        provider.add_span_processor((BatchSpanProcessor if kind == "batch" else SimpleSpanProcessor)(exporter))
    for _ in range(3):
        with tracer.start_as_current_span("chat", attributes=LLM):
            pass
    assert provider.force_flush()
    provider.shutdown()
    assert len(calls) > 3
    assert query(db, "SELECT name FROM spans") == [("chat",)] * 3


@pytest.mark.parametrize(
    ("redact", "why"),
    [
        (lambda name, text: 1 / 0, "ZeroDivisionError"),
        (lambda name, text: None, "it gave NoneType, no text"),
        (lambda text: text, "TypeError"),
    ],
)
def test_a_redaction_that_fails_on_everything_loses_no_span_and_is_said_once(
    db: Path, redact: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = StepSpanExporter(db, redact=redact)
    for _ in range(2):
        fail_with(provider_for(exporter), SECRET)
    assert exporter.stats().let_go == 0
    assert query(db, "SELECT DISTINCT name, flags FROM spans") == [(FAILED, '["redaction_failed"]')]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "redact failed" in line
    assert why in line
    assert SECRET not in line
    exporter.shutdown()


def test_redaction_is_given_bytes_names_of_events_and_scopes_and_ends_at_a_depth(db: Path) -> None:
    deep: Any = SECRET
    for _ in range(600):
        deep = {"a": deep}
    exporter = StepSpanExporter(db, redact=lambda name, text: text.replace(SECRET, "[secret]"))
    provider = provider_for(exporter)
    tracer = provider.get_tracer(f"scope {SECRET}", f"1.0+{SECRET}")
    with tracer.start_as_current_span("chat", attributes={**LLM, "raw": SECRET.encode()}) as span:
        span.add_event(f"event {SECRET}")
        span.set_attribute("deep", deep)
    for _ in range(3):
        provider.get_tracer("t").start_span("chat", attributes=LLM).end()
    provider.shutdown()
    assert exporter.stats().committed == 4
    assert SECRET.encode() not in on_disk(db)
    assert b64encode(SECRET.encode()) not in on_disk(db)
    assert b"event [secret]" in on_disk(db)
    assert b"scope [secret]" in on_disk(db)


# --- settings


def test_arguments_beat_the_environment_and_that_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, db: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_STEPS_URL", f"sqlite:///{tmp_path / 'env.db'}")
    monkeypatch.setenv("OTEL_EXPORTER_STEPS_RECORD", "all")
    for given, expected in (({}, "env.db"), ({"url": db}, "steps.db")):
        exporter = StepSpanExporter(**given)  # type: ignore[arg-type]
        assert exporter.export([ended({})]) is SpanExportResult.SUCCESS
        exporter.shutdown()
        assert query(tmp_path / expected, "SELECT count(*) FROM spans") == [(1,)]
    monkeypatch.delenv("OTEL_EXPORTER_STEPS_URL")
    (tmp_path / "steps.db").unlink()
    exporter = StepSpanExporter(record="steps")
    exporter.export([ended()])
    exporter.shutdown()
    assert query(tmp_path / "steps.db", "SELECT count(*) FROM spans") == [(1,)]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"url": "mysql://root:hunter2@localhost/steps"}, "mysql"),
        ({"url": "postgresql://root:hunter2@localhost:notaport/steps"}, "cannot be read"),
        ({"content": "maybe"}, "content is 'maybe'"),
        ({"record": "some"}, "record is 'some'"),
        ({"redact": "x"}, "redact must be"),
    ],
)
def test_a_bad_setting_is_one_clear_line_and_no_exception(
    given: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = StepSpanExporter(**given)
    for _ in range(3):
        assert exporter.export([ended()]) is SpanExportResult.FAILURE
    (line,) = [record.getMessage() for record in caplog.records]
    assert why in line
    assert "hunter2" not in caplog.text
    assert exporter.stats().dropped == {"configuration": 3}
    exporter.shutdown()


# --- faults


def test_making_one_connects_to_nothing(tmp_path: Path) -> None:
    StepSpanExporter(tmp_path / "no" / "such" / "directory" / "steps.db")
    StepSpanExporter("postgresql://nobody@127.0.0.1:1/none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("off", ["off", "False", False])
def test_no_spool_is_no_directory_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: str | bool
) -> None:
    monkeypatch.chdir(tmp_path)
    exporter = StepSpanExporter(tmp_path / "missing" / "steps.db", spool=off)
    exporter.export([ended()])
    exporter.shutdown()
    assert exporter.stats().dropped == {"database": 1}
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = StepSpanExporter(tmp_path / "missing" / "steps.db", spool="off")
    provider = provider_for(exporter)
    for _ in range(3):
        run_agent(provider)
    assert exporter.force_flush() is False
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path / "missing") in line
    assert exporter.stats().dropped == {"database": 6}
    assert adds_up(exporter.stats())
    provider.shutdown()


def test_g11_the_password_is_in_no_message(caplog: pytest.LogCaptureFixture) -> None:
    exporter = StepSpanExporter("postgresql://user:hunter2@127.0.0.1:1/steps?connect_timeout=1", spool="off")
    assert exporter.export([ended()]) is SpanExportResult.FAILURE
    assert "127.0.0.1" in caplog.text
    assert "hunter2" not in caplog.text
    exporter.shutdown()


def test_it_recovers_when_the_database_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import step_exporter.exporter as module

    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    exporter = StepSpanExporter(tmp_path / "later" / "steps.db", spool=False)
    assert exporter.export([ended()]) is SpanExportResult.FAILURE
    (tmp_path / "later").mkdir()
    assert exporter.export([ended(span_id=8)]) is SpanExportResult.SUCCESS
    assert exporter.force_flush() is False  # one was dropped since the last time
    assert exporter.force_flush() is True
    stats = exporter.stats()
    assert (stats.seen, stats.committed, stats.dropped) == (2, 1, {"database": 1})
    exporter.shutdown()


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, RecursionError, MemoryError])
def test_no_exception_of_any_kind_reaches_the_processor(
    db: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    from step_exporter.store.ingest import Writer

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Writer, "commit", fail)
    exporter = StepSpanExporter(db, spool="off")
    assert exporter.export([ended()]) is SpanExportResult.FAILURE
    assert exporter.stats().dropped == {"error": 1}
    exporter.shutdown()


class TimeLimitError(BaseException):
    """What a test runner's or a server's time limit raises in a signal handler."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TimeLimitError])
def test_the_apps_own_ctrl_c_passes_through_counted(
    db: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    from step_exporter.store.ingest import Writer

    def interrupt(*_: object) -> None:
        raise error

    exporter = StepSpanExporter(db)
    monkeypatch.setattr(Writer, "commit", interrupt)
    with pytest.raises(error):
        exporter.export([ended()])
    assert adds_up(exporter.stats())
    monkeypatch.undo()
    assert exporter.export([ended(span_id=8)]) is SpanExportResult.SUCCESS
    exporter.shutdown()


@contextlib.contextmanager
def ctrl_c_at(call: int) -> Iterator[None]:
    """Ctrl-C, which the app catches, at the n-th call of a function of SQLAlchemy's."""
    calls = itertools.count(1)

    def interrupt(frame: Any, event: str, arg: object) -> Any:
        if "sqlalchemy" in frame.f_code.co_filename and next(calls) == call:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        sys.setprofile(None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in the middle of connecting
def test_ctrl_c_at_any_moment_leaves_no_transaction_open(database_url: str) -> None:
    """An app that catches it and goes on, as a shell does: the next export finds the database unlocked, and so does
    the next process."""
    exporter = StepSpanExporter(database_url)
    exporter.export([ended()])
    for number in range(100, 130):
        with ctrl_c_at(23 * (number - 99)):
            exporter.export([ended(span_id=number)])
    assert exporter.export([ended(span_id=18)]) is SpanExportResult.SUCCESS
    other = StepSpanExporter(database_url)
    assert other.export([ended(span_id=19)]) is SpanExportResult.SUCCESS
    other.shutdown()
    exporter.shutdown()
    stats = exporter.stats()
    assert adds_up(stats)
    assert stats.spooled == 0
    assert stats.dropped.keys() <= {"error"}
    engine = create_sync_engine(database_url)
    with engine.begin() as conn:
        stored = conn.exec_driver_sql("SELECT count(*) FROM spans").scalar_one()
    engine.dispose()
    assert stored >= stats.committed + 1
    gc.collect()


def test_what_is_no_span_costs_its_neighbours_nothing(db: Path) -> None:
    exporter = StepSpanExporter(db)
    assert exporter.export([ended(), object(), ended(span_id=8)]) is SpanExportResult.FAILURE  # type: ignore[list-item]
    stats = exporter.stats()
    assert (stats.committed, stats.dropped) == (2, {"unreadable": 1})
    exporter.shutdown()


def test_bad_values_and_float_times_are_stored(db: Path) -> None:
    exporter = StepSpanExporter(db)
    spans = [
        ended({**LLM, "a\0": "\ud800", "n": float("nan"), "big": 2**80, "b": b"\0"}, 1, name="a\0b"),
        ended({**LLM, "nested": {"a": [object()]}}, 2, start_time=1e9, end_time=2e9),
        ended(LLM, 3, start_time=5, end_time=-1),
        ended(LLM, 4, start_time=None, end_time=None),
    ]
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert query(db, "SELECT start_ns, end_ns FROM spans ORDER BY span_id") == [
        (1_000, 2_000),
        (1_000_000_000, 2_000_000_000),
        (5, None),
        (None, None),
    ]
    exporter.shutdown()


# --- shutdown, flush, threads


def test_after_shutdown_spans_are_counted_and_refused(db: Path) -> None:
    exporter = StepSpanExporter(db)
    exporter.export([ended()])
    exporter.shutdown(timeout_millis=1000)
    exporter.shutdown()
    assert exporter.export([ended(span_id=8)]) is SpanExportResult.FAILURE
    assert exporter.stats().dropped == {"after_shutdown": 1}
    assert adds_up(exporter.stats())
    assert exporter.force_flush() is False


def test_shutdown_before_any_export_makes_no_file(db: Path) -> None:
    exporter = StepSpanExporter(db)
    assert exporter.force_flush() is True
    exporter.shutdown()
    assert not db.exists()


def test_shutdown_and_flush_keep_their_deadlines_while_an_export_hangs(
    db: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from step_exporter.store.ingest import Writer

    inside, go_on = threading.Event(), threading.Event()
    commit = Writer.commit

    def slow(self: Writer, *args: Any) -> Any:
        inside.set()
        go_on.wait(30)
        return commit(self, *args)

    monkeypatch.setattr(Writer, "commit", slow)
    exporter = StepSpanExporter(db)
    results: list[SpanExportResult] = []
    thread = threading.Thread(target=lambda: results.append(exporter.export([ended()])))
    thread.start()
    assert inside.wait(30)
    assert exporter.force_flush(10) is False
    exporter.shutdown(timeout_millis=10)
    assert "did not take all by the end of shutdown" in caplog.text
    go_on.set()
    thread.join(30)
    assert results == [SpanExportResult.SUCCESS]
    assert query(db, "SELECT count(*) FROM spans") == [(1,)]


def test_many_threads_lose_and_double_nothing(db: Path) -> None:
    exporter = StepSpanExporter(db)

    def work(number: int) -> None:
        for at in range(10):
            exporter.export([ended(span_id=1 + number * 100 + at)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert query(db, "SELECT count(*), count(DISTINCT span_id) FROM spans") == [(80, 80)]
    assert query(db, "SELECT count(*) FROM steps") == [(80,)]
    assert exporter.stats().committed == 80
    exporter.shutdown()


def test_a_span_that_a_signal_handler_ends_meanwhile_is_stored_after(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from step_exporter.store.ingest import Writer

    exporter = StepSpanExporter(db)
    commit = Writer.commit
    late = [ended(span_id=8)]

    def interrupted(self: Writer, *args: Any) -> Any:
        if late:
            exporter.export([late.pop()])  # as the handler does, on the thread that is in here
        return commit(self, *args)

    monkeypatch.setattr(Writer, "commit", interrupted)
    assert exporter.export([ended()]) is SpanExportResult.SUCCESS
    assert exporter.stats().committed == 2
    exporter.shutdown()


@pytest.mark.parametrize("asked", ["shutdown", "force_flush", "tend", "export_open"])
def test_a_signal_handler_may_ask_for_anything_in_the_middle_of_an_export(
    db: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """It has to return, as the export cannot go on before."""
    from step_exporter.store.ingest import Writer

    exporter = StepSpanExporter(db)
    exporter.export([ended({}, span_id=6, name="part of a tree that goes on", parent=ended(span_id=5).context)])
    inside = Writer._transact
    handler = [lambda: getattr(exporter, asked)(*([[ended(span_id=9)]] if asked == "export_open" else []))]
    answers: list[object] = []

    def interrupted(self: Writer, *args: Any) -> Any:
        if handler:
            answers.append(handler.pop()())
        return inside(self, *args)

    monkeypatch.setattr(Writer, "_transact", interrupted)
    assert exporter.export([ended()]) is SpanExportResult.SUCCESS
    assert answers in ([None], [False])
    if asked == "shutdown":  # the export has done it
        assert (exporter.stats().exporters, exporter.export([ended(span_id=8)])) == (0, SpanExportResult.FAILURE)
    exporter.shutdown()
    stats = exporter.stats()
    assert (stats.committed, stats.waiting) == (2, 0)
    assert adds_up(stats)
    assert query(db, "SELECT count(*) FROM spans WHERE state = 'ended'") == [(2,)]


def test_a_program_that_shuts_down_in_a_signal_handler_ends(db: Path) -> None:
    done = run_program(
        """
        import signal
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from step_exporter import StepSpanExporter
        exporter = StepSpanExporter("steps.db")
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("app")
        tracer.start_span("first", attributes={"gen_ai.operation.name": "chat"}).end()
        done = []
        def handler(*_):
            provider.shutdown()
            done.append(exporter.stats().seen)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        while not done:
            tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat"}).end()
        stats = exporter.stats()
        assert stats.seen == stats.committed + sum(stats.dropped.values()), stats
        assert set(stats.dropped) <= {"after_shutdown"} and stats.exporters == 0, stats
        """,
        db.parent,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_two_exporters_on_one_database_share_one_writer(db: Path) -> None:
    first, second = StepSpanExporter(db), StepSpanExporter(f"sqlite+aiosqlite:///{db}")
    for exporter in (first, second):
        assert exporter.export([ended()]) is SpanExportResult.SUCCESS
    assert first.stats().exporters == second.stats().exporters == 2
    assert second.stats().duplicates == 1
    first.shutdown()
    assert second.export([ended(span_id=8)]) is SpanExportResult.SUCCESS
    assert second.stats().exporters == 1
    second.shutdown()
    assert query(db, "SELECT count(*) FROM spans") == [(2,)]


def test_our_own_database_calls_are_not_traced(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from step_exporter.store.ingest import Writer

    seen: list[object] = []
    commit = Writer.commit

    def look(self: Writer, *args: Any) -> Any:
        seen.append(context.get_value(_SUPPRESS_INSTRUMENTATION_KEY))
        return commit(self, *args)

    monkeypatch.setattr(Writer, "commit", look)
    exporter = StepSpanExporter(db)
    exporter.export([ended()])
    assert seen == [True]
    assert context.get_value(_SUPPRESS_INSTRUMENTATION_KEY) is None
    exporter.shutdown()


def test_seeded_ids_collide_visibly_and_lose_nothing(db: Path) -> None:
    for seconds in (1, 2):
        random.seed(42)
        exporter = StepSpanExporter(db)
        provider = provider_for(exporter)
        tracer = provider.get_tracer("tests")
        with tracer.start_as_current_span("chat", attributes={**LLM, "run": seconds}):
            pass
        provider.shutdown()
    assert exporter.stats().collisions == 1
    assert query(db, "SELECT collisions FROM spans") == [(1,)]
    assert query(db, "SELECT reason FROM quarantine") == [("id_collision",)]


# --- processes


APP = """
import os, sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from step_exporter.exporter import StepSpanExporter
LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 5}
exporter = StepSpanExporter("sqlite:///steps.db")
provider = TracerProvider()
tracer = provider.get_tracer("app")
"""


@pytest.mark.parametrize("processor", ["BatchSpanProcessor", "SimpleSpanProcessor"])
def test_a_forked_child_writes_for_itself(db: Path, processor: str) -> None:
    done = run_program(
        APP
        + f"""
provider.add_span_processor({processor}(exporter))
with tracer.start_as_current_span("before", attributes=LLM):
    pass
provider.force_flush()
both = tracer.start_span("both", attributes=LLM)
pid = os.fork()
with tracer.start_as_current_span("child" if pid == 0 else "parent", attributes=LLM):
    pass
if pid:
    os.waitpid(pid, 0)
both.end()
provider.shutdown()
stats = exporter.stats()
assert stats.seen == stats.committed == (2 if pid == 0 else 3), stats
os._exit(0) if pid == 0 else None
""",
        db.parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(query(db, "SELECT name, collisions FROM spans")) == [
        ("before", 0),
        ("both", 1),
        ("child", 0),
        ("parent", 0),
    ]
    assert query(db, "PRAGMA integrity_check") == [("ok",)]


def test_the_end_of_the_program_flushes_and_prints_nothing(db: Path) -> None:
    done = run_program(
        APP
        + """
provider.add_span_processor(BatchSpanProcessor(exporter))
for _ in range(100):
    with tracer.start_as_current_span("chat", attributes=LLM):
        pass
""",
        db.parent,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert query(db, "SELECT count(*) FROM steps") == [(100,)]


def test_an_uncaught_exception_in_the_app_loses_nothing(db: Path) -> None:
    done = run_program(
        APP
        + """
provider.add_span_processor(BatchSpanProcessor(exporter))
with tracer.start_as_current_span("chat", attributes=LLM):
    raise SystemExit(3)
""",
        db.parent,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert query(db, "SELECT count(*) FROM steps") == [(1,)]


def test_logging_is_quiet_when_all_is_well(db: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    exporter = StepSpanExporter(db)
    run_agent(provider_for(exporter))
    exporter.shutdown()
    assert caplog.text == ""
