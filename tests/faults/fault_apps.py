"""Programs to break, and the spans that they end."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

LLM = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.usage.input_tokens": 11,
    "gen_ai.usage.output_tokens": 7,
}

APP = """
import os, signal, sys, threading, time
import step_exporter
from opentelemetry import trace
LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 5}
handle = step_exporter.configure(os.environ["DB"])
tracer = trace.get_tracer("app")
def end(count):
    for _ in range(count):
        tracer.start_span("chat", attributes=LLM).end()
"""


class Ended(ReadableSpan):
    """A span as the SDK hands it on, with values that its API would not let through."""


def ended(span_id: int = 7, attributes: Any = None, trace_id: int = 0xABC, parent: int | None = None, **fields: Any):
    above = None if parent is None else SpanContext(trace_id, parent, is_remote=False, trace_flags=TraceFlags(1))
    return Ended(
        fields.pop("name", "chat"),
        context=SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(1)),
        parent=above,
        resource=Resource({}),
        attributes=LLM if attributes is None else attributes,
        start_time=fields.pop("start_time", 1_000),
        end_time=fields.pop("end_time", 2_000),
        **fields,
    )


def start(code: str, db: str | Path, first: str = "", **env: str) -> subprocess.Popen[str]:
    """Start a program that exports to a database. ``first``: code that comes before its imports."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", first + APP + textwrap.dedent(code)],
        env={**os.environ, "DB": str(db), **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, db: str | Path, first: str = "", **env: str) -> tuple[int, str, str]:
    """Run one to its end: its code, output and errors."""
    process = start(code, db, first, **env)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def rows(db: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a query of a SQLite file gives."""
    connection = sqlite3.connect(db)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()
