"""The commands that change or keep a database: ``feedback``, ``export``, ``prune``, ``rebuild``, ``verify``,
``migrate``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.text import Text

from step_exporter.cli.options import DEFAULT_URL as URL
from step_exporter.cli.options import Agent, Db, Json, Organization, Since, TraceOption, Until, app
from step_exporter.cli.output import print_json, progress, show
from step_exporter.cli.text import count, harmless, parse_time
from step_exporter.errors import InputError
from step_exporter.store.engine import create_sync_engine, sqlite_path
from step_exporter.store.export import FORMATS, Format
from step_exporter.store.filters import StepFilter
from step_exporter.store.query import StepStore
from step_exporter.store.retention import as_bytes
from step_exporter.store.schema import count_partitions, ensure_schema, schema_version

SHOWN = 20
"""Differences that ``verify`` prints; --json has all."""

Traces = Annotated[list[str] | None, typer.Option("--trace", metavar="ID", help="Only this trace; may be repeated.")]
Quiet = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def feedback(
    step_id: Annotated[str, typer.Argument(metavar="STEP_ID", help="Id of the step, or of any of its spans.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="positive, negative or none.")],
    db: Db = URL,
    trace: TraceOption = None,
    tag: Annotated[list[str] | None, typer.Option(help="Set the tags of the step; may be repeated.")] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take all tags of the step away.")] = False,
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who says so.")] = None,
    organization: Organization = None,
    as_json: Json = False,
) -> None:
    """Say what you think of a step. It stays through late spans and rebuilds."""
    if value not in ("positive", "negative", "none"):
        raise InputError(f"feedback is positive, negative or none, not {value!r:.40}")
    if tag and no_tags:
        raise InputError("--tag sets tags and --no-tags takes all away: give one of them")
    tags = [] if no_tags else tag
    with StepStore(db, organization_id=organization) as store:
        store.feedback(step_id, None if value == "none" else value, tags, trace_id=trace, by=by)  # pyright: ignore[reportArgumentType]
        found = store.step(step_id, trace_id=trace)
    if as_json:
        print_json(found)
    else:
        now = ", ".join(found.tags or ()) or "none"
        said = f"step {found.id}: feedback {found.feedback or 'none'}, tags {now}"
        show([Text(harmless(said))])


@app.command()
def export(
    db: Db = URL,
    format: Annotated[str, typer.Option(metavar="FORMAT", help=f"{', '.join(FORMATS)}.")] = "jsonl",  # noqa: A002
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="File to write; - is standard output.")
    ] = "-",
    trace: TraceOption = None,
    agent: Agent = None,
    since: Since = None,
    until: Until = None,
    organization: Organization = None,
) -> None:
    """Write steps as JSON lines, CSV or Parquet; or whole traces as OTLP/JSON, with what people set and deleted, for
    `import`."""
    now = datetime.now(UTC)
    if output == "-" and format == "parquet":
        raise InputError("Parquet is no text: give --output FILE")
    with StepStore(db, organization_id=organization) as store, progress("exporting") as tell:
        which = None
        if trace or agent or since or until:
            which = StepFilter(
                trace_ids=[store.find_trace(trace)] if trace else None,
                agent_name=agent,
                started_after=parse_time("--since", since, now) if since else None,
                started_before=parse_time("--until", until, now) if until else None,
            )
        to: Any = sys.stdout.buffer if output == "-" else Path(output)
        done = store.export(to, cast(Format, format), which, progress=lambda done: tell(done, None))
    if output != "-":
        show([Text(f"{count(done, 'trace' if format == 'otlp' else 'step')} written to {harmless(output)}")])


@app.command()
def prune(
    db: Db = URL,
    older_than: Annotated[
        str | None, typer.Option(metavar="TIME", help="Traces that ended before: 30d, or a date.")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Then the oldest, down to 500MB, 2GB, …")
    ] = None,
    without_steps: Annotated[
        bool, typer.Option("--without-steps", help="Only traces from which no step follows.")
    ] = False,
    organization: Organization = None,
    as_json: Quiet = False,
) -> None:
    """Delete old traces, in small transactions, while writers go on. A SQLite file shrinks."""
    limit = parse_time("--older-than", older_than, datetime.now(UTC)) if older_than else None
    size = as_bytes("--max-bytes", max_bytes) if max_bytes else None
    if limit is None and size is None and not without_steps:
        raise InputError("prune what? Give --older-than, --max-bytes or --without-steps")
    with StepStore(db, organization_id=organization) as store, progress("pruning") as tell:
        pruned = store.prune(
            older_than=limit, max_bytes=size, without_steps=without_steps, progress=lambda done: tell(done, None)
        )
    if as_json:
        print_json(pruned._asdict())
    else:
        sizes = f"{pruned.bytes_before:,} → {pruned.bytes_after:,} bytes in use"
        show([Text(f"{count(pruned.traces, 'trace')} deleted, {sizes}")])


@app.command()
def rebuild(db: Db = URL, trace: Traces = None, organization: Organization = None, as_json: Quiet = False) -> None:
    """Derive steps, runs and messages again from the spans. What people set and deleted stays."""
    with StepStore(db, organization_id=organization) as store, progress("rebuilding") as tell:
        done = store.rebuild([store.find_trace(one) for one in trace] if trace else None, tell)
    if as_json:
        print_json({"traces": done})
    else:
        show([Text(f"{count(done, 'trace')} derived again")])


@app.command()
def verify(db: Db = URL, trace: Traces = None, organization: Organization = None, as_json: Quiet = False) -> None:
    """Compare steps, runs and messages with what the spans give. Exit code 1 if anything differs."""
    with StepStore(db, organization_id=organization) as store, progress("verifying") as tell:
        found = store.verify([store.find_trace(one) for one in trace] if trace else None, tell)
    if as_json:
        print_json([{name: _plain(value) for name, value in difference._asdict().items()} for difference in found])
    else:
        for difference in found[:SHOWN]:
            what = (
                "is missing"
                if difference.stored is None
                else "should not be there"
                if difference.derived is None
                else f"differs in {', '.join(difference.stored)}"
            )
            show([Text(f"{difference.trace_id} {difference.table} {harmless(difference.id)} {what}", style="red")])
        mend = "; step-exporter rebuild mends them" if found else ""
        show([Text(f"{count(len(found), 'difference')}{mend}")])
    if found:
        raise typer.Exit(1)


@app.command()
def migrate(
    db: Db = URL,
    partitions: Annotated[
        int | None, typer.Option(metavar="N", help="PostgreSQL, a new database: so many partitions of each table.")
    ] = None,
    as_json: Quiet = False,
) -> None:
    """Make the tables, or bring those of an older version up to date."""
    path = sqlite_path(db)
    engine = create_sync_engine(db)
    try:
        ensure_schema(engine, partitions)
        with engine.connect() as conn:
            version, count_ = schema_version(conn), count_partitions(conn)
    finally:
        engine.dispose()
    if as_json:
        print_json({"version": version, "partitions": count_})
    else:
        place = f" in {path}" if path else f", {count(count_, 'partition')}" if count_ else ""
        show([Text(f"schema version {version}{place}")])


def _plain(value: Any) -> Any:
    """A row of ``verify`` with its times as text."""
    if isinstance(value, dict):
        row = cast("dict[str, Any]", value)
        return {name: item.isoformat() if isinstance(item, datetime) else item for name, item in row.items()}
    return value
