"""Ways to keep spans in SQLite, or to send them away. ``postgres.py`` has those on PostgreSQL."""

from __future__ import annotations

import http.server
import multiprocessing
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
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


TableRows = dict[str, list[tuple[Any, ...]]]
"""Rows by table."""
TableColumns = dict[str, tuple[list[str], list[str]]]
"""By table: the columns of its rows, and those of the primary key."""


def make_our_tables(url: str) -> None:
    """Our schema, in an empty database."""
    from step_exporter.store.engine import create_sync_engine
    from step_exporter.store.schema import ensure_schema

    engine = create_sync_engine(url)
    ensure_schema(engine)
    engine.dispose()


def export_all(url: str, batches: Sequence[Sequence[ReadableSpan]]) -> None:
    """Let our exporter write the batches."""
    from step_exporter import StepSpanExporter

    exporter = StepSpanExporter(url, record="all")
    for batch in batches:
        exporter.export(batch)
    exporter.shutdown()


def rows_of_ours(
    execute: Callable[[str], Any], batches: Sequence[Sequence[ReadableSpan]]
) -> tuple[list[TableRows], TableColumns]:
    """Every row that ``export_all`` left in a database, by the batch in which its trace is complete."""
    from step_exporter.models import Base

    complete = {f"{span.context.trace_id:032x}": n for n, batch in enumerate(batches) for span in batch}  # pyright: ignore
    rows: list[TableRows] = [{} for _ in batches]
    columns: TableColumns = {}
    for table in Base.metadata.sorted_tables:
        is_shared = table.name in ("organizations", "providers")
        if not is_shared and "trace_id" not in table.columns:
            continue
        names = [column.name for column in table.columns]
        found: list[tuple[Any, ...]] = execute(f"SELECT {', '.join(names)} FROM {table.name}").fetchall()
        if not found:
            continue
        known = [at for at in range(len(names)) if any(row[at] is not None for row in found)]
        columns[table.name] = [names[at] for at in known], [column.name for column in table.primary_key]
        at_trace = None if is_shared else names.index("trace_id")
        for row in found:
            number = 0 if at_trace is None else complete[row[at_trace]]
            rows[number].setdefault(table.name, []).append(tuple(row[at] for at in known))
    return rows, columns


class OurRows(_Local):
    """Hand-written sqlite3 that puts every row of ours, made beforehand, into our tables: nothing that keeps the same
    rows does less."""

    name = "raw sqlite3, all of our rows"

    def __init__(self, rows_of_ours: Callable[[], tuple[list[TableRows], TableColumns]]) -> None:
        self._rows_of_ours = rows_of_ours

    def open(self, directory: Path) -> None:
        self._rows, columns = self._rows_of_ours()
        self._inserts = {
            table: f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            for table, (names, _) in columns.items()
        }
        path = directory / "rows.db"
        make_our_tables(f"sqlite:///{path}")
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def write(self, number: int, batch: Sequence[ReadableSpan]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for table, rows in self._rows[number].items():
            self._connection.executemany(self._inserts[table], rows)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


def our_rows(batches: Sequence[Sequence[ReadableSpan]]) -> Callable[[], Contender]:
    """``OurRows`` of these batches, which are exported once it is opened."""

    @cache
    def rows() -> tuple[list[TableRows], TableColumns]:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "steps.db"
            export_all(f"sqlite:///{path}", batches)
            with closing(sqlite3.connect(path)) as connection:
                return rows_of_ours(connection.execute, batches)

    return lambda: OurRows(rows)


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


def available(batches: Sequence[Sequence[ReadableSpan]]) -> dict[str, Callable[[], Contender]]:
    """All contenders on this machine, for these batches, by name."""
    precomputed = [fold(batch) for batch in batches]
    makers: list[Callable[[], Contender]] = [
        lambda: raw_steps(precomputed),
        raw_spans,
        raw_folding,
        our_rows(batches),
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
