"""Runs, steps and messages as tables and pages for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from step_exporter.cli.output import console
from step_exporter.cli.text import UNKNOWN, duration, harmless, message_text, tokens, when
from step_exporter.cli.waterfall import status_text, step_error
from step_exporter.store.records import MessageRecord, RunRecord, StepMetricsRecord, StepRecord

SHORT_ID = 8
"""Digits of a trace id in a table; every command takes the beginning of one."""

MAX_WORDS, MIN_WORDS = 32, 8
"""Cells for a name that somebody else gave; the columns of ids and numbers are never cut."""

ROLE_STYLES = {"system": "dim", "user": "cyan", "assistant": "magenta", "tool": "green"}


def runs(found: Sequence[RunRecord]) -> Iterator[RenderableType]:
    """A table of runs."""
    rows = [
        (
            Text(when(run.created_at)),
            words(run.agent_name or UNKNOWN, "  ↳ " if run.parent_run_id else ""),
            status_text(run.status),
            Text(str(run.step_count)),
            Text(tokens(run.prompt_tokens, run.completion_tokens)),
            Text(duration(run.total_duration_ns)),
            Text(run.trace_id[:SHORT_ID]),
            words(run.error_type or ""),
        )
        for run in found
    ]
    headings = ("started", "agent~", "status", "steps>", "tokens>", "time>", "trace", "error~")
    yield table(headings, rows) if rows else Text("no runs", style="dim")


def steps(found: Sequence[StepRecord]) -> Iterator[RenderableType]:
    """A table of steps. The id shown is that of the step's first span, which names it in 16 digits."""
    rows = [
        (
            Text(when(step.created_at)),
            Text(step.span_id),
            words(step.agent_name or UNKNOWN),
            words(step.model or UNKNOWN),
            status_text(step.status),
            Text(tokens(step.prompt_tokens, step.completion_tokens)),
            Text(duration(step.metrics and step.metrics.llm_request_ns)),
            Text(duration(step.metrics and step.metrics.tool_execution_ns)),
            Text(duration(step.metrics and step.metrics.step_ns)),
            Text(step.trace_id[:SHORT_ID]),
        )
        for step in found
    ]
    headings = ("started", "step", "agent~", "model~", "status", "tokens>", "LLM>", "tools>", "time>", "trace")
    yield table(headings, rows) if rows else Text("no steps", style="dim")


SHOWN_APART = frozenset({"id", "status", "error_type", "error_data", "metrics"})
METRICS = tuple(field.name for field in fields(StepMetricsRecord) if field.name not in StepRecord.__slots__)
"""What the metrics add: they repeat some of the step's ids."""


def step(found: StepRecord, its_messages: Sequence[MessageRecord]) -> Iterator[RenderableType]:
    """One step in full: every field that is known, then its error, then its messages."""
    title = Text("step ", style="bold").append(harmless(found.id), style="bold cyan")
    yield title.append("  ").append_text(status_text(found.status))
    known = {field.name: getattr(found, field.name) for field in fields(found) if field.name not in SHOWN_APART}
    if found.metrics:
        known |= {name: getattr(found.metrics, name) for name in METRICS}
    yield _known(known)
    if error := step_error(found):
        yield Text(f"\n✗ {error}", style="bold red")
        traceback = (found.error_data or {}).get("traceback")
        for line in str(traceback or "").splitlines():
            yield Text(f"  {harmless(line)}", style="red")
    if its_messages:
        yield Text("\nmessages", style="bold")
        yield from messages(its_messages)


def messages(found: Sequence[MessageRecord]) -> Iterator[RenderableType]:
    """Messages one after another, a heading wherever the run changes."""
    run_id = None
    several = len({message.run_id for message in found}) > 1
    for message in found:
        if several and message.run_id != run_id:
            yield Text(f"run {harmless(message.run_id or UNKNOWN)}", style="bold")
        run_id = message.run_id
        yield from _message(message)
    if not found:
        yield Text("no such messages, or the instrumentation records none, or content is off", style="dim")


def _message(message: MessageRecord) -> Iterator[Text]:
    head = Text(message.role, style=f"bold {ROLE_STYLES.get(message.role, '')}".rstrip())
    if message.name:
        head.append(f" {harmless(message.name)}", style="not bold")
    yield head
    for line in message_text(message).splitlines():
        yield Text(f"  {harmless(line)}")
    for call in message.tool_calls or ():
        yield Text(f"  → {harmless(str(call.get('name')))}({harmless(_arguments(call))})", style="yellow")


def _arguments(call: dict[str, Any]) -> str:
    arguments = call.get("arguments")
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _known(values: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None:
            grid.add_row(name, _shown(name, value))
    return grid


def _shown(name: str, value: Any) -> Text:
    if isinstance(value, int) and name.endswith("_start_ns"):
        return Text(str(value))
    if isinstance(value, int) and name.endswith("_ns"):
        return Text(duration(value)).append(f"  {value}", style="dim")
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, dict | list):
        return Text(harmless(json.dumps(value, ensure_ascii=False)))
    return Text(harmless(str(value)))


def table(headings: Sequence[str], rows: Sequence[Sequence[Text]]) -> Table:
    """A table without lines. A heading that ends in ``>`` is of numbers, in ``~`` of words, which may be cut.

    What is wider than the terminal goes on on its next line: Rich would leave columns out.
    """
    least = least_width(headings, rows)
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.width = least if least > console().width else None
    for heading, width in zip(headings, _widths(headings, rows), strict=True):
        table.add_column(
            heading.rstrip("~>"),
            justify="right" if heading.endswith(">") else "left",
            min_width=width,
            max_width=MAX_WORDS if heading.endswith("~") else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*row)
    return table


def least_width(headings: Sequence[str], rows: Sequence[Sequence[Text]]) -> int:
    """The cells that a table needs at least."""
    return sum(_widths(headings, rows)) + 2 * (len(headings) - 1)


def _widths(headings: Sequence[str], rows: Sequence[Sequence[Text]]) -> Iterator[int]:
    """The least width of each column."""
    for place, heading in enumerate(headings):
        width = max(len(heading.rstrip("~>")), *(row[place].cell_len for row in rows))
        yield min(width, MIN_WORDS) if heading.endswith("~") else width


def words(text: str, before: str = "") -> Text:
    """Somebody else's words: no markup, and nothing that a terminal would obey."""
    return Text(before + harmless(text))
