"""The time that ``import step_exporter`` takes, against what it is made of: each in a new process, in turns.

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
    base, ours = taken.values()
    ratio = statistics.median(ours) / statistics.median(base)
    cells = {name: f"{statistics.median(times):.0f} ms (least {min(times):.0f})" for name, times in taken.items()}
    print(harness.table({"CPU, median of 15": {**cells, "ratio": f"{ratio:.2f}"}}))


if __name__ == "__main__":
    main()
