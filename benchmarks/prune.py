"""A large store is pruned to half while four processes go on writing: how long each of them waits at most.

    python -m benchmarks.prune                                       # SQLite, 100,000 steps
    python -m benchmarks.prune --steps 1000000 --bytes 0             # the full size, without content
    python -m benchmarks.prune --postgresql --partitions 8

The store is filled with copies of one real trace (an agent of 10 steps, 20 spans, messages of 200 bytes), in the order
of time, with random trace ids. A writer exports one trace of 20 spans after the other, with a pause of 0.1 s; what is
measured is each export's wall time, lock and commit included: first for ten seconds without pruning, then during it.
Afterwards every span of the writers and every trace of the newer half must be there, and none of the older half.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from benchmarks import harness, workload
from step_exporter import StepSpanExporter, StepStore
from step_exporter.models import Base
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.schema import ensure_schema

WRITERS = 4
_STEPS = 10
_PAUSE_S = 0.1
_ALONE_S = 10.0
_DAYS = 100
_END = datetime.fromtimestamp(1_790_000_000 - 86_400, UTC)
"""The seeded traces end here; what the writers write is a day younger."""
_TABLES = ("traces", "resources", "contents", "spans", "runs", "steps", "step_metrics", "messages")
_IDS = {"id", "run_id", "step_id", "parent_id", "parent_step_id", "parent_run_id"}
_MOMENTS = {"start_ns", "end_ns", "first_ns", "last_ns", "step_start_ns", "llm_request_start_ns"}


def seed(engine: Engine, steps: int, message_bytes: int) -> None:
    """Fill a store with copies of one trace."""
    maker = workload.SpanMaker(0)
    maker.trace(_STEPS, message_bytes)
    exporter = StepSpanExporter(engine.url, spool="off")
    exporter.export(maker.take())
    exporter.shutdown()
    chance = random.Random(1)
    count = steps // _STEPS
    with engine.begin() as conn:
        if engine.dialect.name == "sqlite":
            conn.exec_driver_sql("PRAGMA cache_size = -2000000")
        template, last_ns = conn.execute(text("SELECT trace_id, last_ns FROM traces")).one()
        stamp = "TIMESTAMPTZ" if engine.dialect.name == "postgresql" else "TEXT"
        conn.execute(
            text(f"CREATE TABLE copies (trace_id TEXT, suffix TEXT, shift BIGINT, created_at {stamp}, number BIGINT)")
        )
        rows: list[dict[str, Any]] = []
        for number in range(count):
            at = _END - timedelta(days=_DAYS) * (1 - (number + 1) / count)
            created: Any = at if stamp == "TIMESTAMPTZ" else at.replace(tzinfo=None).isoformat(" ", "microseconds")
            shift = int(at.timestamp()) * 10**9 - last_ns
            id_ = f"{chance.getrandbits(128):032x}"
            rows.append({"t": id_, "s": f"-{number}", "d": shift, "c": created, "n": number})
        conn.execute(text("INSERT INTO copies VALUES (:t, :s, :d, :c, :n)"), rows)
        for name in _TABLES:
            _copy(conn, name, template)
        for name in reversed(_TABLES):
            conn.execute(text(f"DELETE FROM {name} WHERE trace_id = :template"), {"template": template})
        conn.execute(text("DROP TABLE copies"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("ANALYZE"))


def _copy(conn: Connection, name: str, template: str) -> None:
    columns = [column.name for column in Base.metadata.tables[name].columns]
    values = [
        "copies.trace_id"
        if column == "trace_id"
        else f"t.{column} || copies.suffix"
        if column in _IDS
        else f"t.{column} + copies.shift"
        if column in _MOMENTS
        else "copies.created_at"
        if column == "created_at"
        else f"t.{column}"
        for column in columns
    ]
    conn.execute(
        text(
            f"INSERT INTO {name} ({', '.join(columns)}) SELECT {', '.join(values)} FROM copies CROSS JOIN {name} t"
            " WHERE t.trace_id = :template ORDER BY copies.number"
        ),
        {"template": template},
    )


def write(url: str, number: int, message_bytes: int, stop: Event, answers: Any) -> None:
    """A writer's process: (when, how long) of each export, and how many spans it wrote, until it is told to stop."""
    maker = workload.SpanMaker(1000 + number)
    exporter = StepSpanExporter(url, spool="off")
    taken: list[tuple[float, float]] = []
    while not stop.is_set():
        maker.trace(_STEPS, message_bytes)
        spans = maker.take()
        before = time.time()
        exporter.export(spans)
        taken.append((before, time.time() - before))
        time.sleep(_PAUSE_S)
    stats = exporter.stats()
    exporter.shutdown()
    answers.put((number, taken, stats.seen, stats.committed))


