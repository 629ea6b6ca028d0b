"""Statistics of steps, and their plots as boxes and lines. Plots are 600 × 140 units; SVG scales them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from step_exporter.store.cost import CostSum
from step_exporter.text import dollars, duration
from step_exporter.viewer.reading import StepSample

BUCKETS = 40
WIDTH, HEIGHT = 600, 140
_FAILED = frozenset({"failed", "abandoned"})


class Box(NamedTuple):
    """A part of a stacked column."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


class Plot(NamedTuple):
    """Columns or lines over time."""

    title: str
    boxes: list[Box]
    lines: list[tuple[str, str]]
    """(class, points of a polyline)."""
    top: str
    """What the height stands for."""
    first: str
    last: str
    legend: list[tuple[str, str]]
    """(class, words)."""


class Group(NamedTuple):
    """A row of a table of statistics. Durations are of the whole step."""

    name: str
    number: int
    failed: int
    p50: int | None
    p95: int | None
    p99: int | None
    llm_p50: int | None
    prompt_tokens: int
    completion_tokens: int
    cost: CostSum | None
    """None without a price table."""
    share: str
    """Its count beside the largest, in per cent."""

    @property
    def error_rate(self) -> str:
        """Failed of all, in per cent."""
        return percent(self.failed, self.number)


def percent(part: int, whole: int) -> str:
    """``2.5 %``."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def share(part: int, most: int) -> str:
    """How long the bar of a count is beside that of the largest."""
    return f"{100 * part / most:.1f}%"


def percentile(values: Sequence[int], q: float) -> int | None:
    """The smallest value that at least a share ``q`` of the sorted values do not exceed."""
    return values[max(math.ceil(q * len(values)) - 1, 0)] if values else None


def by(samples: Sequence[StepSample], key: Callable[[StepSample], str | None]) -> list[Group]:
    """Statistics of steps in groups, the largest first."""
    groups: dict[str, list[StepSample]] = {}
    for sample in samples:
        groups.setdefault(key(sample) or "unknown", []).append(sample)
    most = max(map(len, groups.values()), default=1)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [_group(name, group, most) for name, group in ordered]


def total(samples: Sequence[StepSample]) -> Group:
    """Statistics of all steps."""
    return _group("all", samples, max(len(samples), 1))


def _cost(samples: Sequence[StepSample]) -> CostSum | None:
    total = CostSum()
    for sample in samples:
        if sample.cost is None:
            return None
        total.add(sample.cost)
    return total


def _group(name: str, samples: Sequence[StepSample], most: int) -> Group:
    took = sorted(each.step_ns for each in samples if each.step_ns is not None)
    llm = sorted(each.llm_ns for each in samples if each.llm_ns is not None)
    return Group(
        name,
        len(samples),
        sum(each.status in _FAILED for each in samples),
        percentile(took, 0.5),
        percentile(took, 0.95),
        percentile(took, 0.99),
        percentile(llm, 0.5),
        sum(each.prompt_tokens for each in samples),
        sum(each.completion_tokens for each in samples),
        _cost(samples),
        share(len(samples), most),
    )


def plots(samples: Sequence[StepSample], since_ns: int | None, now_ns: int) -> list[Plot]:
    """Steps, tokens, times and, with a price table, cost over time."""
    if not samples:
        return []
    first = samples[0].start_ns if since_ns is None else since_ns
    last = max(now_ns if since_ns is not None else samples[-1].start_ns, first + BUCKETS)
    buckets: list[list[StepSample]] = [[] for _ in range(BUCKETS)]
    for sample in samples:
        buckets[min(max((sample.start_ns - first) * BUCKETS // (last - first + 1), 0), BUCKETS - 1)].append(sample)
    names = [_moment(first + (last - first) * at // BUCKETS) for at in range(BUCKETS + 1)]

    def failures(group: list[StepSample]) -> Stack:
        failed = sum(each.status in _FAILED for each in group)
        return [("ok", len(group) - failed), ("failed", failed)]

    def used(group: list[StepSample]) -> Stack:
        return [("in", sum(e.prompt_tokens for e in group)), ("out", sum(e.completion_tokens for e in group))]

    def spent(group: list[StepSample]) -> Stack:
        total = _cost(group)
        return [("cost", (total and total.usd) or Decimal(0))]

    ends = (names[0], names[-1])
    found = [
        _columns("Steps", buckets, names, failures, ends, [("ok", "fine"), ("failed", "failed")]),
        _columns("Tokens", buckets, names, used, ends, [("in", "in"), ("out", "out")]),
        _latency(buckets, names, ends),
    ]
    if samples[0].cost is not None:
        found.append(_columns("Cost", buckets, names, spent, ends, [("cost", "US dollars")], dollars))
    return found


Stack = list[tuple[str, int]] | list[tuple[str, Decimal]]
"""The parts of a column: (class, value)."""


def _columns(
    title: str,
    buckets: list[list[StepSample]],
    names: list[str],
    parts: Callable[[list[StepSample]], Stack],
    ends: tuple[str, str],
    legend: list[tuple[str, str]],
    text: Callable[[Any], str] = "{:,}".format,
) -> Plot:
    stacks = [parts(group) for group in buckets]
    top = max((sum(value for _, value in stack) for stack in stacks), default=0)
    width = WIDTH / BUCKETS
    boxes: list[Box] = []
    for at, stack in enumerate(stacks):
        y = float(HEIGHT)
        words = ", ".join(f"{text(value)} {dict(legend)[kind]}" for kind, value in stack)
        for kind, value in stack:
            height = float(value / top) * (HEIGHT - 8) if top else 0.0
            y -= height
            if value:
                box = Box(at * width + 1, y, width - 2, max(height, 1), kind, f"{names[at]}: {words}")
                boxes.append(box)
    return Plot(title, boxes, [], text(top), *ends, legend)


def _latency(buckets: list[list[StepSample]], names: list[str], ends: tuple[str, str]) -> Plot:
    marks = [("p50", 0.5), ("p95", 0.95)]
    times = [sorted(each.step_ns for each in group if each.step_ns is not None) for group in buckets]
    values = {kind: [percentile(each, q) for each in times] for kind, q in marks}
    top = max((value for each in values.values() for value in each if value is not None), default=0) or 1
    width = WIDTH / BUCKETS
    lines: list[tuple[str, str]] = []
    boxes: list[Box] = []
    for kind, _ in marks:
        points = [
            ((at + 0.5) * width, HEIGHT - value * (HEIGHT - 8) / top)
            for at, value in enumerate(values[kind])
            if value is not None
        ]
        lines.append((kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in points)))
        for x, y in points:
            at = int(x / width)
            words = ", ".join(f"{name} {duration(values[name][at])}" for name, _ in marks)
            boxes.append(Box(x - 2, y - 2, 4, 4, kind, f"{names[at]}: {words}"))
    return Plot("Time of a step", boxes, lines, duration(top), *ends, [("p50", "p50"), ("p95", "p95")])


def _moment(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%m-%d %H:%M")
