"""An outline as lines with bars to scale. Positions are per cent of the trace's whole time."""

from __future__ import annotations

import time
from typing import NamedTuple

from step_exporter.store.outline import Outline, OutlineRow, OutlineSpan, OutlineStep
from step_exporter.store.records import RunRecord
from step_exporter.text import count, duration, harmless, tokens
from step_exporter.viewer.words import flag_words

CHUNK = 200
"""Lines that are made at once."""
MAX_DEPTH = 16
"""Levels that are indented; a chain of 10,000 spans stays readable."""
_STALE_NS = 3600 * 10**9
"""A trace that was silent for so long does not grow on the page any more: its clock, or its process, is elsewhere."""
_TICKS = 5


class Bar(NamedTuple):
    """Where a bar begins and how long it is, in per cent."""

    x: str
    width: str


class Line(NamedTuple):
    """One line of the waterfall."""

    kind: str
    """``span``, or ``step`` where no span is the step."""
    span_id: str
    """Of a step, its anchor's."""
    depth: int
    name: str
    role: str
    """Its class: agent, workflow, step, llm, tool or other."""
    step: str | None
    """``step 3``, on a span that is a step."""
    model: str
    tokens: str
    status: str
    duration: str
    bar: Bar | None
    notes: tuple[str, ...]
    tooltip: str

    @property
    def key(self) -> str:
        """What an address names it by: ``span=ID`` or ``step=ID``."""
        return f"{self.kind}={self.span_id}"


class Tick(NamedTuple):
    """A mark of the ruler."""

    x: str
    text: str


