"""``RawSpan`` to OTLP/JSON, strict enough for any receiver: hexadecimal ids, 64-bit integers as strings."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, cast

import orjson

from step_exporter.facts import HAS_IS_REMOTE, IS_REMOTE, AttributeValue, Event, Link, RawSpan
from step_exporter.otlp.decode import KINDS, STATUS_CODES

Json = dict[str, Any]


def encode_json(spans: Iterable[RawSpan]) -> bytes:
    """One OTLP/JSON document (``TracesData``) of the spans, in their order.

    OTLP has no open spans: one that has not ended is written without an end, and read as ended at an unknown time.
    """
    document = to_document(spans)
    try:
        return orjson.dumps(document)
    except TypeError:  # a lone surrogate: only an escape can say it
        return json.dumps(document, separators=(",", ":")).encode()


def to_document(spans: Iterable[RawSpan]) -> Json:
    """The same as plain values. Neighbours of one resource and scope share a group."""
    return {
        "resourceSpans": [
            _with_schema(
                {
                    "resource": {"attributes": _attributes(resource.attributes)},
                    "scopeSpans": [
                        _with_schema(
                            {
                                "scope": {
                                    "name": scope.name,
                                    "version": scope.version,
                                    "attributes": _attributes(scope.attributes),
                                },
                                "spans": [_span(span) for span in group],
                            },
                            scope.schema_url,
                        )
                        for scope, group in groupby(same_resource, key=lambda span: span.scope)
                    ],
                },
                resource.schema_url,
            )
            for resource, same_resource in groupby(spans, key=lambda span: span.resource)
        ]
    }


def _with_schema(group: Json, schema_url: str) -> Json:
    if schema_url:
        group["schemaUrl"] = schema_url
    return group


def _span(span: RawSpan) -> Json:
    flags = span.trace_flags
    if span.parent_is_remote is not None:
        flags |= HAS_IS_REMOTE | (IS_REMOTE if span.parent_is_remote else 0)
    fields: Json = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_span_id or "",
        "name": span.name,
        "kind": KINDS.index(span.kind, 1) if span.kind in KINDS else 0,
        "startTimeUnixNano": str(span.start_ns or 0),
        "endTimeUnixNano": str(span.end_ns or 0),
        "attributes": _attributes(span.attributes),
        "status": {"code": STATUS_CODES.index(span.status_code) if span.status_code in STATUS_CODES else 0},
        "flags": flags,
    }
    if span.status_message:
        fields["status"]["message"] = span.status_message
    optional: Json = {
        "traceState": span.trace_state,
        "events": [_event(event) for event in span.events],
        "links": [_link(link) for link in span.links],
        "droppedAttributesCount": span.dropped_attributes,
        "droppedEventsCount": span.dropped_events,
        "droppedLinksCount": span.dropped_links,
    }
    fields.update((key, value) for key, value in optional.items() if value)
    return fields


def _event(event: Event) -> Json:
    return {
        "name": event.name,
        "timeUnixNano": str(event.time_ns or 0),
        "attributes": _attributes(event.attributes),
        "droppedAttributesCount": event.dropped_attributes,
    }


def _link(link: Link) -> Json:
    return {
        "traceId": link.trace_id,
        "spanId": link.span_id,
        "traceState": link.trace_state,
        "attributes": _attributes(link.attributes),
        "droppedAttributesCount": link.dropped_attributes,
        "flags": link.flags,
    }


def _attributes(attributes: Mapping[str, AttributeValue]) -> list[Json]:
    return [{"key": str(key), "value": _any_value(value)} for key, value in attributes.items()]


def _any_value(value: AttributeValue) -> Json:
    match value:
        case None:
            return {}
        case bool():
            return {"boolValue": value}
        case int():
            # An integer beyond 64 bits would make a strict receiver refuse the whole document.
            return {"intValue": str(value)} if -(2**63) <= value < 2**63 else {"stringValue": str(value)}
        case float():
            return {"doubleValue": value if math.isfinite(value) else _not_finite(value)}
        case bytes():
            return {"bytesValue": base64.b64encode(value).decode()}
        case tuple() | list():
            return {"arrayValue": {"values": [_any_value(item) for item in cast("Iterable[Any]", value)]}}
        case Mapping():
            return {"kvlistValue": {"values": _attributes(cast("Mapping[str, Any]", value))}}
        case _:
            return {"stringValue": str(value)}


def _not_finite(value: float) -> str:
    """As protobuf's JSON mapping writes them."""
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
