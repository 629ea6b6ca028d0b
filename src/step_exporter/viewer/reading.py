"""What the pages read, beside what every reader can: read-only, one snapshot a call, within a deadline."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, event, select

from step_exporter.models import utc_datetime
from step_exporter.store import filters, outline, reads
from step_exporter.store.cost import Cost, CostSum, Price, installed_price_table
from step_exporter.store.engine import DatabaseURL
from step_exporter.store.filters import RunFilter
from step_exporter.store.load import StoredSpan
from step_exporter.store.outline import Outline, OutlineStep
from step_exporter.store.processes import Finder
from step_exporter.store.query import StepStore
from step_exporter.store.reads import METRICS, STEPS, STEPS_WITH_METRICS
from step_exporter.store.records import Page, RunRecord
from step_exporter.store.tools import ToolStatsRecord, tool_stats

DEADLINE_S = 10
"""After so long a statement is given up: no page is worth more, and an open one keeps SQLite's log from shrinking."""
_INSTRUCTIONS = 20_000
"""SQLite looks at the clock once in so many instructions of its virtual machine, about a millisecond."""
_CACHED_ROWS = 200_000
"""Rows of outlines that are kept: they are asked for again chunk by chunk."""
MAX_SAMPLES = 100_000
"""Steps of one page of statistics: the newest."""
MAX_NAMED = 20
"""Traces that a search lists."""


class RunSums(NamedTuple):
    """What the steps of a run add to its row."""

    models: tuple[str, ...]
    failed_steps: int
    cost: CostSum | None
    """None without a price table."""


class RunPage(NamedTuple):
    """A page of runs, with what the steps of each add, by (trace id, run id)."""

    page: Page[RunRecord]
    sums: dict[tuple[str, str], RunSums]


class StepSample(NamedTuple):
    """What the statistics need of a step. Durations are nanoseconds."""

    start_ns: int
    status: str
    model: str | None
    agent: str | None
    prompt_tokens: int
    completion_tokens: int
    step_ns: int | None
    llm_ns: int | None
    cost: Cost | None
    """None without a price table."""


class PageStore(StepStore):
    """A ``StepStore`` with what the pages need. Threads share it."""

    def __init__(self, url: DatabaseURL, deadline_s: float = DEADLINE_S, *, organization_id: str | None = None) -> None:
        super().__init__(url, organization_id=organization_id, actor="viewer")
        self.price = installed_price_table()
        self._outlines: OrderedDict[str, Outline] = OrderedDict()
        self._trace_cost: tuple[Outline, CostSum | None] | None = None
        self._lock = threading.Lock()
        self._finder = Finder(self._engine, self._writing)
        sqlite = self._engine.dialect.name == "sqlite"

        def begin(conn: Connection) -> None:
            if sqlite:
                until = time.monotonic() + deadline_s
                driver: Any = conn.connection.driver_connection
                driver.set_progress_handler(lambda: time.monotonic() > until, _INSTRUCTIONS)
            else:
                conn.exec_driver_sql(f"SET LOCAL statement_timeout = {int(deadline_s * 1000)}")

        event.listen(self._engine, "begin", begin)

    def find_abandoned(self) -> None:
        """Record what processes that are gone left open, if it is time to look."""
        self._finder.look()

    def version(self, trace_id: str) -> tuple[int, int] | None:
        """(epoch, revision) of the trace with this whole id, which change with every new fact; None without one."""
        return self._run(outline.version, trace_id, self._organization_id)

    def outline(self, trace_id: str) -> Outline:
        """The outline of a trace; ``trace_id`` may be cut to a unique prefix. Raises what ``find_trace`` does."""
        trace_id = self.find_trace(trace_id)
        with self._lock:
            kept = self._outlines.get(trace_id)
        if kept is not None and kept.version == self.version(trace_id):
            return kept
        made = self._run(outline.outline, trace_id, self._organization_id)
        with self._lock:
            self._outlines[trace_id] = made
            self._outlines.move_to_end(trace_id)
            while len(self._outlines) > 1 and sum(len(each.rows) for each in self._outlines.values()) > _CACHED_ROWS:
                self._outlines.popitem(last=False)
        return made

    def traces_named(self, prefix: str) -> Sequence[str]:
        """The ids of the traces that begin so, at most ``MAX_NAMED``; ``prefix`` has 4 to 32 hexadecimal digits."""
        return self._run(reads.traces_named, filters.check_trace_prefix(prefix), MAX_NAMED, self._organization_id)

    def span(self, trace_id: str, span_id: str) -> StoredSpan:
        """One span with all that it holds. Raises ``NotFoundError``."""
        return self._run(outline.span, trace_id, span_id, self._organization_id)

    def run_page(self, which: RunFilter, after: str | None, limit: int) -> RunPage:
        """The page that ``runs`` gives, newest first, with what it takes to show it."""
        return self._run(_run_page, self._within(which), after, limit, self.price, self._organization_id)

    def samples(self, since_ns: int | None) -> tuple[list[StepSample], tuple[ToolStatsRecord, ...]]:
        """The newest steps begun since then, oldest first, and what the tools called since then amount to."""
        own = self._organization_id
        return self._run(
            lambda conn: (
                _step_samples(conn, since_ns, self.price, own),
                tool_stats(conn, since_ns, organization_id=own),
            )
        )

    def tool_stats(
        self, after_ns: int | None, before_ns: int | None, service: str | None
    ) -> tuple[ToolStatsRecord, ...]:
        """``store.tools.tool_stats``."""
        return self._run(tool_stats, after_ns, before_ns, service, self._organization_id)

    def trace_cost(self, outline: Outline) -> CostSum | None:
        """What a trace cost. That of the last one is kept: while it is live it is asked for every second."""
        kept = self._trace_cost
        if kept is None or kept[0] is not outline:
            kept = self._trace_cost = (outline, self.cost(outline.steps))
        return kept[1]

    def cost(self, steps: Iterable[OutlineStep]) -> CostSum | None:
        """What steps cost; None without a price table."""
        if self.price is None:
            return None
        total = CostSum()
        for step in steps:
            total.add(
                self.price(
                    step.model,
                    step.provider_name,
                    step.prompt_tokens,
                    step.completion_tokens,
                    step.cached_input_tokens,
                    step.cache_write_tokens,
                    utc_datetime(step.start_ns or 0),
                )
            )
        return total


