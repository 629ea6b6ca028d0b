"""What a span costs the app's thread: ``on_start`` + ``on_end`` of our processor and of ``BatchSpanProcessor``.

    python -m benchmarks.thread

Neither's worker runs meanwhile: a burst is shorter than the queue and the batch, and is flushed outside of the time.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks import harness
from step_exporter.processor import StepSpanProcessor

_BURST = 400
_LAPS = 61


class _Pairs(SpanProcessor):
    """Keeps what the SDK hands to processors at the start and at the end of a span."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.ended: list[Any] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started.append(span)

    def on_end(self, span: Any) -> None:
        self.ended.append(span)


def main() -> None:
    pairs = _Pairs()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(pairs)
    tracer = provider.get_tracer("benchmark")
    for _ in range(_BURST):
        tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat"}).end()
    bursts = list(zip(pairs.started, pairs.ended, strict=True))
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


if __name__ == "__main__":
    main()
