"""The commands. Each reads its options, asks the store and hands what it got to a renderer."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from step_exporter.cli import (
    audit,
    diff,
    doctor,
    encryption,
    imports,
    keeping,
    row_level_security,
    statistics,
    tables,
    tail,
)
from step_exporter.cli.options import (
    DEFAULT_URL,
    After,
    Agent,
    Content,
    Conversation,
    Db,
    Json,
    Limit,
    Oldest,
    Organization,
    Since,
    TraceOption,
    Until,
    app,
)
from step_exporter.cli.output import console, print_json, show
from step_exporter.cli.text import parse_time
from step_exporter.cli.waterfall import waterfall
from step_exporter.environment import OTEL_EXPORTER_STEPS_URL, keeps_content
from step_exporter.errors import InputError, NotFoundError
from step_exporter.store.engine import display_url
from step_exporter.store.filters import RunFilter, StepFilter
from step_exporter.store.query import StepStore
from step_exporter.store.records import Page

COMMANDS = (audit, diff, doctor, encryption, keeping, row_level_security, statistics, tail)
"""The modules that register the other commands."""


def run(arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code. Errors of the command line itself are shown here, on one line."""
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except typer.TyperException as error:
        if message := error.format_message().strip():  # none where no command was given: the help was shown
            print(f"error: {message.removesuffix('.')}. Try --help.", file=sys.stderr)
        return error.exit_code
    except typer.Abort:
        return 130
    return code if isinstance(code, int) else 0


@app.callback(invoke_without_command=True)
def _program(  # pyright: ignore[reportUnusedFunction]  # registered by its decorator
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if show_version:
        from importlib.metadata import version

        print(version("step_exporter"))
        raise typer.Exit


@app.command()
def demo(db: Db = DEFAULT_URL) -> None:
    """Run a scripted agent, offline, and look at its steps."""
    from step_exporter.demo import run_demo

    trace_id = run_demo(db)
    with StepStore(db) as store:
        show(waterfall(store.trace(trace_id), console().width))
    option = _db_option(db)
    short = trace_id[:8]
    show(
        [
            Text(),
            Text("Next:", style="bold"),
            Text(f"  step-exporter runs{option}"),
            Text(f"  step-exporter trace {short}{option}"),
            Text(f"  step-exporter messages {short}{option}"),
            Text(f"  step-exporter steps --agent local-guide --json{option}"),
        ]
    )


@app.command()
def runs(
    db: Db = DEFAULT_URL,
    agent: Agent = None,
    status: Annotated[str | None, typer.Option(help="created, running, completed, failed or cancelled.")] = None,
    conversation: Conversation = None,
    service: Annotated[str | None, typer.Option(metavar="NAME", help="Service that the run was in.")] = None,
    top: Annotated[bool, typer.Option("--top", help="Only runs that no other run started.")] = False,
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    after: After = None,
    oldest: Oldest = False,
    organization: Organization = None,
    as_json: Json = False,
) -> None:
    """List runs (invocations of agents), newest first."""
    now = datetime.now(UTC)
    which = RunFilter(
        top_level=True if top else None,
        agent_name=agent,
        status=status,
        conversation_id=conversation,
        service_name=service,
        started_after=parse_time("--since", since, now) if since else None,
        started_before=parse_time("--until", until, now) if until else None,
    )
    with StepStore(db, organization_id=organization) as store:
        page = store.runs(which, after=after, limit=limit, order="oldest" if oldest else "newest")
    _show_page(page, tables.runs, as_json)


@app.command()
def steps(
    db: Db = DEFAULT_URL,
    trace: TraceOption = None,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Id of the run.")] = None,
    agent: Agent = None,
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    provider: Annotated[str | None, typer.Option(help="Name of the provider.")] = None,
    status: Annotated[
        str | None, typer.Option(help="pending, running, success, failed, cancelled or abandoned.")
    ] = None,
    error: Annotated[str | None, typer.Option(metavar="TYPE", help="Type of the error.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag that the step carries; each of several.")] = None,
    feedback: Annotated[str | None, typer.Option(help="positive or negative.")] = None,
    conversation: Conversation = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    after: After = None,
    oldest: Oldest = False,
    organization: Organization = None,
    as_json: Json = False,
) -> None:
    """List steps (turns of an agent's loop), newest first."""
    now = datetime.now(UTC)
    if feedback not in (None, "positive", "negative"):
        raise InputError(f"--feedback is positive or negative, not {feedback!r:.40}")
    with StepStore(db, organization_id=organization) as store:
        which = StepFilter(
            trace_ids=[store.find_trace(trace)] if trace else None,
            run_id=run,
            agent_name=agent,
            model=model,
            provider_name=provider,
            status=status,
            error_type=error,
            tags_all=tag or None,
            feedback=feedback,
            conversation_id=conversation,
            started_after=parse_time("--since", since, now) if since else None,
            started_before=parse_time("--until", until, now) if until else None,
        )
        page = store.steps(which, after=after, limit=limit, order="oldest" if oldest else "newest")
    _show_page(page, tables.steps, as_json)


@app.command()
def trace(
    trace_id: Annotated[str, typer.Argument(metavar="TRACE_ID", help="Trace id, or its unique beginning.")],
    db: Db = DEFAULT_URL,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show spans that are no LLM request or tool as well.")
    ] = False,
    organization: Organization = None,
    as_json: Json = False,
) -> None:
    """Show a trace as a waterfall of runs, steps, LLM requests and tools."""
    with StepStore(db, organization_id=organization) as store:
        found = store.trace(trace_id)
    if as_json:
        print_json(found)
    else:
        show(waterfall(found, console().width, show_all=show_all))


