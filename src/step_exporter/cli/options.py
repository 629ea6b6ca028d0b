"""The program, and the options that several of its commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from step_exporter.environment import OTEL_EXPORTER_STEPS_CONTENT, OTEL_EXPORTER_STEPS_URL

DEFAULT_URL = "sqlite:///steps.db"
ORGANIZATION_VARIABLE = "STEP_EXPORTER_ORGANIZATION"

app = typer.Typer(
    name="step-exporter",
    help="Steps of AI agents, from OpenTelemetry spans, in your SQL database.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Db = Annotated[
    str,
    typer.Option(
        "--db",
        metavar="URL",
        envvar=OTEL_EXPORTER_STEPS_URL,
        help="sqlite:///steps.db, a file's path, or postgresql://user@host/name.",
    ),
]
Organization = Annotated[
    str | None,
    typer.Option(
        "--organization", metavar="ID", envvar=ORGANIZATION_VARIABLE, help="Only what belongs to this organization."
    ),
]
Content = Annotated[
    str | None,
    typer.Option(
        "--content",
        metavar="[on|off]",
        help="off stores no prompt, answer, tool argument or result, no error message and no traceback. Else as "
        f"{OTEL_EXPORTER_STEPS_CONTENT} says, else on.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: times in ns, nothing cut.")]
TraceOption = Annotated[str | None, typer.Option("--trace", metavar="ID", help="Trace id, or its unique beginning.")]
Agent = Annotated[str | None, typer.Option(help="Name of the agent.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Begun since: 30m, 2h, 7d, or a date and time.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Begun before: 30m, 2h, 7d, or a date and time.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Rows on a page.")]
After = Annotated[str | None, typer.Option(metavar="CURSOR", help="Continue after the page that named this.")]
Oldest = Annotated[bool, typer.Option("--oldest", help="Oldest first.")]
Conversation = Annotated[str | None, typer.Option(metavar="ID", help="Conversation (session) of the run.")]
