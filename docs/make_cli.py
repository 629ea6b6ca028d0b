"""Writes cli.md from the commands: run ``python docs/make_cli.py`` after a change of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from step_exporter.cli.app import app

INTRO = """# The command line

Made by `docs/make_cli.py` from `step_exporter.cli`. Install it with `pip install 'step_exporter[cli]'`.

Every command that reads, `export` aside, takes `--json`; colours are left out when the output is piped or `NO_COLOR` is
set; control characters in names are shown as their escapes. Errors are one line on stderr.
`step-exporter --install-completion` sets up your shell's completion.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | nothing there, or it could not be done; `verify`: there are differences |
| 2 | asked wrongly: an unknown option, a malformed id, a setting that cannot be used |
| 130 | interrupted (`serve` ends with 0) |"""


def commands() -> dict[str, Any]:
    """The commands by name."""
    group: Any = typer.main.get_command(app)
    return dict(sorted(group.commands.items()))


def options(command: Any) -> list[Any]:
    """Its arguments and options, without --help."""
    return [param for param in command.params if param.name != "help"]


def label(param: Any) -> str:
    """As one writes it: ``--db URL``, ``TRACE_ID``."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    names = ", ".join(param.opts)
    shown = names if param.is_flag else f"{names} {param.metavar or param.name.upper()}"
    return shown.replace("|", "\\|")  # a bare one would end the cell of the table


def page() -> str:
    """The whole page, as Markdown."""
    parts = [INTRO]
    for name, command in commands().items():
        parts.append(f"## {name}\n\n{' '.join(command.help.split())}".replace("``", "`"))
        lines = ["| | |", "|---|---|"]
        lines += [f"| `{label(param)}` | {param.help}{_default(param)} |" for param in options(command)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _default(param: Any) -> str:
    shown = param.default
    if param.param_type_name == "argument" or param.is_flag or shown in (None, (), []) or callable(shown):
        return ""
    return f" Default: `{shown}`."


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")
