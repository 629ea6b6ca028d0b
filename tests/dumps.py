"""What a database holds, in a form to compare: every column as the text that the engine gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msgspec.structs import asdict
from sqlalchemy import Engine, Text, cast, delete, select, type_coerce

from step_exporter.models import Base, CanonicalJSON, utc_datetime
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.schema import ensure_schema

TABLES = Base.metadata.tables
DERIVED = ("steps", "step_metrics", "runs", "messages")
FACTS = ("spans", "contents", "resources", "quarantine")
OF_A_TRACE = ("messages", "step_metrics", "steps", "runs", *FACTS, "annotations", "deletions", "traces")
"""Everything but the names that traces share, in an order to delete it in."""
ARRIVAL = frozenset({"updated_at", "revision"})
"""Columns that tell when and in which order something came."""

Dump = dict[str, list[tuple[str | None, ...]]]


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    """An engine on a database that has its tables."""
    engine = create_sync_engine(url)
    try:
        ensure_schema(engine)
        yield engine
    finally:
        engine.dispose()


def dump(engine: Engine, *tables: str) -> Dump:
    """All rows, sorted: of derived tables and of facts, or of some tables. All columns but when they came."""
    found: Dump = {}
    with engine.connect() as conn:
        for name in tables or (*DERIVED, *FACTS):
            left_out = ARRIVAL | ({"id", "created_at"} if name == "quarantine" else set())
            columns = [column for column in TABLES[name].c if column.name not in left_out]
            rows = conn.execute(select(*(cast(column, Text) for column in columns)))
            found[name] = sorted((tuple(row) for row in rows), key=repr)
    return found


def clear(engine: Engine) -> None:
    """Delete every trace."""
    with engine.begin() as conn:
        for name in OF_A_TRACE:
            conn.execute(delete(TABLES[name]))


Row = dict[str, Any]


def rows_by_id(engine: Engine, table: str) -> dict[tuple[str, str], Row]:
    """The rows of a derived table by trace and id, as Python sees them, but JSON as its text."""
    columns = [column for column in TABLES[table].c if column.name != "updated_at"]
    shown = [
        type_coerce(column, Text).label(column.name) if isinstance(column.type, CanonicalJSON) else column
        for column in columns
    ]
    with engine.connect() as conn:
        rows = [dict(row) for row in conn.execute(select(*shown)).mappings()]
    return {(row["trace_id"], row["id"]): row for row in rows}


def as_stored(row: Any) -> Row:
    """A row that was derived, as ``rows_by_id`` gives it once it is stored."""
    fields: Row = asdict(row)
    if "created_ns" in fields:
        fields["created_at"] = utc_datetime(fields.pop("created_ns"))
    return fields
