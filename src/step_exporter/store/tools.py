"""Counts, error rates and times of tool calls, by tool. A call has no tokens of its own: the requests have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, and_, select

from step_exporter.store import organizations
from step_exporter.store.reads import SPANS, TRACES
from step_exporter.store.records import Record
from step_exporter.store.statistics import Percentiles, percentiles

MAX_CALLS = 100_000
"""Calls that are counted: those of the traces that were at work last."""
_PREFIXES = ("execute_tool ", "tools/call ", "running tool: ")
"""Of the span names of OpenTelemetry's GenAI and MCP conventions, and of Logfire."""


@dataclass(frozen=True, slots=True)
class ToolStatsRecord(Record):
    """What the calls of one tool amount to."""

    tool: str
    count: int
    failed: int
    error_rate: float
    """``failed`` / ``count``."""
    duration_ns: Percentiles | None
    """Of the calls that have ended; None where none has."""


def tool_stats(
    conn: Connection,
    after_ns: int | None = None,
    before_ns: int | None = None,
    service: str | None = None,
    organization_id: str | None = None,
) -> tuple[ToolStatsRecord, ...]:
    """The tools by how often they were called in a time (from, and before; nanoseconds), equal ones by name.

    A tool's name is that of its spans. A tool span directly below one of the same tool is the same call, as an MCP
    server's is below its client's. For an organization the calls in traces that wholly belong to it count.
    """
    around = SPANS.alias()
    is_around = and_(
        around.c.trace_id == SPANS.c.trace_id, around.c.span_id == SPANS.c.parent_span_id, around.c.role == "tool"
    )
    tools = TRACES.join(SPANS, and_(SPANS.c.trace_id == TRACES.c.trace_id, SPANS.c.role == "tool"))
    query = (
        select(SPANS.c.name, SPANS.c.start_ns, SPANS.c.end_ns, SPANS.c.status_code, around.c.name.label("around"))
        .select_from(tools.outerjoin(around, is_around))
        .order_by(TRACES.c.last_ns.desc())
        .limit(MAX_CALLS)
    )
    if after_ns is not None:  # of traces as well: their index leads to the few that were at work since
        query = query.where(TRACES.c.last_ns >= after_ns, SPANS.c.start_ns >= after_ns)
    if before_ns is not None:
        query = query.where(SPANS.c.start_ns < before_ns)
    if service is not None:
        query = query.where(SPANS.c.service_name == service)
    if organization_id is not None:
        query = query.where(organizations.is_whole(TRACES.c.trace_id, organization_id))
    calls_of: dict[str, list[_Call]] = {}
    for name, start_ns, end_ns, status_code, around_name in conn.execute(query):
        tool = tool_name(name)
        if around_name is None or tool_name(around_name) != tool:
            took = None if start_ns is None or end_ns is None or end_ns < start_ns else end_ns - start_ns
            calls_of.setdefault(tool, []).append(_Call(took, status_code == "error"))
    ordered = sorted(calls_of.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(_record(tool, calls) for tool, calls in ordered)


def tool_name(span_name: str) -> str:
    """The tool that a span of this name calls."""
    for prefix in _PREFIXES:
        span_name = span_name.removeprefix(prefix)
    return span_name


class _Call(NamedTuple):
    duration_ns: int | None
    failed: bool


def _record(tool: str, calls: Sequence[_Call]) -> ToolStatsRecord:
    failed = sum(call.failed for call in calls)
    times = [call.duration_ns for call in calls if call.duration_ns is not None]
    return ToolStatsRecord(tool, len(calls), failed, failed / len(calls), percentiles(times))
