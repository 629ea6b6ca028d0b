"""``step-exporter tail``: steps as they come and change."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Annotated

import typer
from rich.text import Text

from step_exporter.cli.options import DEFAULT_URL as URL
from step_exporter.cli.options import Agent, Db, app
from step_exporter.cli.output import show
from step_exporter.cli.text import UNKNOWN, duration, harmless, tokens, when
from step_exporter.cli.waterfall import status_text
from step_exporter.store.filters import StepFilter
from step_exporter.store.query import StepStore
from step_exporter.store.records import StepRecord

WATCHED = 200
"""The newest steps are looked at; one that is older shows no further change."""


@app.command()
def tail(
    db: Db = URL,
    agent: Agent = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=WATCHED, help="Steps to begin with.")] = 10,
    interval: Annotated[float, typer.Option(min=0.05, metavar="SECONDS", help="How often to look.")] = 0.5,
    seconds: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Stop after so long.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one step a line.")] = False,
) -> None:
    """Follow steps live: each is printed when it appears and whenever it changes. Ctrl-C ends it."""
    ends = None if seconds is None else time.monotonic() + seconds
    seen: dict[tuple[str, str], datetime] = {}
    begun = False
    with StepStore(db) as store:
        while True:
            newest = list(store.steps(StepFilter(agent_name=agent), limit=WATCHED))
            news = [step for step in reversed(newest) if seen.get((step.trace_id, step.id)) != step.updated_at]
            seen = {(step.trace_id, step.id): step.updated_at for step in newest}
            for step in news if begun else news[len(news) - min(lines, len(news)) :]:
                _print(step, as_json)
            begun = True
            if ends is not None and time.monotonic() + interval > ends:
                return
            time.sleep(interval)


def _print(step: StepRecord, as_json: bool) -> None:
    if as_json:
        print(json.dumps(step.to_dict()), flush=True)
        return
    line = Text(f"{when(step.created_at)}  {step.trace_id[:8]}  ").append_text(status_text(step.status))
    line.append(f"  {harmless(step.agent_name or UNKNOWN)}  {harmless(step.model or UNKNOWN)}")
    line.append(f"  {tokens(step.prompt_tokens, step.completion_tokens)}")
    line.append(f"  {duration(step.metrics and step.metrics.step_ns)}")
    if step.error_type:
        line.append(f"  {harmless(step.error_type)}", style="red")
    show([line])
