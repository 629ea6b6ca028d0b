"""Where the CPU of an export goes: its stages, one after the other, on SQLite.

    python -m benchmarks.stages                        # without content
    python -m benchmarks.stages --workload loop
    python -m benchmarks.stages --workload long        # one trace, its second half
    python -m benchmarks.stages --objects 150000       # in an app that holds so many, for the garbage collector

The clock is read around the functions of each stage, which costs a little itself. The last line derives the same spans
again: each trace at one go where it is plain, against the incremental derivation.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from opentelemetry.sdk.trace import ReadableSpan

from benchmarks import harness, workload
from benchmarks.growth import one_trace
from step_exporter import StepSpanExporter
from step_exporter.conventions import content
from step_exporter.derive import Derivation
from step_exporter.facts import SpanFacts
from step_exporter.sdk import SpanConverter
from step_exporter.store import codec, ingest, prepare, transaction
from step_exporter.store.bulk import Statement
from step_exporter.trees import LocalTrees

_STAGES: dict[str, tuple[Any, str]] = {
    "export": (StepSpanExporter, "export"),
    "convert": (StepSpanExporter, "_converted"),
    "encode": (prepare, "encode"),
    "read": (prepare, "read"),
    "local trees": (LocalTrees, "add"),
    "lock": (ingest, "lock_traces"),
    "insert facts": (ingest, "insert_facts"),
    "derive": (transaction.Work, "derive"),
    "write rows": (ingest, "write_changes"),
    "transaction": (ingest.Writer, "_transact"),
    "the driver, in these": (Statement, "run"),
}


_COLLECTOR = "the garbage collector, in these"


class _Collecting:
    """Counts what the garbage collector takes."""

    def __init__(self, spent: Counter[str]) -> None:
        self._spent = spent
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            self._spent[_COLLECTOR] += time.thread_time() - self._began


def _timed(function: Callable[..., Any], name: str, spent: Counter[str]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.thread_time() - began

    return run


def stages(batches: Sequence[Sequence[ReadableSpan]], counted: int) -> dict[str, float]:
    """CPU microseconds per span of each stage, over the last ``counted`` batches."""
    spent: Counter[str] = Counter()
    with ExitStack() as stack:
        for name, (owner, attribute) in _STAGES.items():
            function = getattr(owner, attribute)
            stack.enter_context(mock.patch.object(owner, attribute, _timed(function, name, spent)))
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        collecting = _Collecting(spent)
        gc.callbacks.append(collecting)
        stack.callback(gc.callbacks.remove, collecting)
        exporter = StepSpanExporter(f"sqlite:///{Path(directory) / 'steps.db'}")
        for batch in batches[:-counted]:
            exporter.export(batch)
        spent.clear()
        for batch in batches[-counted:]:
            exporter.export(batch)
        exporter.shutdown()
    taken = {name: spent[name] for name in (*_STAGES, _COLLECTOR)}
    inside = sum(taken[name] for name in ("lock", "insert facts", "derive", "write rows"))
    taken["commit, begin and the rest of it"] = taken.pop("transaction") - inside
    count = sum(map(len, batches[-counted:]))
    return {name: seconds / count * 1e6 for name, seconds in taken.items()}


def derivations(spans: Iterable[ReadableSpan]) -> tuple[float, float]:
    """CPU microseconds per span of deriving whole traces at one go and incrementally: the least of five."""
    convert = SpanConverter()
    prepared, _ = prepare.prepare([convert(span) for span in spans], codec.Sources(), content.ContentMemo())
    traces: dict[str, list[SpanFacts]] = {}
    for item in prepared:
        traces.setdefault(item.facts.trace_id, []).append(item.facts)
    least: list[float] = []
    for is_whole in (True, False):
        turns: list[float] = []
        for _ in range(5):
            began = time.thread_time()
            for trace_id, facts in traces.items():
                derivation = Derivation(trace_id, is_whole=is_whole)
                derivation.apply(facts)
                del derivation
            turns.append(time.thread_time() - began)
        least.append(min(turns) / len(prepared) * 1e6)
    return least[0], least[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="none", choices=(*workload.WORKLOADS, "long"))
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--objects", type=int, default=0, help="that the app holds and the garbage collector looks at")
    arguments = parser.parse_args()
    count, name = arguments.batches, arguments.workload
    spans = one_trace(count * workload.BATCH) if name == "long" else workload.spans(name, count * workload.BATCH)
    batches = list(workload.batches(spans))
    gc.collect()
    gc.freeze()
    held = [{"a": [number]} for number in range(arguments.objects // 2)]  # two each
    rounds = [stages(batches, count // 2 if name == "long" else count - 1) for _ in range(arguments.rounds)]
    taken = {stage: statistics.median(found[stage] for found in rounds) for stage in rounds[0]}
    cells = {stage: f"{us:.1f} µs, {us / taken['export']:.0%}" for stage, us in taken.items()}
    print(harness.table({name: cells}))
    at_once, incremental = derivations(spans[: 4 * workload.BATCH])
    print(f"\nderived at one go {at_once:.1f} µs, incrementally {incremental:.1f} µs")
    del held


if __name__ == "__main__":
    main()
