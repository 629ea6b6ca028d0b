"""OTLP protobuf to ``RawSpan``, by the ``opentelemetry-proto`` package where it is installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from step_exporter.errors import ConfigurationError, InputError
from step_exporter.facts import HAS_IS_REMOTE, IS_REMOTE, AttributeValue, Event, Link, RawSpan, Resource, Scope
from step_exporter.otlp.decode import KINDS, SPAN_ID, STATUS_CODES, TRACE_ID, Problem

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData


def decode_protobuf(body: bytes) -> Iterator[RawSpan | Problem]:
    """The spans of an ``ExportTraceServiceRequest`` (or ``TracesData``: they have the same bytes), in its order.

    Raises at once ``InputError`` if the body is neither, ``ConfigurationError`` if opentelemetry-proto is missing.
    """
    try:
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
    except ImportError:
        raise ConfigurationError("OTLP protobuf needs opentelemetry-proto: pip install opentelemetry-proto") from None
    try:
        data = TracesData.FromString(body)
    except DecodeError as error:
        raise InputError(f"not OTLP protobuf: {error}") from None
    return _spans(data)


def _spans(data: TracesData) -> Iterator[RawSpan | Problem]:
    for group in data.resource_spans:
        resource = Resource(_attributes(group.resource.attributes), group.schema_url)
        for scope_group in group.scope_spans:
            message = scope_group.scope
            scope = Scope(message.name, message.version, _attributes(message.attributes), scope_group.schema_url)
            for span in scope_group.spans:
                yield _span(span, resource, scope)


def _span(span: Span, resource: Resource, scope: Scope) -> RawSpan | Problem:
    trace_id, span_id, parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
    if not TRACE_ID.fullmatch(trace_id):
        return Problem(f"span {span.name[:100]!r}: trace id {trace_id[:100]!r} is not 16 bytes, or zero")
    if not SPAN_ID.fullmatch(span_id):
        return Problem(f"span {span.name[:100]!r}: span id {span_id[:100]!r} is not 8 bytes, or zero")
    parent_ok = SPAN_ID.fullmatch(parent) is not None
    return RawSpan(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent if parent_ok else None,
        name=span.name,
        kind=_name(KINDS, span.kind),
        start_ns=span.start_time_unix_nano or None,
        end_ns=span.end_time_unix_nano or None,
        ended=True,
        status_code=_name(STATUS_CODES, span.status.code),
        status_message=span.status.message or None,
        attributes=_attributes(span.attributes),
        events=tuple(
            Event(
                event.name,
                event.time_unix_nano or None,
                _attributes(event.attributes),
                event.dropped_attributes_count,
            )
            for event in span.events
        ),
        links=tuple(
            Link(
                link.trace_id.hex(),
                link.span_id.hex(),
                link.trace_state,
                _attributes(link.attributes),
                link.dropped_attributes_count,
                link.flags,
            )
            for link in span.links
        ),
        resource=resource,
        scope=scope,
        trace_flags=span.flags & 0xFF,
        trace_state=span.trace_state,
        parent_is_remote=bool(span.flags & IS_REMOTE) if span.flags & HAS_IS_REMOTE else None,
        dropped_attributes=span.dropped_attributes_count,
        dropped_events=span.dropped_events_count,
        dropped_links=span.dropped_links_count,
        flags=("unsafe_value",) if parent.strip("0") and not parent_ok else (),
    )


def _name(names: tuple[str, ...], number: int) -> str:
    """An enum's name; proto3 enums are open, so a newer emitter's number may be one that is not known."""
    return names[number] if 0 <= number < len(names) else names[0]


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, AttributeValue]:
    return {pair.key: _any_value(pair.value) for pair in pairs}


def _any_value(value: AnyValue) -> AttributeValue:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bytes_value":
            return value.bytes_value
        case "array_value":
            return tuple(_any_value(item) for item in value.array_value.values)
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case _:
            return None
