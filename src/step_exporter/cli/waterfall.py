"""A trace as a waterfall: its runs, steps, LLM requests and tools as a tree, each with a bar to scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rich.text import Text

from step_exporter.cli.text import UNKNOWN, count, duration, harmless, tokens, when
from step_exporter.facts import AttributeValue
from step_exporter.store.records import RunRecord, SpanRecord, StepRecord, TraceRecord

MAX_INDENT = 12
"""Levels that are drawn; what lies deeper stands at this one, so that a chain of 10,000 stays readable."""
MIN_BAR, MIN_LABEL = 16, 24
DETAILS, TOKENS, STATUS, DURATION = 22, 13, 9, 8
NARROW = 100
"""Below this width details and tokens are left out, so that the bars keep theirs."""

STATUS_STYLES = {
    "success": "green",
    "completed": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "abandoned": "yellow",
    "running": "cyan",
    "pending": "cyan",
    "created": "cyan",
}


class Mark(NamedTuple):
    """How the bars of one kind are drawn."""

    character: str
    style: str


MARKS = {
    "run": Mark("─", "dim"),
    "step": Mark("━", "blue"),
    "LLM": Mark("█", "magenta"),
    "tool": Mark("▒", "green"),
    "other": Mark("·", "dim"),
}
_BY_ROLE = {"llm": "LLM", "tool": "tool"}


class Row(NamedTuple):
    """One line of the waterfall, before it is laid out."""

    guide: str
    """The lines of the tree to the left of the label."""
    below: str
    """The same for a line under this one."""
    label: str
    details: str
    """The model of a step, the number of a run's steps, what a span is."""
    tokens: str
    status: str
    start_ns: int | None
    duration_ns: int | None
    mark: str
    error: str | None


