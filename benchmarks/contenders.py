"""Ways to keep spans in SQLite, or to send them away. ``postgres.py`` has those on PostgreSQL."""

from __future__ import annotations

import http.server
import multiprocessing
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import psutil
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter

from benchmarks.fold import METRICS_COLUMNS, STEP_COLUMNS, Rows, fold
from benchmarks.harness import Contender

BASE = "raw sqlite3, spans + steps"

_SPANS = """
CREATE TABLE spans (trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_span_id TEXT, name TEXT NOT NULL,
    start_ns INTEGER, end_ns INTEGER, status TEXT, attributes TEXT, PRIMARY KEY (trace_id, span_id));
"""
_STEPS = f"""
CREATE TABLE steps ({", ".join(STEP_COLUMNS)}, PRIMARY KEY (trace_id, id));
CREATE INDEX ix_steps_run_id ON steps (run_id, created_at);
CREATE INDEX ix_steps_created_at ON steps (created_at);
CREATE TABLE step_metrics ({", ".join(METRICS_COLUMNS)}, PRIMARY KEY (trace_id, id));
CREATE INDEX ix_step_metrics_run_id ON step_metrics (run_id);
"""
_INSERT_SPANS = "INSERT OR REPLACE INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_STEPS = f"INSERT OR REPLACE INTO steps VALUES ({', '.join('?' * len(STEP_COLUMNS))})"
_INSERT_METRICS = f"INSERT OR REPLACE INTO step_metrics VALUES ({', '.join('?' * len(METRICS_COLUMNS))})"


def span_rows(batch: Sequence[ReadableSpan]) -> list[tuple[Any, ...]]:
    """The least that keeps a span: ids, times, name, status, attributes as JSON."""
    rows: list[tuple[Any, ...]] = []
    for span in batch:
        context, parent = span.context, span.parent
        rows.append(
            (
                f"{context.trace_id:032x}",  # pyright: ignore
                f"{context.span_id:016x}",  # pyright: ignore
                f"{parent.span_id:016x}" if parent is not None else None,
                span.name,
                span.start_time,
                span.end_time,
                span.status.status_code.name,
                orjson.dumps(span.attributes.copy()).decode(),  # pyright: ignore
            )
        )
    return rows


class _Local:
    """Without a server."""

    def flush(self) -> None: ...

    def server_cpu(self) -> float:
        return 0.0


class RawSqlite(_Local):
    """Hand-written sqlite3, in WAL mode, one transaction for each batch."""

    def __init__(self, name: str, rows_of: Callable[[int, Sequence[ReadableSpan]], Rows] | None) -> None:
        self.name = name
        self._rows_of = rows_of

    def open(self, directory: Path) -> None:
        self._connection = sqlite3.connect(directory / "raw.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SPANS + (_STEPS if self._rows_of else ""))

    def write(self, number: int, batch: Sequence[ReadableSpan]) -> None:
        spans = span_rows(batch)
        rows = self._rows_of(number, batch) if self._rows_of else None
        execute, executemany = self._connection.execute, self._connection.executemany
        execute("BEGIN IMMEDIATE")
        executemany(_INSERT_SPANS, spans)
        if rows is not None:
            executemany(_INSERT_STEPS, rows.steps)
            executemany(_INSERT_METRICS, rows.metrics)
        execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


def raw_spans() -> Contender:
    return RawSqlite("raw sqlite3, spans only", None)


def raw_steps(precomputed: list[Rows]) -> Contender:
    return RawSqlite(BASE, lambda number, batch: precomputed[number])


def raw_folding() -> Contender:
    return RawSqlite("raw sqlite3, spans + steps folded in Python", lambda number, batch: fold(batch))


class Exporting(_Local):
    """An exporter of the SDK."""

    def __init__(self, name: str, make: Callable[[Path], SpanExporter]) -> None:
        self.name = name
        self._make = make

    def open(self, directory: Path) -> None:
        self._exporter = self._make(directory)

    def write(self, number: int, batch: Sequence[ReadableSpan]) -> None:
        if self._exporter.export(batch).name != "SUCCESS":
            raise RuntimeError(f"{self.name} failed")

    def flush(self) -> None:
        self._exporter.force_flush()

    def close(self) -> None:
        self._exporter.shutdown()


def google_adk() -> Contender:
    """Raises ``ImportError`` where google-adk is not installed."""
    from google.adk.telemetry.sqlite_span_exporter import SqliteSpanExporter  # pyright: ignore

    return Exporting("google-adk SqliteSpanExporter", lambda at: SqliteSpanExporter(db_path=str(at / "adk.db")))


def ours() -> Contender:
    from step_exporter import StepSpanExporter

    return Exporting("StepSpanExporter, SQLite", lambda at: StepSpanExporter(f"sqlite:///{at / 'steps.db'}"))


class OurProcessor(_Local):
    """Our processor, its thread included; each batch is flushed, so that its work falls into its own turn."""

    name = "StepSpanProcessor, SQLite"

    def open(self, directory: Path) -> None:
        self._begin(f"sqlite:///{directory / 'steps.db'}")

    def _begin(self, url: str) -> None:
        from step_exporter.processor import StepSpanProcessor

        self._processor = StepSpanProcessor(url)

    def write(self, number: int, batch: Sequence[ReadableSpan]) -> None:
        on_start, on_end = self._processor.on_start, self._processor.on_end
        for span in batch:
            on_start(span)  # pyright: ignore  # only its context is looked at
            on_end(span)
        if not self._processor.force_flush():
            raise RuntimeError(f"{self.name} failed")

    def close(self) -> None:
        self._processor.shutdown()


class _Discard(http.server.BaseHTTPRequestHandler):
    """Reads and forgets."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its name
        ...


def _serve(port: Any) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Discard)
    port.send(server.server_port)
    server.serve_forever()


class Otlp:
    """The OTLP/HTTP exporter, to a local process that reads and forgets: without a store, the least it can cost."""

    name = "OTLP/HTTP exporter to a server that discards"

    def open(self, directory: Path) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._server = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._server.start()
        self._process = psutil.Process(self._server.pid)
        self._exporter = OTLPSpanExporter(f"http://127.0.0.1:{ours.recv()}/v1/traces")

    def write(self, number: int, batch: Sequence[ReadableSpan]) -> None:
        if self._exporter.export(batch).name != "SUCCESS":
            raise RuntimeError("OTLP failed")

    def flush(self) -> None: ...

    def server_cpu(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def close(self) -> None:
        self._exporter.shutdown()
        self._server.terminate()
        self._server.join()


def available(precomputed: list[Rows]) -> dict[str, Callable[[], Contender]]:
    """All contenders on this machine, by name."""
    makers: list[Callable[[], Contender]] = [
        lambda: raw_steps(precomputed),
        raw_spans,
        raw_folding,
        google_adk,
        Otlp,
        ours,
        OurProcessor,
    ]
    found: dict[str, Callable[[], Contender]] = {}
    for make in makers:
        try:
            found[make().name] = make
        except ImportError as error:
            print(f"left out: {error}")
    return found
