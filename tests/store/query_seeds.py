"""Rows to read: databases filled by plain inserts, so that these tests depend on no writer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import asdict
from sqlalchemy import Connection, insert, text

from step_exporter import conventions, models
from step_exporter.conventions import content
from step_exporter.derive import Derivation
from step_exporter.facts import RawSpan
from step_exporter.store import codec

DAY = datetime(2026, 11, 22, tzinfo=UTC)
DAY_NS = int(DAY.timestamp()) * 10**9
TABLES = models.Base.metadata.tables


def at(seconds: float) -> datetime:
    return DAY + timedelta(seconds=seconds)


def trace_id(number: int) -> str:
    """Ids whose first digits differ soon, as random ones do."""
    return f"{number:04x}" + f"{number:028x}"


def put(conn: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        conn.execute(insert(TABLES[table]), [dict(row) for row in rows])


def put_trace(conn: Connection, number: int, **values: Any) -> str:
    row = {"first_ns": DAY_NS, "last_ns": DAY_NS + 10**9} | values
    put(conn, "traces", [{"trace_id": trace_id(number), **row}])
    return trace_id(number)


def put_step(conn: Connection, trace: str, id_: str, seconds: float = 0, **values: Any) -> None:
    """A step with its metrics that began ``seconds`` into the day; ``values`` are columns of either."""
    shared = {name: values.get(name) for name in ("run_id", "agent_id", "organization_id", "project_id")}
    in_metrics = {name: values.pop(name) for name in list(values) if name not in TABLES["steps"].c}
    step = {"span_id": "00000000000000a1", "status": "success", "created_at": at(seconds)} | values
    put(conn, "steps", [{"trace_id": trace, "id": id_, **step}])
    metrics = {"step_start_ns": DAY_NS + round(seconds * 1e9)} | shared | in_metrics
    put(conn, "step_metrics", [{"trace_id": trace, "id": id_, **metrics}])


def put_run(conn: Connection, trace: str, id_: str, seconds: float = 0, **values: Any) -> None:
    row = {"status": "completed", "start_ns": DAY_NS + round(seconds * 1e9), "created_at": at(seconds)} | values
    put(conn, "runs", [{"trace_id": trace, "id": id_, **row}])


def put_message(conn: Connection, trace: str, id_: str, position: int, body: str | None = None, **values: Any) -> None:
    row = {"role": "user", "content_hash": None if body is None else f"hash-{id_}", "position": position} | values
    put(conn, "messages", [{"trace_id": trace, "id": id_, **row}])
    if body is not None:
        put(conn, "contents", [{"trace_id": trace, "hash": f"hash-{id_}", "body": body}])


def put_spans(conn: Connection, raws: Sequence[RawSpan]) -> None:
    """Spans as they are stored: by the codec, content taken out."""
    sources, elements, rows = codec.Sources(), {}, []
    resources: dict[tuple[str, str], str] = {}
    for raw in raws:
        encoded = codec.encode(raw, sources)
        rows.append(encoded.row._asdict())
        found = [element for value in content.values_of(encoded.contents) for element in value.elements]
        elements.update({(raw.trace_id, element.hash): element for element in found})
        resources.update({(raw.trace_id, source.hash): source.body for source in encoded.sources})
    for table, found in {
        "spans": rows,
        "contents": [{"trace_id": trace, **asdict(element)} for (trace, _), element in elements.items()],
        "resources": [{"trace_id": trace, "hash": hash_, "body": body} for (trace, hash_), body in resources.items()],
    }.items():
        if found:  # as text: the JSON columns would encode what is encoded already
            names = ", ".join(found[0])
            conn.execute(
                text(f"INSERT INTO {table} ({names}) VALUES (:{', :'.join(found[0])}) ON CONFLICT DO NOTHING"), found
            )


def llm_span(trace: str, number: int, parent: int | None = None, **values: Any) -> RawSpan:
    """A span with a message in its attributes; its id is the number in hexadecimal."""
    return RawSpan(
        trace,
        f"{number:016x}",
        None if parent is None else f"{parent:016x}",
        values.pop("name", "chat gpt-5"),
        start_ns=values.pop("start_ns", DAY_NS + number),
        end_ns=values.pop("end_ns", DAY_NS + number + 1000),
        **values,
    )


def put_facts(conn: Connection, raws: Sequence[RawSpan]) -> None:
    """Spans of one trace, and the rows that are derived from them."""
    trace = raws[0].trace_id
    put(conn, "traces", [{"trace_id": trace, "first_ns": DAY_NS, "last_ns": DAY_NS}])
    put_spans(conn, raws)
    changes = Derivation(trace).apply([conventions.read(raw, content.take_apart(raw)) for raw in raws])
    for table in ("organizations", "providers"):
        put(conn, table, [{"id": id_, "name": name} for id_, name in getattr(changes, table)])
    for table in ("runs", "steps", "step_metrics", "messages"):
        put(conn, table, [_columns(table, asdict(row)) for row in getattr(changes, table)])


def _columns(table: str, row: dict[str, Any]) -> dict[str, Any]:
    if "created_ns" in row:
        row["created_at"] = models.utc_datetime(row.pop("created_ns"))
    json_columns = [column.name for column in TABLES[table].c if isinstance(column.type, models.CanonicalJSON)]
    return row | {name: json.loads(row[name]) for name in json_columns if row[name] is not None}
