"""Spans as the SDK hands them to exporters, what became of them, and programs that export."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from step_exporter.exporter import ExporterStats, StepSpanExporter

LLM = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.usage.input_tokens": 11,
    "gen_ai.usage.output_tokens": 7,
}
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"}
SECRET = "sk-very-secret"
SAID = '[{"role": "user", "parts": [{"type": "text", "content": "' + SECRET + '"}]}]'


def provider_for(exporter: StepSpanExporter, batch: bool = False) -> TracerProvider:
    provider = TracerProvider(resource=Resource.create({"service.name": "app"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter) if batch else SimpleSpanProcessor(exporter))
    return provider


def query(db: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(db)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def on_disk(db: Path) -> bytes:
    """Every byte of a SQLite database, its log included."""
    return b"".join(path.read_bytes() for path in sorted(db.parent.glob(db.name + "*")))


def adds_up(stats: ExporterStats) -> bool:
    kept = stats.committed + stats.spooled + stats.let_go + stats.waiting
    return stats.seen == kept + sum(stats.dropped.values())


class Ended(ReadableSpan):
    """A span as the SDK hands it on, with values that its API would not let through."""


def ended(attributes: Mapping[str, Any] | None = None, span_id: int = 7, **fields: Any) -> ReadableSpan:
    return Ended(
        fields.pop("name", "chat"),
        context=SpanContext(0xABC, span_id, is_remote=False, trace_flags=TraceFlags(1)),
        resource=Resource({}),
        attributes=LLM if attributes is None else attributes,
        start_time=fields.pop("start_time", 1_000),
        end_time=fields.pop("end_time", 2_000),
        **fields,
    )


def fail_with(provider: TracerProvider, secret: str) -> None:
    with provider.get_tracer("tests").start_as_current_span("chat", attributes=LLM) as span:
        span.set_attribute("gen_ai.input.messages", SAID)
        span.add_event("gen_ai.user.message", {"content": secret})
        error = ValueError(f"no such thing as {secret}")
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, str(error)))


def run_program(code: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, in a directory; every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=directory,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
