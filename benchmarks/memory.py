"""The resident size of a process that sends a million spans through one exporter.

python -m benchmarks.memory
python -m benchmarks.memory --spans 300000 --workload 1k
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import psutil

from benchmarks import workload
from step_exporter import StepSpanExporter

_MESSAGE_BYTES = {"none": 0, "1k": 1024, "20k": 20 * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=100_000)
    parser.add_argument("--workload", default="none", choices=_MESSAGE_BYTES)
    arguments = parser.parse_args()
    process = psutil.Process()
    maker = workload.SpanMaker()
    sizes: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        exporter = StepSpanExporter(f"sqlite:///{Path(directory) / 'steps.db'}")
        sent = 0
        while sent < arguments.spans:
            while len(maker.spans) < workload.BATCH:
                maker.trace(5, _MESSAGE_BYTES[arguments.workload])
            batch = maker.take()
            exporter.export(batch)
            if (sent + len(batch)) // arguments.every > sent // arguments.every:
                sizes.append(process.memory_info().rss / 2**20)
                print(f"{sent + len(batch):>10,} spans: {sizes[-1]:.0f} MiB", flush=True)
            sent += len(batch)
        exporter.shutdown()
    most, end = max(sizes) - sizes[0], sizes[-1] - sizes[0]
    print(f"after the first {arguments.every:,}: {most:+.0f} MiB at most, {end:+.0f} at the end")


if __name__ == "__main__":
    main()
