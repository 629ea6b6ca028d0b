"""What commands print: rendered lines on a terminal, JSON for programs, bars on stderr for what takes long."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from step_exporter.store.records import Record

PIPED_WIDTH = 140
"""Cells in a line where no terminal says how wide it is."""


def console() -> Console:
    """Standard output. Rich leaves the colours out where it is no terminal, or where NO_COLOR is set."""
    return Console(width=PIPED_WIDTH if is_piped() else None, highlight=False, soft_wrap=True)


def is_piped() -> bool:
    """Whether no terminal says how wide lines are."""
    return not sys.stdout.isatty() and "COLUMNS" not in os.environ


def show(lines: Iterable[RenderableType]) -> None:
    """Print lines and tables."""
    out = console()
    for line in lines:
        out.print(line)


def print_json(value: Any) -> None:
    """ASCII only, so that no terminal or encoding changes it."""
    print(json.dumps(value.to_dict() if isinstance(value, Record) else value, indent=2))


@contextmanager
def progress(doing: str) -> Generator[Callable[[int, int | None], None]]:
    """A bar on stderr, if that is a terminal: call what this gives with how many are done, of how many."""
    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield lambda done, total=None: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)
