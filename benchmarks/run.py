"""CPU per span of every contender, as ratios to raw sqlite3 writing spans and precomputed steps and metrics.

python -m benchmarks.run                              # all workloads, all contenders, a table
python -m benchmarks.run --workloads none,1k --only raw,Step
python -m benchmarks.run --json results.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import contenders, harness, workload

_BATCHES = {"none": 61, "1k": 61, "20k": 21, "loop": 31}
"""The first is not counted. 20 KiB messages would fill the memory otherwise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(workload.WORKLOADS))
    parser.add_argument("--only", help="contenders whose name contains one of these words, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lap", type=int, default=10, help="batches in a turn")
    parser.add_argument("--batches", type=int, help="batches in a round")
    parser.add_argument("--directory", type=Path, help="where the databases are made; default: the temporary one")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    columns: dict[str, dict[str, str]] = {}
    results: dict[str, Any] = {"machine": harness.machine(), "workloads": {}}
    for name in arguments.workloads.split(","):
        count = arguments.batches + 1 if arguments.batches else _BATCHES[name]
        batches = list(workload.batches(workload.spans(name, count * workload.BATCH)))
        makers = contenders.available(batches)
        wanted = {contenders.BASE, *harness.selected(makers, arguments.only)}
        figures = harness.measure(
            [make for contender, make in makers.items() if contender in wanted],
            batches,
            rounds=arguments.rounds,
            lap=arguments.lap,
            directory=arguments.directory,
        )
        ratios = harness.ratios(figures, contenders.BASE)
        spans = count * workload.BATCH
        columns[name] = {
            contender: f"{ratios[contender]:.2f} ({statistics.median(taken.cpu_us):.0f} µs,"
            f" min {min(taken.cpu_us):.0f}; {taken.stored_bytes / spans:,.0f} B)"
            for contender, taken in figures.items()
        }
        results["workloads"][name] = {
            contender: {"ratio": ratios[contender], "bytes_per_span": taken.stored_bytes / spans, **asdict(taken)}
            for contender, taken in figures.items()
        }
        print(harness.table({name: columns[name]}), flush=True)
    print("\nRatio of CPU per span (median, least; bytes stored per span):\n")
    print(harness.table(columns))
    print("\n" + ", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
