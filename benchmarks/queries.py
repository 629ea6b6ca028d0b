"""Reads of a large SQLite store: ours against the same query by raw sqlite3 on the same file.

    python -m benchmarks.queries                       # 100,000 steps, 300,000 spans
    python -m benchmarks.queries --steps 1000000       # the full size

Traces have ten steps, but for one run of 2,000; the last hour holds one step in a hundred. CPU time, in turns.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from benchmarks import harness
from step_exporter import StepStore
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.filters import StepFilter
from step_exporter.store.schema import ensure_schema

_NOW = datetime(2026, 11, 22, tzinfo=UTC)
_LONG_RUN = 2000
_LONG_TRACE = "f" * 32
_STEP = """INSERT INTO steps (trace_id, id, span_id, run_id, agent_id, agent_name, provider_name, model, status,
    prompt_tokens, completion_tokens, total_tokens, service_name, convention, created_at, updated_at)
    VALUES (?, ?, ?, ?, 'agent-7', 'researcher', 'openai', ?, 'success', 800, 120, 920, 'app', 'genai', ?, ?)"""
_METRICS = """INSERT INTO step_metrics (trace_id, id, run_id, agent_id, step_start_ns, llm_request_start_ns,
    llm_request_ns, tool_execution_ns, step_ns, llm_request_count, tool_call_count)
    VALUES (?, ?, ?, 'agent-7', ?, ?, ?, ?, ?, 1, 1)"""
_SPAN = """INSERT INTO spans (trace_id, span_id, name, kind, start_ns, end_ns, state, status_code, role, attributes)
    VALUES (?, ?, 'chat', 'client', ?, ?, 'ended', 'unset', 'llm', ?)"""
_TRACE = "INSERT INTO traces (trace_id, epoch, revision, changed_at) VALUES (?, 1, 1, ?)"
_ATTRIBUTES = '{"filler":"' + "x" * 200 + '"}'


def _text(at: datetime) -> str:
    return at.replace(tzinfo=None).isoformat(" ", "microseconds")


def _traces(steps: int) -> Iterator[tuple[str, int]]:
    """Ids, in order (inserting in order is fast), and how many steps each has."""
    for number in range((steps - _LONG_RUN) // 10):
        yield f"{number:08x}{random.Random(number).getrandbits(96):024x}", 10
    yield _LONG_TRACE, _LONG_RUN


def seed(path: Path, steps: int) -> None:
    """Fill a store by plain inserts."""
    engine = create_sync_engine(path)
    ensure_schema(engine)
    engine.dispose()
    chance = random.Random(1)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    for trace_id, count in _traces(steps):
        run_id = f"run-{trace_id}"
        begun = _NOW - timedelta(seconds=chance.uniform(0, 360_000))
        step_rows, metrics_rows, span_rows = [], [], []
        for number in range(count):
            at = begun + timedelta(seconds=number)
            ns = int(at.timestamp() * 1e9)
            id_, took = f"step-{trace_id[:24]}{number:08x}", chance.randrange(10**9)
            model = f"model-{chance.randrange(5)}"
            step_rows.append((trace_id, id_, f"{3 * number:016x}", run_id, model, _text(at), _text(at)))
            metrics_rows.append((trace_id, id_, run_id, ns, ns, took, took // 5, took * 2))
            span_rows += [(trace_id, f"{3 * number + k:016x}", ns, ns + took, _ATTRIBUTES) for k in range(3)]
        connection.execute(_TRACE, (trace_id, _text(_NOW)))
        connection.executemany(_STEP, step_rows)
        connection.executemany(_METRICS, metrics_rows)
        connection.executemany(_SPAN, span_rows)
    connection.commit()
    connection.execute("ANALYZE")
    connection.close()


_JOIN = "SELECT * FROM steps s LEFT JOIN step_metrics m ON m.trace_id = s.trace_id AND m.id = s.id"


def _raw_stats(connection: sqlite3.Connection, since: str) -> dict[str, tuple[int, int, int, int]]:
    """What ``stats`` answers, by hand: count and percentiles of the time of steps, by model."""
    times: dict[str, list[int]] = {}
    tokens: dict[str, int] = {}
    for model, took, total in connection.execute(
        "SELECT s.model, m.step_ns, s.total_tokens FROM steps s LEFT JOIN step_metrics m"
        " ON m.trace_id = s.trace_id AND m.id = s.id WHERE s.created_at >= ?",
        (since,),
    ):
        times.setdefault(model, []).append(took)
        tokens[model] = tokens.get(model, 0) + total
    answer: dict[str, tuple[int, int, int, int]] = {}
    for model, taken in times.items():
        taken.sort()
        p50, p95, p99 = (taken[-(-len(taken) * p // 100) - 1] for p in (50, 95, 99))
        answer[model] = (len(taken), p50, p95, p99)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=50, help="turns at least; as many as fit in two seconds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "steps.db"
        seed(path, arguments.steps)
        raw, before_both = sqlite3.connect(path), sqlite3.connect(path)
        trace_ids = [trace_id for trace_id, _ in _traces(arguments.steps)]
        chance = random.Random(2)
        hour = _NOW - timedelta(hours=1)
        newest = f"{_JOIN} WHERE s.run_id = ? ORDER BY s.created_at DESC, s.trace_id DESC, s.id DESC LIMIT 50"
        with StepStore(path) as store:

            def ours_of_trace(trace_id: str) -> int:
                return len(store.steps(StepFilter(trace_ids=[trace_id]), limit=1000).items)

            def ours_of_run(_: str) -> int:
                return len(store.steps(StepFilter(run_id=f"run-{_LONG_TRACE}"), limit=50).items)

            pairs: dict[str, tuple[Callable[[sqlite3.Connection, str], int], Callable[[str], int]]] = {
                "steps of a trace": (
                    lambda by, trace_id: len(by.execute(f"{_JOIN} WHERE s.trace_id = ?", (trace_id,)).fetchall()),
                    ours_of_trace,
                ),
                "last 50 of a run": (
                    lambda by, _: len(by.execute(newest, (f"run-{_LONG_TRACE}",)).fetchall()),
                    ours_of_run,
                ),
                "stats by model, last hour": (
                    lambda by, _: sum(group[0] for group in _raw_stats(by, _text(hour)).values()),
                    lambda _: sum(group.count for group in store.stats(["model"], StepFilter(started_after=hour))),
                ),
            }
            cells: dict[str, dict[str, str]] = {"raw sqlite3": {}, "StepStore": {}, "ratio": {}}
            for name, (by_sqlite3, by_us) in pairs.items():
                pair = (partial(by_sqlite3, raw), by_us)
                taken: tuple[list[float], list[float]] = ([], [])
                end = time.monotonic() + 2
                while len(taken[0]) < arguments.times + 3 or time.monotonic() < end:
                    trace_id = chance.choice(trace_ids[:-1])
                    by_sqlite3(before_both, trace_id)  # who comes first may have to read the disk: neither of the two
                    answers: list[int] = []
                    for query, times in zip(pair, taken, strict=True):
                        before = time.process_time()
                        answers.append(query(trace_id))
                        times.append((time.process_time() - before) * 1e6)
                    if answers[0] != answers[1]:
                        raise RuntimeError(f"{name}: {answers[0]} rows by sqlite3, {answers[1]} by the store")
                by_hand, by_store = (statistics.median(times[3:]) for times in taken)
                cells["raw sqlite3"][name] = f"{by_hand:,.0f} µs"
                cells["StepStore"][name] = f"{by_store:,.0f} µs"
                cells["ratio"][name] = f"{by_store / by_hand:.2f}"
        raw.close()
        before_both.close()
    print(f"{arguments.steps:,} steps, {3 * arguments.steps:,} spans\n")
    print(harness.table(cells))


if __name__ == "__main__":
    main()