def waterfall(trace: TraceRecord, width: int, *, show_all: bool = False) -> Iterator[Text]:
    """The lines of a trace. ``width`` is in cells; ``show_all`` adds the spans that are no LLM request or tool."""
    yield from _header(trace)
    yield Text()
    rows = list(_rows(trace, show_all or not trace.steps))
    starts = [row.start_ns for row in rows if row.start_ns is not None]
    ends = [row.start_ns + row.duration_ns for row in rows if row.start_ns is not None and row.duration_ns is not None]
    first = min(starts, default=0)
    span_ns = max(max(ends, default=first) - first, 1)
    longest = max((len(row.guide) + Text(row.label).cell_len for row in rows), default=0)
    detailed = width >= NARROW
    free = width - STATUS - DURATION - 3 - (DETAILS + TOKENS + 2 if detailed else 0)
    label_width = max(MIN_LABEL, min(longest, free - MIN_BAR, free // 2))
    bar_width = max(MIN_BAR, free - label_width)
    for row in rows:
        yield _line(row, label_width, bar_width, detailed, first, span_ns)
        if row.error:
            yield Text(f"{row.below}✗ {row.error}", style="red")
    yield Text()
    yield Text("  ").join(
        Text(f"{mark.character * 2} {name}", style=mark.style)
        for name, mark in MARKS.items()
        if any(row.mark == name for row in rows)
    )


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=STATUS_STYLES.get(status, ""))


def trace_status(trace: TraceRecord) -> str:
    """The status of the runs that nobody else started: ``completed``, or ``2 completed, 1 failed``."""
    ids = {run.id for run in trace.runs}
    statuses = Counter(run.status for run in trace.runs if run.parent_run_id not in ids)
    if len(statuses) == 1 and statuses.total() == 1:
        return next(iter(statuses))
    return ", ".join(f"{number} {status}" for status, number in sorted(statuses.items())) or "no runs"


def _header(trace: TraceRecord) -> Iterator[Text]:
    status = trace_status(trace)
    total = None if trace.first_ns is None or trace.last_ns is None else trace.last_ns - trace.first_ns
    title = Text("trace ", style="bold")
    title.append(trace.trace_id, style="bold cyan")
    title.append("  ").append_text(status_text(status)).append(f"  {duration(total)}")
    yield title
    metrics = [step.metrics for step in trace.steps if step.metrics]
    parts = [
        when(min(step.created_at for step in trace.steps)) if trace.steps else "",
        count(len(trace.runs), "run"),
        count(len(trace.steps), "step"),
        count(sum(each.llm_request_count for each in metrics), "LLM request"),
        count(sum(each.tool_call_count for each in metrics), "tool call"),
        tokens(sum(step.prompt_tokens for step in trace.steps), sum(step.completion_tokens for step in trace.steps))
        + " tokens",
        count(len(trace.spans), "span"),
    ]
    yield Text(" · ".join(part for part in parts if part), style="dim")


def _rows(trace: TraceRecord, show_all: bool) -> Iterator[Row]:
    """The nodes that are shown. One whose parent is hidden hangs from the nearest above it that is not."""
    runs = {run.id: run for run in trace.runs}
    steps = {step.id: step for step in trace.steps}
    spans = {span.span_id: span for span in trace.spans}
    above: list[int | None] = []
    """For each node: the nearest shown one at or above it."""
    last_child: dict[int | None, int] = {}
    shown: list[tuple[int, int | None]] = []
    for place, node in enumerate(trace.tree):
        parent = None if node.parent is None else above[node.parent]
        if node.kind == "span" and not (show_all or spans[node.id].role in _BY_ROLE):
            above.append(parent)
            continue
        above.append(place)
        last_child[parent] = place
        shown.append((place, parent))

    below: dict[int | None, str] = {None: ""}
    depth: dict[int | None, int] = {None: 0}
    for place, parent in shown:
        depth[place] = depth[parent] + 1
        is_last = last_child[parent] == place
        if parent is None:
            guide, rest = "", ""
        elif depth[place] > MAX_INDENT:
            guide = rest = below[parent]
        else:
            guide = below[parent] + ("└─ " if is_last else "├─ ")
            rest = below[parent] + ("   " if is_last else "│  ")
        below[place] = rest
        node = trace.tree[place]
        under = rest + ("│  " if place in last_child and depth[place] < MAX_INDENT else "   ")
        match node.kind:
            case "run":
                yield _run_row(runs[node.id], spans, guide, under)
            case "step":
                yield _step_row(steps[node.id], runs, guide, under)
            case "span":
                yield _span_row(spans[node.id], guide, under)


def _run_row(run: RunRecord, spans: Mapping[str, SpanRecord], guide: str, under: str) -> Row:
    anchor = spans.get(run.span_id or "")
    error = None
    if run.status == "failed":
        error = (_span_error(anchor) if anchor else None) or run.error_type
    return Row(
        guide,
        under,
        harmless(run.agent_name or (anchor.name if anchor else "") or "run"),
        count(run.step_count, "step"),
        tokens(run.prompt_tokens, run.completion_tokens) if run.total_tokens else "",
        run.status,
        run.start_ns,
        run.total_duration_ns,
        "run",
        harmless(error) if error else None,
    )


def _step_row(step: StepRecord, runs: Mapping[str, RunRecord], guide: str, under: str) -> Row:
    run = runs.get(step.run_id or "")
    label = f"step {step.position}" if step.position else "step"
    if step.agent_name and run and step.agent_name != run.agent_name:
        label += f" {step.agent_name}"
    metrics = step.metrics
    return Row(
        guide,
        under,
        harmless(label),
        harmless(step.model or ""),
        tokens(step.prompt_tokens, step.completion_tokens) if step.total_tokens else "",
        step.status,
        metrics.step_start_ns if metrics else None,
        metrics.step_ns if metrics else None,
        "step",
        step_error(step),
    )


def _span_row(span: SpanRecord, guide: str, under: str) -> Row:
    mark = _BY_ROLE.get(span.role, "other")
    failed = span.status_code == "error"
    known = span.start_ns is not None and span.end_ns is not None
    unended = "running" if span.abandoned_ns is None else "abandoned"
    return Row(
        guide,
        under,
        harmless(span.name),
        mark if mark != "other" else span.role,
        "",
        "failed" if failed else "" if span.ended else unended,
        span.start_ns,
        (span.end_ns or 0) - (span.start_ns or 0) if known else None,
        mark,
        _span_error(span) if failed else None,
    )


_NOTHING: Mapping[str, AttributeValue] = {}


def step_error(step: StepRecord) -> str | None:
    """``type: message`` of a step's error on one line; None where it has none."""
    message = (step.error_data or {}).get("message")
    return _error(step.error_type, message if isinstance(message, str) else None)


def _span_error(span: SpanRecord) -> str | None:
    exceptions = [event.attributes for event in span.events if event.name == "exception"]
    exception = exceptions[-1] if exceptions else _NOTHING
    kind = span.attributes.get("error.type") or exception.get("exception.type")
    message = span.status_message or exception.get("exception.message")
    return _error(kind if isinstance(kind, str) else None, message if isinstance(message, str) else None)


def _error(kind: str | None, message: str | None) -> str | None:
    """The SDK writes the type into the status message as well: it is said once."""
    parts = [kind] if kind and not (message or "").startswith(kind) else []
    parts += [message] if message else []
    return harmless(": ".join(parts)) or None


def _line(row: Row, label_width: int, bar_width: int, detailed: bool, first: int, span_ns: int) -> Text:
    mark = MARKS[row.mark]
    style = "bold" if row.mark == "run" else mark.style if row.mark in ("LLM", "tool", "other") else ""
    cells = [(Text(row.guide, style="dim").append(row.label, style=f"not dim {style}"), label_width)]
    if detailed:
        cells += [(Text(row.details, style="dim"), DETAILS), (Text(row.tokens.rjust(TOKENS)), TOKENS)]
    cells += [(status_text(row.status), STATUS), (Text(duration(row.duration_ns).rjust(DURATION)), DURATION)]
    for cell, width in cells:
        cell.truncate(width, overflow="ellipsis", pad=True)
    line = Text(" ").join(cell for cell, _ in cells).append(" ")
    if row.start_ns is None:
        return line.append(UNKNOWN, style="dim")
    before, length = bar(row.start_ns - first, row.duration_ns or 0, span_ns, bar_width)
    drawn = "red" if row.status == "failed" else mark.style
    return line.append(" " * before).append(mark.character * length, style=drawn)


def bar(offset_ns: int, duration_ns: int, total_ns: int, width: int) -> tuple[int, int]:
    """The empty cells before a bar and its own, at least one and within ``width``; integers, as a float loses ns."""
    before = min(max(offset_ns, 0) * width // total_ns, width - 1)
    end = min(-(-(max(offset_ns, 0) + max(duration_ns, 0)) * width // total_ns), width)
    return before, max(end - before, 1)
