"""The list of reasons for a drop is closed: the docs have it, and each is raised by a test here or beside its cause."""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from sdk_spans import LLM, ended
from step_exporter.cli.doctor import Finding, examine
from step_exporter.exporter import DropReason, StepSpanExporter
from step_exporter.processor import StepSpanProcessor, configure
from step_exporter.store import engine

ROOT = Path(__file__).parents[1]


def test_the_docs_name_all_of_them() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"^Reasons for a drop, all of them: (.*)$", page, re.MULTILINE)
    assert re.findall(r"`(\w+)`", said) == [reason.value for reason in DropReason]


def test_what_is_neither_written_nor_spooled_at_the_deadline_of_shutdown_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("step_exporter.processor._RESCUE", 50)

    def slowly(name: str, text: str) -> str:  # a redaction that costs 0.3 ms a text
        time.sleep(0.0003)
        return text

    provider = TracerProvider()
    processor = StepSpanProcessor(tmp_path / "steps.db", redact=slowly)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("app")
    for _ in range(1_500):
        tracer.start_span("chat", attributes=LLM).end()
    processor.shutdown(0.1)
    dropped = processor.stats().report.dropped
    assert dropped.keys() == {"deadline"}
    assert dropped["deadline"] > 0
    while processor.stats().report.pending:  # the batch that the writer was at
        time.sleep(0.05)
    assert processor.flush(0).seen == 1_500
    assert caplog.text.count("are dropped (deadline)") == 1
    provider.shutdown()


def examined(db: Path) -> Finding:
    [found] = [finding for finding in examine(str(db)) if finding.name == "seen"]
    return found


def test_a_queue_that_is_full_is_said_once_and_in_doctor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    db = tmp_path / "steps.db"
    provider = TracerProvider(shutdown_on_exit=False)
    processor = StepSpanProcessor(db, max_queue=5, interval_seconds=60)
    provider.add_span_processor(processor)
    for _ in range(50):
        provider.get_tracer("app").start_span("chat", attributes=LLM).end()
    report = processor.flush()
    assert (report.committed, report.dropped) == (5, {"queue_full": 45})
    told = {"seen": 50, "committed": 5, "spooled": 0, "dropped": {"queue_full": 45}, "unknown": 0}
    assert (examined(db).value, examined(db).is_well) == (told, False)
    provider.shutdown()
    assert examined(db).value == told
    [line] = [record.getMessage() for record in caplog.records]
    assert "are dropped (queue_full): more ended than are written" in line


def test_a_reason_that_is_new_is_in_doctor_by_the_next_batch(tmp_path: Path) -> None:
    db = tmp_path / "steps.db"
    exporter = StepSpanExporter(db)
    exporter.export([ended(span_id=1)])
    assert examined(db).is_well
    exporter.export([None])  # type: ignore[list-item]
    exporter.export([ended(span_id=2)])
    assert (examined(db).value["dropped"], examined(db).is_well) == ({"unreadable": 1}, False)
    exporter.shutdown()


def test_spans_that_end_after_shutdown_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for one in (StepSpanExporter(tmp_path / "a.db"), StepSpanProcessor(tmp_path / "b.db")):
        caplog.clear()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(one if isinstance(one, StepSpanProcessor) else SimpleSpanProcessor(one))
        provider.get_tracer("app").start_span("chat", attributes=LLM).end()
        one.shutdown()
        for _ in range(3):
            provider.get_tracer("app").start_span("chat", attributes=LLM).end()
        [line] = [record.getMessage() for record in caplog.records if record.name.startswith("step_exporter")]
        assert "are dropped (after_shutdown)" in line


def test_a_processor_that_another_one_follows_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    first = configure(tmp_path / "steps.db", provider=provider, on_sigterm=False)
    first.shutdown()
    second = configure(tmp_path / "steps.db", provider=provider, on_sigterm=False)
    provider.get_tracer("app").start_span("chat", attributes=LLM).end()
    assert second.shutdown().committed == 1
    assert caplog.text == ""


def soon_gives_up(exporter: StepSpanExporter) -> None:
    assert exporter._shared is not None
    exporter._shared.writer._patience_s = 0.1


@pytest.mark.parametrize("is_known", [True, False], ids=["written to before", "never reached"])
def test_an_exporter_that_leaves_just_after_a_fault_leaves_its_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.1)
    db = tmp_path / "steps.db"
    before = StepSpanExporter(db, spool="off")
    before.export([ended(span_id=1)])
    exporter = before
    if is_known:
        soon_gives_up(exporter)
    else:
        before.shutdown()
        exporter = StepSpanExporter(db, spool="off")
    with closing(sqlite3.connect(db, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert exporter.export([ended(span_id=2)]) is SpanExportResult.FAILURE
    exporter.shutdown()
    assert examined(db).value == {"seen": 2, "committed": 1, "spooled": 0, "dropped": {"database": 1}, "unknown": 0}


def test_a_database_that_is_locked_as_the_exporter_leaves_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "steps.db"
    exporter = StepSpanExporter(db, spool="off")
    exporter.export([ended(span_id=1)])
    with closing(sqlite3.connect(db, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with monkeypatch.context() as patch:
            patch.setattr(engine, "BUSY_TIMEOUT_S", 0.1)
            soon_gives_up(exporter)
            exporter.export([ended(span_id=2)])
        began = time.monotonic()
        exporter.shutdown()
        assert time.monotonic() - began < 1


def test_what_was_let_go_needs_no_account_and_makes_no_database(tmp_path: Path) -> None:
    exporter = StepSpanExporter(tmp_path / "steps.db")
    exporter.export([ended({}, name="GET /")])
    exporter.shutdown()
    assert exporter.stats().let_go == 1
    assert list(tmp_path.iterdir()) == []
