"""The facts of a trace out of the database, read again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, TypeVar, cast

import orjson
from sqlalchemy import Connection, Text, or_, select, type_coerce

from step_exporter.conventions.content import Contents, side_hashes
from step_exporter.facts import Annotation, Content, Deletion, RawSpan, Resource, Scope, SpanFacts
from step_exporter.models import Base, CanonicalJSON
from step_exporter.store.codec import SpanRow, decode, decode_source, has_escapes
from step_exporter.store.encryption import opened_contents, opened_spans, stored_hashes
from step_exporter.store.reading import read

T = TypeVar("T")

_TABLES = Base.metadata.tables
_TRACES, _SPANS, _CONTENTS, _RESOURCES, _ANNOTATIONS, _DELETIONS = (
    _TABLES[name] for name in ("traces", "spans", "contents", "resources", "annotations", "deletions")
)
# JSON columns come as the text that is stored: it is the codec's to read.
_SPAN_COLUMNS: list[Any] = [
    type_coerce(column, Text).label(column.name) if isinstance(column.type, CanonicalJSON) else column
    for column in (_SPANS.c[name] for name in SpanRow._fields)
]
_ANY_PEOPLE = select(or_(select(_ANNOTATIONS.c.trace_id).exists(), select(_DELETIONS.c.trace_id).exists()))
"""Whether anybody has said anything at all: to look for what was said of 50 traces takes 1 ms, this a tenth."""
_MAX_IN = 500
"""Values of one IN."""


class StoredSpan(NamedTuple):
    """A span out of the database."""

    row: SpanRow
    raw: RawSpan
    contents: Contents
    has_escapes: bool

    def facts(self) -> SpanFacts:
        """What it means."""
        return read(self.raw, self.contents, self.has_escapes)


def load_spans(
    conn: Connection, trace_id: str, after: int | None = None, until: int | None = None
) -> Iterator[StoredSpan]:
    """The spans of a trace, decoded: all, or those that came after one revision of it and until another."""
    query = select(*_SPAN_COLUMNS).where(_SPANS.c.trace_id == trace_id)
    if after is not None:
        query = query.where(_SPANS.c.revision > after)
    if until is not None:
        query = query.where(_SPANS.c.revision <= until)
    rows = [SpanRow._make(row) for row in opened_spans(conn, SpanRow._fields, conn.execute(query))]
    return decoded(conn, trace_id, rows, all_content=after is None)


def load_some(conn: Connection, trace_id: str, span_ids: Iterable[str]) -> list[SpanRow]:
    """The rows of some spans of a trace."""
    found: list[SpanRow] = []
    for part in _parts(sorted(span_ids)):
        query = select(*_SPAN_COLUMNS).where(_SPANS.c.trace_id == trace_id, _SPANS.c.span_id.in_(part))
        found.extend(SpanRow._make(row) for row in opened_spans(conn, SpanRow._fields, conn.execute(query)))
    return found


def decoded(
    conn: Connection, trace_id: str, rows: Iterable[SpanRow], *, all_content: bool = False
) -> Iterator[StoredSpan]:
    """The spans of rows, their content read from the database: the trace's (``all_content``) or what they name."""
    rows = list(rows)
    bodies = _load_sources(conn, trace_id)
    sources = {hash_: decode_source(body) for hash_, body in bodies.items()}
    contents = load_contents(conn, trace_id) if all_content else _named_content(conn, trace_id, rows)
    for row in rows:
        yield _decoded(row, sources, bodies, contents)


def load_people(conn: Connection, trace_ids: Iterable[str]) -> dict[str, list[Annotation | Deletion]]:
    """What people set and deleted, by trace."""
    said: dict[str, list[Annotation | Deletion]] = {}
    if not conn.scalar(_ANY_PEOPLE):
        return said
    for part in _parts(trace_ids):
        query = select(_ANNOTATIONS).where(_ANNOTATIONS.c.trace_id.in_(part)).order_by(*_ANNOTATIONS.primary_key)
        for row in conn.execute(query):
            annotation = Annotation(row.trace_id, row.span_id, row.key, row.value, row.set_by, _ns(row.set_at))
            said.setdefault(row.trace_id, []).append(annotation)
        query = select(_DELETIONS).where(_DELETIONS.c.trace_id.in_(part)).order_by(*_DELETIONS.primary_key)
        for row in conn.execute(query):
            deletion = Deletion(row.trace_id, row.kind, row.id, row.deleted_by, _ns(row.deleted_at))
            said.setdefault(row.trace_id, []).append(deletion)
    return said


def trace_ids(conn: Connection) -> list[str]:
    """Every trace there is."""
    return list(conn.scalars(select(_TRACES.c.trace_id).order_by(_TRACES.c.trace_id)))


def _decoded(
    row: SpanRow, sources: Mapping[str, Resource | Scope], bodies: Mapping[str, str], contents: Mapping[str, Content]
) -> StoredSpan:
    raw, taken = decode(row, sources, contents)
    return StoredSpan(row, raw, taken, has_escapes(row, bodies.get(row.resource or "", ""), taken))


def _load_sources(conn: Connection, trace_id: str) -> dict[str, str]:
    body = type_coerce(_RESOURCES.c.body, Text)
    query = select(_RESOURCES.c.hash, body).where(_RESOURCES.c.trace_id == trace_id)
    return {row[0]: row[1] for row in conn.execute(query)}


def load_contents(conn: Connection, trace_id: str) -> dict[str, Content]:
    """All content of a trace by its hash."""
    query = select(_CONTENTS.c.hash, _CONTENTS.c.parent_hash, _CONTENTS.c.body).where(_CONTENTS.c.trace_id == trace_id)
    return {content.hash: content for content in opened_contents(conn, trace_id, conn.execute(query))}


def _named_content(conn: Connection, trace_id: str, rows: Iterable[SpanRow]) -> dict[str, Content]:
    """The elements that rows name and those before them, by a walk along the chains."""
    names = {name for row in rows for text in (row.attributes, row.events) if text for name in _names(text)}
    names = stored_hashes(conn, names)
    found: dict[str, Content] = {}
    for part in _parts(sorted(names)):
        columns = (_CONTENTS.c.hash, _CONTENTS.c.parent_hash, _CONTENTS.c.body)
        walk = select(*columns).where(_CONTENTS.c.trace_id == trace_id, _CONTENTS.c.hash.in_(part)).cte(recursive=True)
        before = select(*columns).where(_CONTENTS.c.trace_id == trace_id, _CONTENTS.c.hash == walk.c.parent_hash)
        for content in opened_contents(conn, trace_id, conn.execute(select(walk.union(before)))):
            found[content.hash] = content
    return found


def _names(text: str) -> Iterator[str]:
    """The hashes that placeholders of a stored text name."""
    if '{"$content":' not in text:
        return
    stored: Any = orjson.loads(text)
    groups: list[dict[str, Any]] = [stored] if text[0] == "{" else [event["attributes"] for event in stored]
    for group in groups:
        for value in group.values():
            placeholder = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
            if len(placeholder) == 1 and "$content" in placeholder:
                last, *form = placeholder["$content"]
                yield last
                yield from side_hashes(tuple(form))


def _ns(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def _parts(values: Iterable[T]) -> Iterator[list[T]]:
    values = iter(values)
    while part := list(islice(values, _MAX_IN)):
        yield part