def _run_page(
    conn: Connection, which: RunFilter, after: str | None, limit: int, price: Price | None, organization_id: str | None
) -> RunPage:
    page = reads.runs(conn, which, after, limit, "newest")
    return RunPage(page, _run_sums(conn, page.items, price, organization_id))


_PRICED = (
    STEPS.c.model,
    STEPS.c.provider_name,
    STEPS.c.prompt_tokens,
    STEPS.c.completion_tokens,
    STEPS.c.cached_input_tokens,
    STEPS.c.cache_write_tokens,
    STEPS.c.created_at,
)
"""What a price needs, in its order."""


def _run_sums(
    conn: Connection, runs: Sequence[RunRecord], price: Price | None, organization_id: str | None
) -> dict[tuple[str, str], RunSums]:
    models: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    failed: dict[tuple[str, str], int] = defaultdict(int)
    costs: dict[tuple[str, str], CostSum] = defaultdict(CostSum)
    shown = {(run.trace_id, run.id) for run in runs}
    query = (
        select(STEPS.c.trace_id, STEPS.c.run_id, STEPS.c.status, *_PRICED)
        .where(STEPS.c.run_id.in_(sorted({run.id for run in runs})))
        .order_by(STEPS.c.created_at)
    )
    if organization_id is not None:
        query = query.where(STEPS.c.organization_id == organization_id)
    for trace_id, run_id, status, model, *priced in conn.execute(query):
        key = (trace_id, run_id)
        if key in shown:
            if model:
                models[key][model] = None
            failed[key] += status == "failed"
            if price is not None:
                costs[key].add(price(model, *priced))
    return {key: RunSums(tuple(models[key]), failed[key], None if price is None else costs[key]) for key in shown}


def _step_samples(
    conn: Connection, since_ns: int | None, price: Price | None, organization_id: str | None
) -> list[StepSample]:
    times = (METRICS.c.step_ns, METRICS.c.llm_request_ns)
    query = (
        select(STEPS.c.status, STEPS.c.agent_name, *times, *_PRICED)
        .select_from(STEPS_WITH_METRICS)
        .order_by(STEPS.c.created_at.desc())
        .limit(MAX_SAMPLES)
    )
    if since_ns is not None:
        query = query.where(STEPS.c.created_at >= utc_datetime(since_ns))
    if organization_id is not None:
        query = query.where(STEPS.c.organization_id == organization_id)
    found = [
        StepSample(
            start_ns=int(at.timestamp() * 1e6) * 1000,
            status=status,
            model=model,
            agent=agent,
            prompt_tokens=prompt,
            completion_tokens=completion,
            step_ns=step_ns,
            llm_ns=llm_ns,
            cost=None if price is None else price(model, provider, prompt, completion, cached, cache_write, at),
        )
        for (
            status,
            agent,
            step_ns,
            llm_ns,
            model,
            provider,
            prompt,
            completion,
            cached,
            cache_write,
            at,
        ) in conn.execute(query)
    ]
    return found[::-1]
