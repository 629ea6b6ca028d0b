"""What a span costs the app's thread: ``on_start`` + ``on_end`` of our processor and of ``BatchSpanProcessor``.

    python -m benchmarks.thread
    python -m benchmarks.thread --hang 60

Neither's worker runs meanwhile: a burst is shorter than the queue and the batch, and is flushed outside of the time.

With ``--hang``, the 99th percentile of single spans of ours instead, 300 a second: while the database works (half as
long before, half after), and while it hangs for so many seconds, with its writer trying: a SQLite file that another
connection holds with EXCLUSIVE, and a PostgreSQL server whose processes are stopped by SIGSTOP.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks import harness
from benchmarks.postgres import Server
from benchmarks.shutdown import locked
from step_exporter.processor import StepSpanProcessor

_BURST = 400
_LAPS = 61
_PER_SECOND = 300
"""Spans, so that 60 s of them fit into the queue."""
_AT_ONCE = 10


class _Pairs(SpanProcessor):
    """Keeps what the SDK hands to processors at the start and at the end of a span."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.ended: list[Any] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started.append(span)

    def on_end(self, span: Any) -> None:
        self.ended.append(span)


class _Spans:
    """Makes them."""

    def __init__(self) -> None:
        self._pairs = _Pairs()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(self._pairs)
        self._tracer = provider.get_tracer("benchmark")

    def make(self, count: int) -> list[tuple[Any, Any]]:
        """What processors are handed at the start and at the end of so many spans."""
        for _ in range(count):
            self._tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat"}).end()
        made = list(zip(self._pairs.started, self._pairs.ended, strict=True))
        self._pairs.started, self._pairs.ended = [], []
        return made


def latency(url: str, hang: Callable[[], AbstractContextManager[None]], seconds: float) -> dict[str, str]:
    """Percentiles in a database that works and in one that hangs."""
    spans = _Spans()
    processor = StepSpanProcessor(url)

    def measured(seconds: float) -> list[int]:
        taken: list[int] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for started, ended in spans.make(_AT_ONCE):
                before = time.perf_counter_ns()
                processor.on_start(started)
                processor.on_end(ended)
                taken.append(time.perf_counter_ns() - before)
            time.sleep(_AT_ONCE / _PER_SECOND)
        return taken

    measured(2)
    processor.flush(30)
    working = measured(seconds / 2)
    with hang():
        hanging = measured(seconds)
    processor.flush(60)
    working += measured(seconds / 2)
    processor.shutdown(60)
    report = processor.flush()
    usual, then = _percentile(working, 99), _percentile(hanging, 99)
    return {
        "works: median, p99": f"{_percentile(working, 50):.2f}, {usual:.2f} µs ({len(working):,} spans)",
        "hangs: median, p99": f"{_percentile(hanging, 50):.2f}, {then:.2f} µs ({len(hanging):,} spans)",
        "p99, ratio": f"{then / usual:.2f}",
        "spans": f"{report.committed:,} committed, {report.spooled:,} spooled, {dict(report.dropped)} dropped",
    }


def _percentile(taken: list[int], percent: int) -> float:
    return sorted(taken)[len(taken) * percent // 100] / 1e3


def compare_hanging(seconds: float) -> None:
    """Both databases."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "steps.db"
        columns = {"SQLite": latency(f"sqlite:///{path}", lambda: locked(path), seconds)}
        server = Server()
        try:
            columns["PostgreSQL"] = latency(server.database(), server.stopped, seconds)
        finally:
            server.stop()
    print(harness.table(columns))


def compare_processors() -> None:
    """Ours and the SDK's."""
    bursts = _Spans().make(_BURST)
    with tempfile.TemporaryDirectory() as directory:
        memory = InMemorySpanExporter()
        batch = BatchSpanProcessor(memory, max_queue_size=2048, schedule_delay_millis=3_600_000)
        steps = StepSpanProcessor(f"sqlite:///{Path(directory) / 'steps.db'}", interval_seconds=3600)
        contenders: dict[str, tuple[SpanProcessor, Callable[[], object]]] = {
            "BatchSpanProcessor": (batch, memory.clear),
            "StepSpanProcessor": (steps, lambda: None),
        }
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        gc.collect()
        gc.freeze()
        for lap in range(_LAPS):
            for name, (processor, forget) in contenders.items():
                on_start, on_end = processor.on_start, processor.on_end
                before = time.thread_time_ns()
                for started, ended in bursts:
                    on_start(started)
                    on_end(ended)
                spent = time.thread_time_ns() - before
                processor.force_flush()
                forget()
                if lap:
                    taken[name].append(spent / _BURST / 1e3)
        for processor, _ in contenders.values():
            processor.shutdown()
    base, ours = (statistics.median(times) for times in taken.values())
    cells = {name: f"{statistics.median(times):.2f} µs (least {min(times):.2f})" for name, times in taken.items()}
    print(harness.table({"on_start + on_end, CPU of the thread": {**cells, "ratio": f"{ours / base:.2f}"}}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hang", type=float, metavar="SECONDS", help="compare with a database that hangs for so long")
    options = parser.parse_args()
    if options.hang is None:
        compare_processors()
    else:
        compare_hanging(options.hang)


if __name__ == "__main__":
    main()
