"""What a span costs as its trace grows: one long trace, span by span, and with two writers in turns.

    python -m benchmarks.growth
    python -m benchmarks.growth --spans 20000          # a shorter long trace

Each pair takes turns, a few batches each; ratios of CPU per span.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from benchmarks import harness, workload
from step_exporter import StepSpanExporter

_Batches = Sequence[Sequence[ReadableSpan]]


def one_trace(count: int) -> list[ReadableSpan]:
    """One agent of so many spans."""
    maker = workload.SpanMaker()
    maker.trace(count // 2)
    return maker.spans


def _turns(stores: dict[str, tuple[str, _Batches]], lap: int) -> dict[str, float]:
    """CPU microseconds per span of exporters that write their own batches in turns; the first batch does not count."""
    exporters = {name: StepSpanExporter(url) for name, (url, _) in stores.items()}
    spent = dict.fromkeys(stores, 0.0)
    for name, (_, batches) in stores.items():
        exporters[name].export(batches[0])
    most = max(len(batches) for _, batches in stores.values())
    for start in range(1, most, lap):
        for name, (_, batches) in stores.items():
            before = harness.cpu()
            for batch in batches[start : start + lap]:
                exporters[name].export(batch)
            spent[name] += harness.cpu() - before
    for exporter in exporters.values():
        exporter.shutdown()
    return {name: spent[name] / sum(map(len, batches[1:])) * 1e6 for name, (_, batches) in stores.items()}


def _second_writer(pipe: Any, url: str, batches: _Batches) -> None:
    """Writes a batch whenever it is told to, and answers with the CPU seconds that it took."""
    exporter = StepSpanExporter(url)
    for batch in batches:
        pipe.recv()
        before = harness.cpu()
        exporter.export(batch)
        pipe.send(harness.cpu() - before)
    pipe.recv()
    exporter.shutdown()


def _two_writers(url: str, batches: _Batches) -> float:
    """CPU microseconds per span of two processes that write one trace, a batch each in turn."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    second = fork.Process(target=_second_writer, args=(theirs, url, batches[1::2]))
    second.start()
    exporter = StepSpanExporter(url)
    spent = 0.0
    for number, batch in enumerate(batches):
        if number % 2:
            ours.send(None)
            taken = float(ours.recv())
        else:
            before = harness.cpu()
            exporter.export(batch)
            taken = harness.cpu() - before
        spent += taken if number > 1 else 0.0  # connecting, and making the tables
    ours.send(None)
    second.join()
    exporter.shutdown()
    return spent / sum(map(len, batches[2:])) * 1e6


def _line(title: str, taken: dict[str, float]) -> str:
    base, other = taken.items()
    ratio = other[1] / base[1]
    return f"| {title} | {base[0]}: {base[1]:.0f} µs | {other[0]}: {other[1]:.0f} µs | {ratio:.2f} |"


def _batched(spans: Iterable[ReadableSpan], size: int) -> list[list[ReadableSpan]]:
    return list(workload.batches(list(spans), size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=100_000, help="of the long trace")
    parser.add_argument("--only", default="long,single,writers")
    arguments = parser.parse_args()
    print("| | | | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:

        def url(name: str) -> str:
            return f"sqlite:///{Path(directory) / name}.db"

        if "long" in arguments.only:
            short, long = workload.spans("none", arguments.spans), one_trace(arguments.spans)
            gc.freeze()
            taken = _turns(
                {
                    "traces of 10": (url("short"), _batched(short, workload.BATCH)),
                    f"one of {len(long):,}": (url("long"), _batched(long, workload.BATCH)),
                },
                lap=5,
            )
            print(_line("batches of 512", taken), flush=True)
        if "single" in arguments.only:
            taken = _turns(
                {
                    "traces of 10": (url("short1"), _batched(workload.spans("none", 3000), 1)),
                    "one of 3,000": (url("long1"), _batched(one_trace(3000), 1)),
                },
                lap=100,
            )
            print(_line("batches of 1", taken), flush=True)
        if "writers" in arguments.only:
            batches = _batched(one_trace(20_000), workload.BATCH)
            one = _turns({"one writer": (url("one"), batches)}, lap=5)
            two = _two_writers(url("two"), batches)
            print(_line("one trace of 20,000, batches of 512", {**one, "two in turns": two}), flush=True)


if __name__ == "__main__":
    main()