@contextmanager
def _place(postgresql: bool, partitions: int | None) -> Generator[str]:
    if postgresql:
        from benchmarks.postgres import Server

        uri = Server().database()
        engine = create_sync_engine(uri)
        ensure_schema(engine, partitions)
        engine.dispose()
        yield uri
        return
    directory = Path(tempfile.mkdtemp(prefix="step-prune-"))
    try:
        yield str(directory / "steps.db")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _number(conn: Connection, query: str, **values: Any) -> int:
    return int(conn.execute(text(query), values).scalar_one() or 0)


def _size(url: str, conn: Connection) -> int:
    if conn.dialect.name == "sqlite":
        return Path(url).stat().st_size
    return sum(
        _number(conn, f"SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{name}')") for name in _TABLES
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=200, help="of each message")
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--partitions", type=int)
    arguments = parser.parse_args()
    with _place(arguments.postgresql, arguments.partitions) as url:
        engine = create_sync_engine(url)
        ensure_schema(engine, arguments.partitions)
        began = time.time()
        seed(engine, arguments.steps, arguments.bytes)
        with engine.connect() as conn:
            traces = _number(conn, "SELECT count(*) FROM traces")
            spans = _number(conn, "SELECT count(*) FROM spans")
            before_bytes = _size(url, conn)
        print(f"{arguments.steps:,} steps, {spans:,} spans, {before_bytes / 1e6:,.0f} MB, filled in", end=" ")
        print(f"{time.time() - began:.0f} s", flush=True)
        context = multiprocessing.get_context("spawn")
        stop, answers = context.Event(), context.Queue()
        told = (arguments.bytes, stop, answers)
        writers = [context.Process(target=write, args=(url, number, *told)) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        cutoff = _END - timedelta(days=_DAYS) / 2
        try:
            time.sleep(5)  # they import
            alone_from = time.time()
            time.sleep(_ALONE_S)
            began = time.time()
            with StepStore(url) as store:
                pruned = store.prune(older_than=cutoff)
            ended = time.time()
        finally:
            stop.set()
        results = sorted(answers.get() for _ in writers)
        for writer in writers:
            writer.join()
        print(f"pruned {pruned.traces:,} of {traces:,} traces in {ended - began:.0f} s\n")
        cells: dict[str, dict[str, str]] = {"exports": {}, "longest alone": {}, "99%": {}, "longest while pruning": {}}
        for number, taken, *_ in results:
            alone = [took for at, took in taken if alone_from <= at < began]
            during = sorted(took for at, took in taken if began <= at < ended)
            name = f"writer {number + 1}"
            cells["exports"][name] = f"{len(during):,}"
            cells["longest alone"][name] = f"{max(alone) * 1e3:,.0f} ms"
            cells["99%"][name] = f"{during[len(during) * 99 // 100] * 1e3:,.0f} ms"
            cells["longest while pruning"][name] = f"{max(during) * 1e3:,.0f} ms"
        print(harness.table(cells))
        with engine.connect() as conn:
            cutoff_ns = int(cutoff.timestamp()) * 10**9
            end_ns = int(_END.timestamp()) * 10**9 + 1
            older = _number(conn, "SELECT count(*) FROM traces WHERE last_ns < :ns", ns=cutoff_ns)
            newer = _number(
                conn, "SELECT count(*) FROM traces WHERE last_ns BETWEEN :ns AND :e", ns=cutoff_ns, e=end_ns
            )
            written = _number(conn, "SELECT count(*) FROM spans WHERE start_ns > :ns", ns=end_ns)
            after_bytes = _size(url, conn)
            if engine.dialect.name == "sqlite":
                print("\nquick_check:", conn.exec_driver_sql("PRAGMA quick_check").scalar_one())
        seen, committed = (sum(result[at] for result in results) for at in (2, 3))
        if older or newer + pruned.traces != traces or not seen == committed == written:
            raise RuntimeError(f"{older=} {newer=} {pruned=} {traces=} {seen=} {committed=} {written=}")
        print(f"{before_bytes / 1e6:,.0f} MB → {after_bytes / 1e6:,.0f} MB, with {written:,} spans of the writers")
        engine.dispose()


if __name__ == "__main__":
    main()
