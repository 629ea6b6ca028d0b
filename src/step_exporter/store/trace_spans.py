"""The spans of a trace as they arrived, and the steps that they belong to.

Which step a span is part of is no column (a late parent would rewrite every span below it), so readers derive
the trace again from its facts: 0.2 ms a span.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from step_exporter.derive import Derivation
from step_exporter.store.load import StoredSpan, load_people, load_spans
from step_exporter.store.records import SpanRecord


def spans_of(conn: Connection, trace_id: str) -> tuple[SpanRecord, ...]:
    """The spans by (start_ns, span_id), each with the step that it is part of."""
    stored = list(load_spans(conn, trace_id))
    derivation = _derive(conn, trace_id, stored)
    records = [_record(span, derivation.step_of(span.row.span_id)) for span in stored]
    records.sort(key=lambda span: (span.start_ns or 0, span.span_id))
    return tuple(records)


def derivation_of(conn: Connection, trace_id: str) -> Derivation:
    """The trace, derived from its facts."""
    return _derive(conn, trace_id, load_spans(conn, trace_id))


def _derive(conn: Connection, trace_id: str, stored: Iterable[StoredSpan]) -> Derivation:
    derivation = Derivation(trace_id)
    derivation.apply([*load_people(conn, [trace_id]).get(trace_id, ()), *(span.facts() for span in stored)])
    return derivation


def _record(span: StoredSpan, step_id: str | None) -> SpanRecord:
    row, raw = span.row, span.raw
    return SpanRecord(
        row.trace_id,
        row.span_id,
        row.parent_span_id,
        raw.name,
        row.kind,
        row.start_ns,
        row.end_ns,
        raw.ended,
        row.status_code,
        raw.status_message,
        row.role,
        row.convention,
        row.service_name,
        step_id,
        raw.attributes,
        raw.events,
        raw.links,
        raw.resource,
        raw.scope,
        raw.trace_flags,
        raw.trace_state,
        raw.parent_is_remote,
        raw.dropped_attributes,
        raw.dropped_events,
        raw.dropped_links,
        raw.process_id,
        raw.abandoned_ns,
        raw.flags,
        raw.collisions,
    )