class Scale(NamedTuple):
    """The time that the whole width stands for."""

    first_ns: int
    last_ns: int
    is_live: bool

    @property
    def span_ns(self) -> int:
        """Its length."""
        return max(self.last_ns - self.first_ns, 1)

    def bar(self, start_ns: int, end_ns: int) -> Bar:
        """The bar of an interval; at least a hair wide."""
        left = min(max(start_ns - self.first_ns, 0), self.span_ns) * 100 / self.span_ns
        right = min(max(end_ns - self.first_ns, 0), self.span_ns) * 100 / self.span_ns
        width = max(right - left, 0.15)
        return Bar(f"{min(left, 100 - width):.3f}%", f"{width:.3f}%")

    def ticks(self) -> list[Tick]:
        """The ruler."""
        texts = ("0", *(duration(self.span_ns * at // _TICKS) for at in range(1, _TICKS)))
        return [Tick(f"{100 * at / _TICKS:g}%", text) for at, text in enumerate(texts)]


def scale_of(outline: Outline, now_ns: int | None = None) -> Scale:
    """The scale of a trace. While spans are open it goes to now."""
    spans = [row.span for row in outline.rows]
    first = min((span.start_ns for span in spans if span.start_ns is not None), default=outline.first_ns or 0)
    last = max((span.end_ns or span.start_ns or first for span in spans), default=first)
    now = time.time_ns() if now_ns is None else now_ns
    live = last <= now < last + _STALE_NS and any(span.is_open for span in spans)
    return Scale(first, now if live else last, live)


def lines(outline: Outline, scale: Scale, start: int, stop: int) -> list[Line]:
    """The lines from one to before another."""
    shown = outline.rows[start:stop]
    lines_of_steps = {row.step.id for row in outline.rows if row.step is not None}
    steps = {step.span_id: step for step in outline.steps if step.id not in lines_of_steps}
    runs = {run.span_id: run for run in outline.runs if run.span_id}
    return [
        _line(row, steps.get(row.span.span_id), runs.get(row.span.span_id), scale)
        if row.step is None
        else _step_line(row, row.step, scale)
        for row in shown
    ]


def notes_of(outline: Outline) -> list[str]:
    """What is odd about the trace as a whole, in words."""
    spans = [row for row in outline.rows if row.step is None]
    lost = [row.span.parent_span_id for row in spans if row.placed == "orphan"]
    circles = any(row.placed == "cycle" for row in spans)
    notes: list[str] = []
    if lost:
        waits = "span is" if len(lost) == 1 else "spans are"
        missing = count(len(set(lost)), "parent span")
        notes.append(f"{len(lost):,} {waits} shown without a parent: {missing} never came.")
    if outline.rows and all(row.placed for row in outline.rows if row.depth == 0):
        notes.append("The root of the trace is missing.")
    if circles:
        notes.append("Some spans name each other as parents, in a circle.")
    if any(_is_backwards(row.span) for row in spans):
        notes.append("Some spans end before they start: clocks differ.")
    if any(row.span.abandoned_ns is not None for row in spans):
        notes.append("A process went away before its spans ended.")
    return notes


def _step_line(row: OutlineRow, step: OutlineStep, scale: Scale) -> Line:
    span = row.span
    is_live = scale.is_live and step.status in ("pending", "running")
    start = span.start_ns if step.start_ns is None else step.start_ns
    took = step.step_ns
    if is_live and start is not None:
        took = scale.last_ns - start
    name = step_name(step.position)
    return Line(
        kind="step",
        span_id=span.span_id,
        depth=min(row.depth, MAX_DEPTH),
        name=name,
        role="step",
        step=None,
        model=harmless(step.model or ""),
        tokens=tokens(step.prompt_tokens, step.completion_tokens) if step.total_tokens else "",
        status=step.status,
        duration=duration(took),
        bar=None if start is None else scale.bar(start, start + (took or 0)),
        notes=(flag_words(row.placed),) if row.placed else (),
        tooltip=f"{name} · {duration(took)}",
    )


def step_name(position: int | None) -> str:
    """``Step 3``."""
    return f"Step {position}" if position else "Step"


def _line(row: OutlineRow, step: OutlineStep | None, run: RunRecord | None, scale: Scale) -> Line:
    span = row.span
    role = span.role if span.role in ("agent", "workflow", "step", "llm", "tool") else "other"
    name = harmless(span.name) or "(no name)"
    end = _end(span, scale)
    bar = None if span.start_ns is None else scale.bar(span.start_ns, max(end or 0, span.start_ns))
    known = span.start_ns is not None and span.end_ns is not None
    took = (span.end_ns or 0) - (span.start_ns or 0) if known else None
    if took is None and span.is_open and span.start_ns is not None and scale.is_live:
        took = scale.last_ns - span.start_ns
    used = step if step and step.total_tokens else run if run and run.total_tokens and not step else None
    notes = [row.placed] if row.placed else []
    notes += ["clock_skew"] if _is_backwards(span) else []
    notes += ["abandoned"] if span.abandoned_ns is not None else []
    return Line(
        kind="span",
        span_id=span.span_id,
        depth=min(row.depth, MAX_DEPTH),
        name=name,
        role=role,
        step=None if step is None else step_name(step.position).lower(),
        model=harmless(step.model) if step and step.model and step.model not in name else "",
        tokens=tokens(used.prompt_tokens, used.completion_tokens) if used else "",
        status=_status(span, step, run),
        duration=duration(took),
        bar=bar,
        notes=tuple(flag_words(note) for note in notes),
        tooltip=f"{name} · {duration(took)}" + (f" · {harmless(span.service_name)}" if span.service_name else ""),
    )


def _status(span: OutlineSpan, step: OutlineStep | None, run: RunRecord | None) -> str:
    if step is not None:
        return step.status
    if run is not None:
        return run.status
    if span.status_code == "error":
        return "failed"
    return "running" if span.is_open else ""


def _end(span: OutlineSpan, scale: Scale) -> int | None:
    if span.end_ns is not None:
        return span.end_ns
    return scale.last_ns if span.is_open else span.abandoned_ns


def _is_backwards(span: OutlineSpan) -> bool:
    return span.start_ns is not None and span.end_ns is not None and span.end_ns < span.start_ns
