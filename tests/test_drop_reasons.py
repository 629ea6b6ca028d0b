"""The list of reasons for a drop is closed: the docs have it, and each is raised by a test here or beside its cause."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from step_exporter.exporter import DropReason
from step_exporter.processor import StepSpanProcessor

ROOT = Path(__file__).parents[1]
LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.provider.name": "p"}


def test_the_docs_name_all_of_them() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"^Reasons for a drop, all of them: (.*)$", page, re.MULTILINE)
    assert re.findall(r"`(\w+)`", said) == [reason.value for reason in DropReason]


def test_what_is_neither_written_nor_spooled_at_the_deadline_of_shutdown_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    provider.shutdown()
