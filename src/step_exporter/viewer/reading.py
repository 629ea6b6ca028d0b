"""What the pages read, beside what every reader can: read-only, one snapshot a call, within a deadline."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, event, select

from step_exporter.models import utc_datetime
from step_exporter.store import outline
from step_exporter.store.engine import DatabaseURL
from step_exporter.store.load import StoredSpan
from step_exporter.store.outline import Outline
from step_exporter.store.query import StepStore
from step_exporter.store.reads import METRICS, SPANS, STEPS, TRACES
from step_exporter.store.records import RunRecord

DEADLINE_S = 10
"""After so long a statement is given up: no page is worth more, and an open one keeps SQLite's log from shrinking."""
_INSTRUCTIONS = 20_000
"""SQLite looks at the clock once in so many instructions of its virtual machine, about a millisecond."""
_CACHED_ROWS = 200_000
"""Rows of outlines that are kept: they are asked for again chunk by chunk."""
MAX_SAMPLES = 100_000
"""Steps, and tool calls, of one page of statistics: the newest."""


class RunSums(NamedTuple):
    """What the steps of a run add to its row."""

    models: tuple[str, ...]
    failed_steps: int


class StepSample(NamedTuple):
    """What the statistics need of a step. Durations are nanoseconds."""

    start_ns: int
    status: str
    model: str | None
    provider: str | None
    agent: str | None
    prompt_tokens: int
    completion_tokens: int
    step_ns: int | None
    llm_ns: int | None
    tool_ns: int | None
    ttft_ns: int | None


class ToolSample(NamedTuple):
    """What the statistics need of a tool call."""

    name: str
    duration_ns: int | None
    failed: bool


class PageStore(StepStore):
    """A ``StepStore`` with what the pages need. Threads share it."""

    def __init__(self, url: DatabaseURL, deadline_s: float = DEADLINE_S) -> None:
        super().__init__(url)
        self._outlines: OrderedDict[str, Outline] = OrderedDict()
        self._lock = threading.Lock()
        sqlite = self._engine.dialect.name == "sqlite"

        def begin(conn: Connection) -> None:
            if sqlite:
                until = time.monotonic() + deadline_s
                driver: Any = conn.connection.driver_connection
                driver.set_progress_handler(lambda: time.monotonic() > until, _INSTRUCTIONS)
            else:
                conn.exec_driver_sql(f"SET LOCAL statement_timeout = {int(deadline_s * 1000)}")

        event.listen(self._engine, "begin", begin)

    def version(self, trace_id: str) -> tuple[int, int] | None:
        """(epoch, revision) of the trace with this whole id, which change with every new fact; None without one."""
        return self._run(outline.version, trace_id)

    def outline(self, trace_id: str) -> Outline:
        """The outline of a trace; ``trace_id`` may be cut to a unique prefix. Raises what ``find_trace`` does."""
        trace_id = self.find_trace(trace_id)
        with self._lock:
            kept = self._outlines.get(trace_id)
        if kept is not None and kept.version == self.version(trace_id):
            return kept
        made = self._run(outline.outline, trace_id)
        with self._lock:
            self._outlines[trace_id] = made
            self._outlines.move_to_end(trace_id)
            while len(self._outlines) > 1 and sum(len(each.rows) for each in self._outlines.values()) > _CACHED_ROWS:
                self._outlines.popitem(last=False)
        return made

    def span(self, trace_id: str, span_id: str) -> StoredSpan:
        """One span with all that it holds. Raises ``NotFoundError``."""
        return self._run(outline.span, trace_id, span_id)

    def run_sums(self, runs: Sequence[RunRecord]) -> dict[tuple[str, str], RunSums]:
        """What the steps of some runs add, by (trace id, run id)."""
        return self._run(_run_sums, runs)

    def step_samples(self, since_ns: int | None) -> list[StepSample]:
        """The newest steps begun since then, oldest first."""
        return self._run(_step_samples, since_ns)

    def tool_samples(self, since_ns: int | None) -> list[ToolSample]:
        """Tool calls of the traces that were at work since then."""
        return self._run(_tool_samples, since_ns)


def _run_sums(conn: Connection, runs: Sequence[RunRecord]) -> dict[tuple[str, str], RunSums]:
    models: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    failed: defaultdict[tuple[str, str], int] = defaultdict(int)
    shown = {(run.trace_id, run.id) for run in runs}
    columns = (STEPS.c.trace_id, STEPS.c.run_id, STEPS.c.model, STEPS.c.status)
    query = select(*columns).where(STEPS.c.run_id.in_(sorted({run.id for run in runs}))).order_by(STEPS.c.created_at)
    for row in conn.execute(query):
        key = (row.trace_id, row.run_id)
        if key in shown:
            if row.model:
                models[key][row.model] = None
            failed[key] += row.status == "failed"
    return {key: RunSums(tuple(models[key]), failed[key]) for key in shown}


def _step_samples(conn: Connection, since_ns: int | None) -> list[StepSample]:
    query = (
        select(
            STEPS.c.created_at,
            STEPS.c.status,
            STEPS.c.model,
            STEPS.c.provider_name,
            STEPS.c.agent_name,
            STEPS.c.prompt_tokens,
            STEPS.c.completion_tokens,
            METRICS.c.step_ns,
            METRICS.c.llm_request_ns,
            METRICS.c.tool_execution_ns,
            METRICS.c.ttft_ns,
        )
        .select_from(STEPS.outerjoin(METRICS, and_(METRICS.c.trace_id == STEPS.c.trace_id, METRICS.c.id == STEPS.c.id)))
        .order_by(STEPS.c.created_at.desc())
        .limit(MAX_SAMPLES)
    )
    if since_ns is not None:
        query = query.where(STEPS.c.created_at >= utc_datetime(since_ns))
    found = [StepSample(int(row[0].timestamp() * 1e6) * 1000, *row[1:]) for row in conn.execute(query)]
    return found[::-1]


def _tool_samples(conn: Connection, since_ns: int | None) -> list[ToolSample]:
    query = (
        select(SPANS.c.name, SPANS.c.start_ns, SPANS.c.end_ns, SPANS.c.status_code)
        .select_from(TRACES.join(SPANS, and_(SPANS.c.trace_id == TRACES.c.trace_id, SPANS.c.role == "tool")))
        .order_by(TRACES.c.last_ns.desc())
        .limit(MAX_SAMPLES)
    )
    if since_ns is not None:
        query = query.where(TRACES.c.last_ns >= since_ns)
    return [
        ToolSample(
            row.name,
            row.end_ns - row.start_ns if row.start_ns is not None and row.end_ns is not None else None,
            row.status_code == "error",
        )
        for row in conn.execute(query)
    ]
