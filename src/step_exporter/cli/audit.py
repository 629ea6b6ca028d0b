"""``step-exporter audit``: who changed what, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from step_exporter.cli.options import DEFAULT_URL as URL
from step_exporter.cli.options import After, Db, Json, Limit, Oldest, Organization, app
from step_exporter.cli.output import print_json, show
from step_exporter.cli.tables import table, words
from step_exporter.cli.text import UNKNOWN, parse_time, when
from step_exporter.models import canonical_json
from step_exporter.store.filters import ACTIONS, AuditFilter
from step_exporter.store.query import StepStore
from step_exporter.store.records import AuditRecord


@app.command()
def audit(
    db: Db = URL,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="ID", help="Whole id of a trace, which may be gone.")
    ] = None,
    actor: Annotated[str | None, typer.Option(metavar="NAME", help="Who did it.")] = None,
    action: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}."),
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Since: 30m, 2h, 7d, or a date and time.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before: 30m, 2h, 7d, or a date and time.")] = None,
    limit: Limit = 20,
    after: After = None,
    oldest: Oldest = False,
    organization: Organization = None,
    as_json: Json = False,
) -> None:
    """List who changed what: feedback, tags, deletions, pruning, rebuilds. Newest first."""
    now = datetime.now(UTC)
    which = AuditFilter(
        trace_ids=[trace] if trace else None,
        actor=actor,
        action=action,
        since=parse_time("--since", since, now) if since else None,
        until=parse_time("--until", until, now) if until else None,
    )
    with StepStore(db, organization_id=organization) as store:
        page = store.audit(which, after=after, limit=limit, order="oldest" if oldest else "newest")
    if as_json:
        print_json(page)
        return
    show(_table(page.items))
    if page.next:
        show([Text(f"more: add --after {page.next}", style="dim")])


def _table(entries: Sequence[AuditRecord]) -> Iterator[RenderableType]:
    rows = [
        [
            Text(when(entry.at)),
            words(entry.actor),
            Text(entry.action),
            Text(entry.trace_id[:8] if entry.trace_id else UNKNOWN),
            words(entry.subject or UNKNOWN),
            words(_said(entry.details)),
        ]
        for entry in entries
    ]
    headings = ["at", "actor~", "action", "trace", "subject~", "what~"]
    yield table(headings, rows) if rows else Text("nothing was changed", style="dim")


def _said(details: dict[str, Any] | None) -> str:
    """``feedback: null → "positive"``; else each name with its value."""
    parts: list[str] = []
    for name, value in (details or {}).items():
        if isinstance(value, dict):
            parts.append(f"{name}: {canonical_json(value.get('old'))} → {canonical_json(value.get('new'))}")  # pyright: ignore
        elif value is not None:
            parts.append(f"{name}: {value}")
    return ", ".join(parts)
