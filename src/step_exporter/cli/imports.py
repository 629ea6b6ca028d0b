"""``step-exporter import``: OTLP files into the database. Everything in them is recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from step_exporter.facts import Annotation, Deletion, RawSpan
from step_exporter.otlp import Extension, Problem, read_file, read_stream
from step_exporter.otlp.files import Item
from step_exporter.store import audit, people
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.schema import ensure_schema

Good = RawSpan | Annotation | Deletion

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
    annotations: int = 0
    """Feedback, tags and transaction ids that people set, likewise."""
    deletions: int = 0
    """Steps, runs and traces that people deleted, likewise."""
    quarantined: int = 0
    """Spans that the database could not hold."""
    problems: list[str] = field(default_factory=list[str])
    traces: set[str] = field(default_factory=set[str])

    def __str__(self) -> str:
        """One line for people."""
        what = count(self.spans, "span")
        others = {"log record": self.records, "annotation": self.annotations, "deletion": self.deletions}
        *more, last = [what, *(count(number, name) for name, number in others.items() if number)]
        what = f"{', '.join(more)} and {last}" if more else last
        line = f"imported {what} of {count(len(self.traces), 'trace')} from {count(self.files, 'file')}"
        extra = [f"{self.skipped:,} skipped"] if self.skipped else []
        extra += [f"{self.quarantined:,} in quarantine"] if self.quarantined else []
        extra += [count(len(self.problems), "problem")] if self.problems else []
        return f"{line} ({', '.join(extra)})" if extra else line

    def to_dict(self) -> dict[str, Any]:
        """The same for programs; ``traces`` is their number."""
        return {**asdict(self), "traces": len(self.traces)}


def import_files(files: Sequence[Path], url: str, stderr: Console, *, content: bool = True) -> Summary:
    """Store what is in the files, with or without the ``content`` of spans; ``-`` is standard input. What is broken is
    said on ``stderr`` and costs the rest nothing."""
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

    def complain(problem: Problem) -> None:
        summary.problems.append(str(problem))
        progress.console.print(Text(f"error: {harmless(str(problem))}", style="red"), soft_wrap=True)

    for batch in _batches(_good(_read(file), complain)):
        if not summary.traces:  # files without any make no database
            ensure_schema(engine)
        spans = [item for item in batch if isinstance(item, RawSpan)]
        if not content:
            spans = list(all_without_content(spans))
        said = [item for item in batch if not isinstance(item, RawSpan)]
        result = writer.write(spans)
        for problem in people.take(engine, audit.current_user(), said) if said else ():
            complain(problem._replace(source=_name(file)))
        records = sum(MARKER in span.attributes for span in spans)
        annotations = sum(isinstance(fact, Annotation) for fact in said)
        summary.spans += len(spans) - records
        summary.records += records
        summary.annotations += annotations
        summary.deletions += len(said) - annotations
        summary.quarantined += result.quarantined
        summary.traces.update(item.trace_id for item in (*spans, *said))


def _name(file: Path) -> str:
    return "standard input" if file == STANDARD_INPUT else str(file)


def _read(file: Path) -> Iterator[Item]:
    if file != STANDARD_INPUT:
        yield from read_file(file)
    elif sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  # as after <&-
        yield Problem("cannot be read: it is closed", _name(file))
    else:
        yield from read_stream(cast("BufferedReader", sys.stdin.buffer), _name(file))


def _good(items: Iterable[Item], complain: Callable[[Problem], None]) -> Iterator[Good]:
    for item in items:
        if isinstance(item, Extension):
            for fact in people.decode(item.fields):
                if isinstance(fact, Problem):
                    complain(fact._replace(source=item.source, line=item.line))
                else:
                    yield fact
        elif isinstance(item, Problem):
            complain(item)
        else:
            yield item


def _batches(items: Iterator[Good]) -> Iterator[list[Good]]:
    while batch := list(islice(items, BATCH)):
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
