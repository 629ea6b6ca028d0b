"""Counts, rates, times, tokens and cost of steps, by group.

Percentiles are exact and by nearest rank: the smallest value that at least p % of the values do not exceed. The values
are sorted here rather than by the database, so that both engines give the same numbers (1,000,000 steps: 8 bytes a
value, 5 values a step).
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, cast, get_args

from sqlalchemy import Connection, Select, null, select

from step_exporter.errors import InputError
from step_exporter.store.conditions import plain_values, step_conditions
from step_exporter.store.cost import CostSum, Price, price_table
from step_exporter.store.filters import StepFilter
from step_exporter.store.kept import IN_PARTS, KeptSelect, Row
from step_exporter.store.reads import METRICS, STEPS, STEPS_WITH_METRICS
from step_exporter.store.records import Record

Group = Literal["model", "provider", "agent", "run", "status", "service", "hour", "day"]
GROUPS: tuple[Group, ...] = get_args(Group)

Key = tuple[str | None, ...]

_COLUMNS = {
    "model": "model",
    "provider": "provider_name",
    "agent": "agent_name",
    "run": "run_id",
    "status": "status",
    "service": "service_name",
}
_TIMES = ("step_ns", "llm_request_ns", "tool_execution_ns", "ttft_ns")
_PRICED = ("model", "provider_name", "cache_write_tokens")
_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_input_tokens", "reasoning_tokens")
_QUERIES: dict[tuple[str | bool, ...], KeptSelect] = {}
"""As ``reads`` keeps those of pages."""


@dataclass(frozen=True, slots=True)
class Percentiles(Record):
    """Exact percentiles of the values that are known."""

    count: int
    """How many steps have a value."""
    p50: int | float
    p95: int | float
    p99: int | float


@dataclass(frozen=True, slots=True)
class StatsRecord(Record):
    """What the steps of one group amount to. Percentiles are None where no step has a value."""

    group: dict[str, str | None]
    """The value of each thing grouped by. Hours and days are UTC: ``2026-01-31T14``, ``2026-01-31``."""
    count: int
    failed: int
    error_rate: float
    """``failed`` / ``count``."""
    step_ns: Percentiles | None
    llm_request_ns: Percentiles | None
    tool_execution_ns: Percentiles | None
    ttft_ns: Percentiles | None
    """Time to the first token, of streamed answers."""
    prompt_tokens: int
    """Cached tokens included."""
    completion_tokens: int
    """Reasoning tokens included."""
    total_tokens: int
    cached_input_tokens: int | None
    """Of the steps of which it is known; None where there is none, as for the next."""
    reasoning_tokens: int | None
    tokens_per_step: Percentiles | None
    tokens_per_second: Percentiles | None
    """Completion tokens per second of LLM time, of each step that has both."""
    cost_usd: float | None
    """What the steps with a known price cost. None where there is none, or cost was not asked for."""
    cost_unknown: dict[str, int]
    """How many steps have no price, by reason."""


def stats(conn: Connection, by: Sequence[Group], which: StepFilter, with_cost: bool) -> tuple[StatsRecord, ...]:
    """The groups, the largest first; equal ones by their values."""
    names = _checked(by)
    price = price_table() if with_cost else None
    groups: defaultdict[Key, _Sums] = defaultdict(_Sums)
    key_of = _key_maker(names, 2 + len(_TIMES) + len(_TOKENS) + (len(_PRICED) if with_cost else 0))
    for found in _parts(conn, names, which, with_cost):
        rows_of: defaultdict[Key, list[Row]] = defaultdict(list)
        for key, row in zip(map(key_of, found), found, strict=True):
            rows_of[key].append(row)
        for key, rows in rows_of.items():
            groups[key].add(rows, price)
    ordered = sorted(groups.items(), key=lambda item: (-item[1].count, [value or "" for value in item[0]]))
    return tuple(sums.record(dict(zip(names, key, strict=True))) for key, sums in ordered)


def _parts(conn: Connection, names: Sequence[Group], which: StepFilter, with_cost: bool) -> Iterator[Sequence[Row]]:
    values = plain_values(which)
    if values is None:
        query = _select(conn, names, which, with_cost)
        return conn.execute(query, execution_options=IN_PARTS).partitions()
    key = (conn.dialect.name, with_cost, *names, "", *values)
    kept = _QUERIES.get(key)
    if kept is None:
        kept = _QUERIES[key] = KeptSelect(_select(conn, names, which, with_cost), conn.dialect)
    return kept.parts(conn, values)


def _select(conn: Connection, names: Sequence[Group], which: StepFilter, with_cost: bool) -> Select[Any]:
    columns = [STEPS.c[_COLUMNS[name]] for name in names if name in _COLUMNS]
    times = [METRICS.c[name] for name in _TIMES]
    tokens = [STEPS.c[name] for name in _TOKENS]
    priced = [STEPS.c[name] for name in _PRICED] if with_cost else []
    is_timed = with_cost or not set(names) <= set(_COLUMNS)  # times cost a third of the query
    created_at = STEPS.c.created_at if is_timed else null()
    query = select(STEPS.c.status, created_at, *times, *tokens, *priced, *columns)
    return query.select_from(STEPS_WITH_METRICS).where(*step_conditions(which, conn.dialect.name))


def _checked(by: Sequence[Group]) -> tuple[Group, ...]:
    names = [by] if isinstance(by, str) else by
    for name in names:
        if name not in GROUPS:
            raise InputError(f"statistics are by {', '.join(GROUPS)}, not {name!r:.40}")
    return cast("tuple[Group, ...]", tuple(dict.fromkeys(names)))


def _key_maker(names: Sequence[Group], first: int) -> Callable[[Row], Key]:
    if set(names) <= set(_COLUMNS):
        return itemgetter(slice(first, None))
    readers: list[Callable[[Row], str | None]] = []
    at = first
    for name in names:
        if name in _COLUMNS:
            readers.append(itemgetter(at))
            at += 1
        else:
            digits = 13 if name == "hour" else 10
            readers.append(lambda row, digits=digits: row[1].isoformat()[:digits])
    return lambda row: tuple([read(row) for read in readers])


class _Sums:
    """What is known of one group so far."""

    def __init__(self) -> None:
        self.count = 0
        self.failed = 0
        self.times: list[array[int]] = [array("q") for _ in _TIMES]
        self.tokens: list[int | None] = [None] * len(_TOKENS)
        self.per_step: array[int] = array("q")
        self.per_second: array[float] = array("d")
        self.cost = CostSum()

    def add(self, rows: Sequence[Row], price: Price | None) -> None:
        """Count steps, column by column: half the time of row by row."""
        columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True))
        times, tokens = columns[2:6], columns[6:11]
        self.count += len(rows)
        self.failed += columns[0].count("failed")
        for values, column in zip(self.times, times, strict=True):
            values.extend([value for value in column if value is not None])
        for at, column in enumerate(tokens):
            known = sum(filter(None, column))
            if known or any(value is not None for value in column):
                self.tokens[at] = (self.tokens[at] or 0) + known
        _, completion, total, *_ = tokens
        self.per_step.extend(filter(None, total))
        self.per_second.extend(
            [count * 1e9 / took for count, took in zip(completion, times[1], strict=True) if count and took]
        )
        if price is not None:
            for row in rows:
                prompt, completion, _, cached, _, model, provider, cache_write = row[6:14]
                self.cost.add(price(model, provider, prompt or 0, completion or 0, cached, cache_write, row[1]))

    def record(self, group: dict[str, str | None]) -> StatsRecord:
        """The sums as a record."""
        step_ns, llm_request_ns, tool_execution_ns, ttft_ns = (percentiles(values) for values in self.times)
        prompt, completion, total, cached, reasoning = self.tokens
        return StatsRecord(
            group=group,
            count=self.count,
            failed=self.failed,
            error_rate=self.failed / self.count,
            step_ns=step_ns,
            llm_request_ns=llm_request_ns,
            tool_execution_ns=tool_execution_ns,
            ttft_ns=ttft_ns,
            prompt_tokens=prompt or 0,
            completion_tokens=completion or 0,
            total_tokens=total or 0,
            cached_input_tokens=cached,
            reasoning_tokens=reasoning,
            tokens_per_step=percentiles(self.per_step),
            tokens_per_second=percentiles(self.per_second),
            cost_usd=None if self.cost.usd is None else float(self.cost.usd),
            cost_unknown=dict(sorted(self.cost.unknown.items())),
        )


def percentiles(values: Sequence[int] | Sequence[float]) -> Percentiles | None:
    """Of the values, in any order; None where there are none."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p95, p99 = (ordered[math.ceil(len(ordered) * p / 100) - 1] for p in (50, 95, 99))
    return Percentiles(len(ordered), p50, p95, p99)
