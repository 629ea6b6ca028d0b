"""``step-exporter tail``: steps as they come and change."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.text import Text

from step_exporter.cli.options import DEFAULT_URL as URL
from step_exporter.cli.options import Agent, Db, Organization, app
from step_exporter.cli.output import show
from step_exporter.cli.text import UNKNOWN, duration, harmless, tokens, when
from step_exporter.cli.waterfall import status_text
from step_exporter.store.filters import StepFilter
from step_exporter.store.following import FollowedStore, Follower
from step_exporter.store.records import StepRecord

MAX_LINES = 1_000
_SHARE = 10
"""A look that takes long is followed by a pause of so many times that: at 1,000,000 traces SQLite needs 0.1 s."""


@app.command()
def tail(
    db: Db = URL,
    agent: Agent = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=MAX_LINES, help="Steps to begin with.")] = 10,
    interval: Annotated[float, typer.Option(min=0.05, metavar="SECONDS", help="How often to look.")] = 0.5,
    seconds: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Stop after so long.")] = None,
    organization: Organization = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one step a line.")] = False,
) -> None:
    """Follow steps live: each is printed when it appears and whenever it changes, those of one commit by their start.
    Ctrl-C ends it.

    Records on the way what processes that are gone left open. The clocks of writers may differ by half a minute.
    """
    ends = None if seconds is None else time.monotonic() + seconds
    which = StepFilter(agent_name=agent)
    with FollowedStore(db, organization_id=organization) as store:
        finder = store.finder()
        finder.look()
        follower = Follower(store, which)
        for step in reversed(list(store.steps(which, limit=max(1, lines)))[:lines]):
            _print(step, as_json)
        took = 0.0
        while True:
            pause = max(interval, _SHARE * took)
            if ends is not None and time.monotonic() + pause > ends:
                return
            time.sleep(pause)
            began = time.monotonic()
            finder.look()
            news = follower.news()
            took = time.monotonic() - began
            for step in news:
                _print(step, as_json)


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
