"""``step-exporter import``: OTLP files into the database. Everything in them is recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from sqlalchemy import Engine

from step_exporter.cli.text import count, harmless
from step_exporter.conventions import all_without_content
from step_exporter.conventions.logs import MARKER
from step_exporter.facts import RawSpan
from step_exporter.otlp import Problem, read_file, read_stream
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.schema import ensure_schema

BATCH = 1000
"""Spans in one transaction: its cost is spread thin, and a file of any size is read in bounded memory."""

STANDARD_INPUT = Path("-")
TRUTH_SUFFIX = ".truth.json"
"""What lies beside recordings to score them by, and matches the same pattern in a shell."""


@dataclass
class Summary:
    """What an import did."""

    files: int = 0
    skipped: int = 0
    """``*.truth.json``."""
    spans: int = 0
    """Spans read, those that were there already included."""
    records: int = 0
    """Log records with messages, likewise."""
    quarantined: int = 0
    """Spans that the database could not hold."""
    problems: list[str] = field(default_factory=list[str])
    traces: set[str] = field(default_factory=set[str])

    def __str__(self) -> str:
        """One line for people."""
        what = [count(self.spans, "span")]
        what += [count(self.records, "log record")] if self.records else []
        line = f"imported {' and '.join(what)} of {count(len(self.traces), 'trace')} from {count(self.files, 'file')}"
        extra = [f"{self.skipped:,} skipped"] if self.skipped else []
        extra += [f"{self.quarantined:,} in quarantine"] if self.quarantined else []
        extra += [count(len(self.problems), "problem")] if self.problems else []
        return f"{line} ({', '.join(extra)})" if extra else line

    def to_dict(self) -> dict[str, Any]:
        """The same for programs; ``traces`` is their number."""
        return {**asdict(self), "traces": len(self.traces)}


def import_files(files: Sequence[Path], url: str, stderr: Console, *, content: bool = True) -> Summary:
    """Store the spans of the files, with or without their ``content``; ``-`` is standard input. What is broken is said
    on ``stderr`` and costs the rest nothing."""
    summary = Summary()
    engine = create_sync_engine(url, foreign_keys=False)
    try:
        writer = Writer(engine)
        progress = _progress(stderr)
        with progress if stderr.is_terminal else nullcontext():
            task = progress.add_task("importing", total=len(files))
            for file in files:
                if file.name.endswith(TRUTH_SUFFIX):
                    summary.skipped += 1
                else:
                    _import_file(file, engine, writer, summary, progress, content)
                progress.update(task, advance=1, description=count(summary.spans, "span"))
    finally:
        engine.dispose()
    return summary


def _import_file(
    file: Path, engine: Engine, writer: Writer, summary: Summary, progress: Progress, content: bool
) -> None:
    summary.files += 1
    spans = _good(_read(file), summary, progress)
    for batch in _batches(spans if content else all_without_content(spans)):
        if not summary.traces:  # files without any make no database
            ensure_schema(engine)
        result = writer.write(batch)
        records = sum(MARKER in span.attributes for span in batch)
        summary.records += records
        summary.spans += len(batch) - records
        summary.quarantined += result.quarantined
        summary.traces.update(span.trace_id for span in batch)


def _read(file: Path) -> Iterator[RawSpan | Problem]:
    if file != STANDARD_INPUT:
        yield from read_file(file)
    elif sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  # as after <&-
        yield Problem("cannot be read: it is closed", "standard input")
    else:
        yield from read_stream(cast("BufferedReader", sys.stdin.buffer), "standard input")


def _good(items: Iterable[RawSpan | Problem], summary: Summary, progress: Progress) -> Iterator[RawSpan]:
    for item in items:
        if isinstance(item, Problem):
            summary.problems.append(str(item))
            progress.console.print(Text(f"error: {harmless(str(item))}", style="red"), soft_wrap=True)
        else:
            yield item


def _batches(spans: Iterator[RawSpan]) -> Iterator[list[RawSpan]]:
    while batch := list(islice(spans, BATCH)):
        yield batch


def _progress(stderr: Console) -> Progress:
    """A bar. It shows once it is entered, which only a terminal deserves."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
    )
