"""Steps and traces as files: JSON lines, CSV, Parquet, and OTLP/JSON that gives the same rows when imported again."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from sqlalchemy import Connection, Integer, select

from step_exporter.errors import ConfigurationError, InputError, StepExporterError
from step_exporter.otlp.encode import encode_json
from step_exporter.store import organizations, people, reads
from step_exporter.store.conditions import step_conditions
from step_exporter.store.filters import MAX_LIMIT, StepFilter
from step_exporter.store.load import load_people, load_spans, trace_ids
from step_exporter.store.records import StepMetricsRecord, StepRecord

Format = Literal["jsonl", "csv", "parquet", "otlp"]
FORMATS: tuple[Format, ...] = get_args(Format)

Progress = Callable[[int], object]
"""Called now and then with how many steps (traces, for OTLP) are written."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""No room for another file, says the error of the system."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


def export(
    conn: Connection,
    output: str | os.PathLike[str] | BinaryIO,
    format: Format,  # noqa: A002  its name on the command line
    which: StepFilter | None,
    progress: Progress | None,
    organization_id: str | None = None,
) -> int:
    """Write the steps that a filter asks for, oldest first; returns how many. A file appears when it is complete;
    what is no regular file (a pipe, a device) is written to directly. Raises ``InputError`` for a path that cannot be
    opened, ``StepExporterError`` where writing fails, as on a full disk.

    ``otlp`` writes whole traces, one document a line: those with such a step, or without a filter all there are; for
    an organization those that wholly belong to it (``InputError`` for a shared one that the filter names by its id).
    After the spans of a trace comes what people set and deleted of it, if anything, in a line of its own (``people``).
    Without a filter that tells of traces that were deleted as a whole as well; they are not counted, and spans that
    came after are left out.
    """
    if format not in FORMATS:
        raise InputError(f"the formats are {', '.join(FORMATS)}, not {format!r:.40}")
    write = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "otlp": partial(_otlp, organization_id)}[format]
    if not conn.in_transaction():
        conn.begin()  # all pages are of one moment
    with _opened(output) as stream:
        return write(conn, stream, which, progress or (lambda _: None))


@contextmanager
def _opened(output: str | os.PathLike[str] | BinaryIO) -> Generator[BinaryIO]:
    if not isinstance(output, str | os.PathLike):
        yield output
        return
    path = Path(output)
    is_open = False
    try:
        with _replacing(path.resolve()) if _is_replaced(path) else path.open("wb") as stream:
            is_open = True
            yield stream
    except OSError as error:
        # Where nothing can be opened the path is wrong, unless the disk is full; later it is not the asker's fault.
        kind = StepExporterError if is_open or error.errno in _FULL else InputError
        raise kind(f"cannot write {path}: {error.strerror or error}") from error


def _is_replaced(path: Path) -> bool:
    """Whether it is a file, or nothing yet. A pipe or a device is written to: it must stay what it is."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


@contextmanager
def _replacing(path: Path) -> Generator[BinaryIO]:
    """A stream to a new file, which takes the place of the old one when it is complete."""
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as stream:
            yield stream
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _pages(conn: Connection, which: StepFilter | None) -> Iterator[list[StepRecord]]:
    after: str | None = None
    while True:
        page = reads.steps(conn, which or StepFilter(), after, MAX_LIMIT, "oldest")
        yield list(page)
        after = page.next
        if after is None:
            return


def _jsonl(conn: Connection, stream: BinaryIO, which: StepFilter | None, progress: Progress) -> int:
    count = 0
    for page in _pages(conn, which):
        for step in page:
            stream.write(json.dumps(step.to_dict()).encode() + b"\n")
        count += len(page)
        progress(count)
    return count


_METRICS = tuple(
    field.name for field in fields(StepMetricsRecord) if field.name not in {field.name for field in fields(StepRecord)}
)
COLUMNS = (*(field.name for field in fields(StepRecord) if field.name not in ("metrics", "position")), *_METRICS)
"""The columns of CSV and Parquet: those of ``steps``, then those that ``step_metrics`` adds."""
_JSON_COLUMNS = ("completion_tokens_details", "prompt_tokens_details", "tags", "error_data", "flags")


def _flat(step: StepRecord) -> dict[str, Any]:
    """One value a column; JSON as its text."""
    row = {name: getattr(step, name) for name in COLUMNS if name not in _METRICS}
    row |= {name: None if step.metrics is None else getattr(step.metrics, name) for name in _METRICS}
    for name in _JSON_COLUMNS:
        if row[name] is not None:
            row[name] = json.dumps(row[name], ensure_ascii=False, sort_keys=True)
    return row


def _csv(conn: Connection, stream: BinaryIO, which: StepFilter | None, progress: Progress) -> int:
    count = 0
    text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(text, lineterminator="\r\n")  # as RFC 4180 has it
        writer.writerow(COLUMNS)
        for page in _pages(conn, which):
            writer.writerows([_cell(value) for value in _flat(step).values()] for step in page)
            count += len(page)
            progress(count)
    finally:
        text.detach()
    return count


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA) else value
    return value.isoformat() if hasattr(value, "isoformat") else value


def _parquet(conn: Connection, stream: BinaryIO, which: StepFilter | None, progress: Progress) -> int:
    try:
        import pyarrow as pa  # pyright: ignore
        import pyarrow.parquet as pq  # pyright: ignore
    except ModuleNotFoundError as error:
        raise ConfigurationError("Parquet needs one more package: pip install 'step_exporter[parquet]'") from error
    arrow: Any = pa
    columns = {**reads.METRICS.c, **reads.STEPS.c}
    kinds = {int: arrow.int64(), str: arrow.string()}
    schema: Any = arrow.schema(
        (name, arrow.timestamp("us", "UTC") if name.endswith("_at") else kinds[_kind(columns[name])])
        for name in COLUMNS
    )
    count = 0
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:  # pyright: ignore
        for page in _pages(conn, which):
            rows = [_flat(step) for step in page]
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))  # pyright: ignore
            count += len(page)
            progress(count)
    return count


def _kind(column: Any) -> type:
    return int if isinstance(column.type, Integer) else str


def _otlp(
    organization_id: str | None, conn: Connection, stream: BinaryIO, which: StepFilter | None, progress: Progress
) -> int:
    count = 0
    for trace_id in _chosen_traces(conn, which, organization_id):
        said = load_people(conn, [trace_id]).get(trace_id, ())
        # What came late to a deleted trace stays behind: who takes the deletion deletes it.
        spans = [] if people.is_deleted(said) else [span.raw for span in load_spans(conn, trace_id)]
        if spans:
            stream.write(encode_json(spans) + b"\n")
            count += 1
            progress(count)
        if said:
            stream.write(people.encode(said) + b"\n")
    return count


def _chosen_traces(conn: Connection, which: StepFilter | None, organization_id: str | None) -> list[str]:
    """Sorted. Where all are asked for, with those of which nothing is left but that people deleted them."""
    if which is None:
        return sorted({*trace_ids(conn), *people.traces_with_people(conn)})
    trace_id = reads.STEPS.c.trace_id
    query = select(trace_id).where(*step_conditions(which, conn.dialect.name)).distinct()
    if organization_id is not None:
        organizations.check_none_shared(conn, which.trace_ids or (), organization_id)
        query = query.where(organizations.is_whole(trace_id, organization_id))
    chosen = set(conn.scalars(query))
    if organization_id is not None and which == StepFilter(organization_id=organization_id):
        chosen.update(organizations.deleted_traces(conn, organization_id))
    return sorted(chosen)
