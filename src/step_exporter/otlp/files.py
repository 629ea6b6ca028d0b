"""Files of OTLP/JSON: one document, pretty-printed or not, or one a line; plain or gzip.

The Collector's file exporter and the SDK's json-file exporter write one ``TracesData`` a line; the former may write
``LogsData`` among them, whose records with messages are read as ``logs`` has it. Metrics are passed over.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from step_exporter.errors import InputError
from step_exporter.facts import RawSpan
from step_exporter.otlp.decode import PEOPLE, Problem, decode_document, is_document, parse
from step_exporter.otlp.logs import decode_logs_document

GZIP_MAGIC = b"\x1f"


class Extension(NamedTuple):
    """What a document has in the field that OTLP does not know."""

    fields: Any
    source: str
    line: int | None


Item = RawSpan | Problem | Extension


def read_file(path: str | Path) -> Iterator[Item]:
    """The spans (and log records, as spans) of a file, read line by line; what cannot be read is a ``Problem`` with
    file and line.

    Never raises for what is in the file, nor if it cannot be opened.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            yield from read_stream(file, name)
    except OSError as error:  # it cannot be opened
        yield _unreadable(error, name)


def read_stream(stream: BufferedReader, source: str) -> Iterator[Item]:
    """The spans of an open file, or of what comes through a pipe, as those of a file. ``source`` is its name in
    ``Problem``. Never raises for what is in it."""
    try:
        # The first byte tells: a pipe may not have given more yet, and no text begins with it.
        if stream.peek(1).startswith(GZIP_MAGIC):
            with gzip.open(stream) as unzipped:
                yield from _read(unzipped, source)
        else:
            yield from _read(stream, source)
    except (OSError, EOFError, zlib.error) as error:
        yield _unreadable(error, source)


def _unreadable(error: OSError | EOFError | zlib.error, source: str) -> Problem:
    return Problem(f"cannot be read: {getattr(error, 'strerror', None) or error}", source)


def _read(stream: Iterable[bytes], source: str) -> Iterator[Item]:
    lines = enumerate(stream, 1)
    head: list[tuple[int, bytes]] = []
    for number, raw_line in lines:
        line = raw_line.removeprefix(codecs.BOM_UTF8) if number == 1 else raw_line
        document = _whole_document(line)
        if document is not None:
            yield from _read_lines(head, source)
            yield from _spans(document, source, number)
            yield from _read_lines(lines, source)
            return
        head.append((number, line))
    # No line is a document by itself: all of them are one, or none is any.
    text = b"".join(line for _, line in head)
    if text.strip():
        yield from _read_text(text, source, None)


def _read_lines(lines: Iterable[tuple[int, bytes]], source: str) -> Iterator[Item]:
    for number, line in lines:
        if line.strip():
            yield from _read_text(line, source, number)


def _read_text(text: bytes, source: str, line: int | None) -> Iterator[Item]:
    try:
        yield from _spans(parse(text), source, line)
    except InputError as error:
        yield Problem(str(error), source, line)


def _spans(document: Any, source: str, line: int | None) -> Iterator[Item]:
    for item in chain(decode_document(document), decode_logs_document(document)):
        yield item._replace(source=source, line=line) if isinstance(item, Problem) else item
    if PEOPLE in document:
        yield Extension(document[PEOPLE], source, line)


def _whole_document(line: bytes) -> Any:
    """The document that a line is by itself, else None. No line of a pretty-printed one is."""
    if b'"resource' not in line or not line.lstrip().startswith(b"{"):
        return None
    try:
        document = parse(line)
    except InputError:
        return None
    return document if is_document(document) else None