@app.command()
def step(
    step_id: Annotated[str, typer.Argument(metavar="STEP_ID", help="Id of the step, or of any of its spans.")],
    db: Db = DEFAULT_URL,
    trace: TraceOption = None,
    organization: Organization = None,
    as_json: Json = False,
) -> None:
    """Show one step in full, with its messages and its error."""
    with StepStore(db, organization_id=organization) as store:
        found = store.step(step_id, trace_id=trace)
        messages = store.messages(trace_id=found.trace_id, step_id=found.id)
    if as_json:
        print_json({**found.to_dict(), "messages": [message.to_dict() for message in messages]})
    else:
        show(tables.step(found, messages))


@app.command()
def messages(
    trace_id: Annotated[str | None, typer.Argument(metavar="[TRACE_ID]", help="Trace id, or its beginning.")] = None,
    db: Db = DEFAULT_URL,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this run.")] = None,
    step: Annotated[str | None, typer.Option(metavar="ID", help="Only those that this step added.")] = None,
    organization: Organization = None,
    as_json: Json = False,
) -> None:
    """Show the messages of a trace, a run or a step, in the order of the conversation."""
    if not (trace_id or run or step):
        raise InputError("which messages? Give a TRACE_ID, --run ID or --step ID")
    with StepStore(db, organization_id=organization) as store:
        found = store.messages(trace_id=trace_id, run_id=run, step_id=step)
        if run and not found:
            trace_ids = [store.find_trace(trace_id)] if trace_id else None
            if not store.runs(RunFilter(run_id=run, trace_ids=trace_ids), limit=1).items:
                raise NotFoundError(f"there is no run {run!r:.100}" + (f" in trace {trace_id}" if trace_id else ""))
    if as_json:
        print_json([message.to_dict() for message in found])
    else:
        show(tables.messages(found))


@app.command(name="import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…",
            help="OTLP/JSON or JSON lines, plain or gzip; - is standard input; *.truth.json is skipped.",
        ),
    ],
    db: Db = DEFAULT_URL,
    content: Content = None,
    as_json: Json = False,
) -> None:
    """Import the spans of OTLP files, as the Collector's file exporter writes them, the log records among them that
    carry messages, and from those of `export` what people set and deleted."""
    summary = imports.import_files(files, db, Console(stderr=True), content=keeps_content(content, "--content"))
    if as_json:
        print_json(summary.to_dict())
    else:
        show([Text(str(summary))])
    if summary.problems:
        raise typer.Exit(1)


@app.command()
def serve(
    db: Db = DEFAULT_URL,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen; 4318 is OTLP's own.")] = 4318,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name that it is reached by; each of several.")
    ] = None,
    content: Content = None,
    organization: Organization = None,
    unsafe_no_token: Annotated[
        bool, typer.Option("--unsafe-no-token", help="Ask nobody for a key: whoever reaches the port reads all.")
    ] = False,
) -> None:
    """Show runs, traces and statistics on a local page, and take spans by OTLP/HTTP. Ctrl-C ends it (exit code 0).

    OTEL_EXPORTER_STEPS_RETENTION_DAYS and OTEL_EXPORTER_STEPS_RETENTION_MAX_BYTES have it delete old traces, every ten
    minutes.
    """
    from step_exporter.cli.serve import serve

    serve(
        db,
        host,
        port,
        names=allow_host or (),
        unsafe_no_token=unsafe_no_token,
        organization_id=organization,
        content=keeps_content(content, "--content"),
    )


def _db_option(url: str) -> str:
    """`` --db URL`` as a shell takes it, without passwords; nothing where a command uses that database anyway."""
    if url == (os.environ.get(OTEL_EXPORTER_STEPS_URL) or DEFAULT_URL):
        return ""
    return f" --db {shlex.quote(display_url(url) if '://' in url else url)}"


def _show_page(page: Page[Any], table: Callable[[Sequence[Any]], Iterable[RenderableType]], as_json: bool) -> None:
    if as_json:
        print_json(page)
        return
    show(table(page.items))
    if page.next:
        show([Text(f"more: add --after {page.next}", style="dim")])
