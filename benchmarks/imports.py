"""The time that ``import step_exporter``, and the exporter in it, take, against what it is made of: each in a new
process, in turns.

python -m benchmarks.imports
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks import harness

_IMPORTS = {
    "opentelemetry.sdk.trace + sqlalchemy": "import opentelemetry.sdk.trace, sqlalchemy",
    "step_exporter": "import step_exporter",
    "StepSpanExporter": "from step_exporter import StepSpanExporter",
}
_TIMED = "import time; t = time.process_time(); {}; print(time.process_time() - t)"


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in _IMPORTS}
    for number in range(16):
        for name, statement in _IMPORTS.items():
            done = subprocess.run(
                [sys.executable, "-c", _TIMED.format(statement)], check=True, capture_output=True, text=True
            )
            if number:
                taken[name].append(float(done.stdout) * 1e3)
    base = statistics.median(next(iter(taken.values())))
    print(
        harness.table(
            {
                "CPU, median of 15": {name: f"{statistics.median(times):.0f} ms" for name, times in taken.items()},
                "ratio": {name: f"{statistics.median(times) / base:.2f}" for name, times in taken.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
