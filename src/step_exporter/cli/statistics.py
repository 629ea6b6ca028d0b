"""``step-exporter stats``: counts, times, tokens and cost of steps by group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, cast

import typer
from rich.console import RenderableType
from rich.text import Text

from step_exporter.cli.options import DEFAULT_URL as URL
from step_exporter.cli.options import Agent, Db, Json, Organization, Since, Until, app
from step_exporter.cli.output import console, is_piped, print_json, show
from step_exporter.cli.tables import least_width, table, words
from step_exporter.cli.text import UNKNOWN, duration, parse_time
from step_exporter.store.filters import StepFilter
from step_exporter.store.query import StepStore
from step_exporter.store.statistics import GROUPS, Group, Percentiles, StatsRecord

_LEFT_OUT = ("step p50/p95/p99>", "LLM p50/p95>", "tools p50/p95>", "ttft p50/p95>", "tok/s>")
"""Columns that a narrow terminal goes without, the last ones first."""


def _in_words(group: str) -> str:
    return f"{group} (UTC)" if group in ("hour", "day") else group  # times elsewhere are local ones


@app.command()
def stats(
    db: Db = URL,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP", help=f"One of {', '.join(map(_in_words, GROUPS))}; several are combined."),
    ] = None,
    agent: Agent = None,
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Id of the run.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Add US dollars, by the prices of genai-prices.")] = False,
    since: Since = None,
    until: Until = None,
    organization: Organization = None,
    as_json: Json = False,
) -> None:
    """Count steps and sum up their times, tokens and errors, by group (default: model)."""
    now = datetime.now(UTC)
    which = StepFilter(
        agent_name=agent,
        model=model,
        run_id=run,
        started_after=parse_time("--since", since, now) if since else None,
        started_before=parse_time("--until", until, now) if until else None,
    )
    groups = cast("list[Group]", by or ["model"])
    with StepStore(db, organization_id=organization) as store:
        found = store.stats(groups, which, cost=cost)
    if as_json:
        print_json([record.to_dict() for record in found])
    else:
        show(_table(found, groups, cost))


def _table(found: Sequence[StatsRecord], groups: Sequence[str], cost: bool) -> Iterator[RenderableType]:
    headings = [
        *map(_in_words, groups),
        "steps>",
        "failed>",
        "step p50/p95/p99>",
        "LLM p50/p95>",
        "tools p50/p95>",
    ]
    headings += ["ttft p50/p95>", "tokens in → out>", "tok/s>", *(["US$>"] if cost else [])]
    rows = [
        [
            *(words(record.group[name] or UNKNOWN) for name in groups),
            Text(f"{record.count:,}"),
            Text(f"{record.error_rate:.1%}"),
            Text(_times(record.step_ns, with_p99=True)),
            Text(_times(record.llm_request_ns)),
            Text(_times(record.tool_execution_ns)),
            Text(_times(record.ttft_ns)),
            Text(f"{record.prompt_tokens:,} → {record.completion_tokens:,}"),
            Text(UNKNOWN if record.tokens_per_second is None else f"{record.tokens_per_second.p50:.0f}"),
            *([Text(_cost(record))] if cost else []),
        ]
        for record in found
    ]
    if not rows:
        yield Text("no steps", style="dim")
        return
    shown = [place for place, heading in enumerate(headings) if heading not in _LEFT_OUT]
    for heading in _LEFT_OUT:
        more = sorted([*shown, headings.index(heading)])
        if not is_piped() and least_width(*_only(more, headings, rows)) > console().width:
            break
        shown = more
    yield table(*_only(shown, headings, rows))
    if missing := [heading.rstrip(">") for place, heading in enumerate(headings) if place not in shown]:
        yield Text(f"too narrow for {', '.join(missing)}; --json has all", style="dim")
    unknown = sorted({reason for record in found for reason in record.cost_unknown})
    for reason in unknown:
        yield words(f"US$ leaves out steps: {reason}")


def _only(
    places: Sequence[int], headings: Sequence[str], rows: Sequence[Sequence[Text]]
) -> tuple[list[str], list[list[Text]]]:
    """The columns at these places."""
    return [headings[place] for place in places], [[row[place] for place in places] for row in rows]


def _times(values: Percentiles | None, with_p99: bool = False) -> str:
    if values is None:
        return UNKNOWN
    shown = [values.p50, values.p95, *([values.p99] if with_p99 else [])]
    return " / ".join(duration(int(value)) for value in shown)


def _cost(record: StatsRecord) -> str:
    if record.cost_usd is None:
        return UNKNOWN
    return f"{record.cost_usd:,.4f}" + ("+" if record.cost_unknown else "")
