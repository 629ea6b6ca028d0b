"""OTLP log records to ``RawSpan``: those of GenAI's events that carry message content (``conventions.logs``).

A record is rewritten as an OTLP span with the record as its event, so that ids, times and values are read as those of
spans are. Other records are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from step_exporter.conventions import logs
from step_exporter.errors import InputError
from step_exporter.facts import RawSpan
from step_exporter.otlp.decode import UNREADABLE, Object, Problem, decode_document, parse
from step_exporter.otlp.protobuf import decode_protobuf

if TYPE_CHECKING:
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

_EVENT_NAME = "event.name"
"""The attribute that named an event before records had a field for it."""


def decode_logs_json(body: bytes | str) -> Iterator[RawSpan | Problem]:
    """The records of one OTLP/JSON document (``LogsData`` or ``ExportLogsServiceRequest``) that carry messages.

    Raises ``InputError`` at once if the body is not JSON or not OTLP.
    """
    document = parse(body)
    if not isinstance(document, Mapping):
        raise InputError("not OTLP: a JSON object with resourceLogs was expected")
    fields = cast("Object", document)
    if "resourceLogs" not in fields and fields:
        raise InputError("not OTLP: no resourceLogs in it")
    return decode_logs_document(fields)


def decode_logs_document(document: Object) -> Iterator[RawSpan | Problem]:
    """The records of a parsed document that carry messages; none where it is of other signals."""
    groups = [
        {**group, "scopeSpans": [{**scope, "spans": _spans(scope)} for scope in _objects(group, "scopeLogs")]}
        for group in _objects(document, "resourceLogs")
    ]
    return _kept(decode_document({"resourceSpans": groups}))


def decode_logs_protobuf(body: bytes) -> Iterator[RawSpan | Problem]:
    """The records of an ``ExportLogsServiceRequest`` (or ``LogsData``) that carry messages.

    Raises at once ``InputError`` if the body is neither.
    """
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    try:
        data = LogsData.FromString(body)
    except DecodeError as error:
        raise InputError(f"not OTLP protobuf: {error}") from None
    traces = TracesData()
    for group in data.resource_logs:
        to_group = traces.resource_spans.add(schema_url=group.schema_url)
        to_group.resource.CopyFrom(group.resource)
        for scope in group.scope_logs:
            to_scope = to_group.scope_spans.add(schema_url=scope.schema_url)
            to_scope.scope.CopyFrom(scope.scope)
            for record in scope.log_records:
                name = record.event_name or _named(record)
                if name in logs.NAMES and record.trace_id and record.span_id:
                    time_ns = record.time_unix_nano or record.observed_time_unix_nano
                    span = to_scope.spans.add(
                        trace_id=record.trace_id,
                        span_id=record.span_id,
                        name=name,
                        start_time_unix_nano=time_ns,
                        end_time_unix_nano=time_ns,
                        flags=record.flags,
                    )
                    event = span.events.add(name=name, time_unix_nano=time_ns, attributes=record.attributes)
                    if record.body.WhichOneof("value") == "kvlist_value":
                        event.attributes.extend(record.body.kvlist_value.values)
                    elif record.HasField("body"):
                        event.attributes.add(key="content").value.CopyFrom(record.body)
    return _kept(decode_protobuf(traces.SerializeToString()))


def _kept(records: Iterable[RawSpan | Problem]) -> Iterator[RawSpan | Problem]:
    for record in records:
        if isinstance(record, Problem):
            yield record
        else:
            try:
                span = logs.as_span(record)
            except UNREADABLE as error:
                yield Problem(f"log record {record.name}: {type(error).__name__}: {error}")
            else:
                if span is not None:
                    yield span


def _spans(scope: Object) -> list[Object]:
    return [span for record in _objects(scope, "logRecords") if (span := _span(record)) is not None]


def _span(record: Object) -> Object | None:
    attributes = list(_objects(record, "attributes"))
    named = [each.get("value") for each in attributes if each.get("key") == _EVENT_NAME]
    name = record.get("eventName") or next(
        (cast("Object", value).get("stringValue") for value in named if isinstance(value, Mapping)), None
    )
    if not isinstance(name, str) or name not in logs.NAMES or not record.get("traceId") or not record.get("spanId"):
        return None
    time: Any = record.get("timeUnixNano")
    if time in (None, 0, "0", ""):
        time = record.get("observedTimeUnixNano")
    body: Any = record.get("body")
    if isinstance(body, Mapping):
        fields = cast("Object", body).get("kvlistValue")
        if isinstance(fields, Mapping):
            attributes += _objects(cast("Object", fields), "values")
        elif body:
            attributes.append({"key": "content", "value": body})
    return {
        "traceId": record["traceId"],
        "spanId": record["spanId"],
        "name": name,
        "startTimeUnixNano": time,
        "endTimeUnixNano": time,
        "flags": record.get("flags"),
        "events": [{"name": name, "timeUnixNano": time, "attributes": attributes}],
    }


def _named(record: LogRecord) -> str:
    return next((pair.value.string_value for pair in record.attributes if pair.key == _EVENT_NAME), "")


def _objects(fields: Object, key: str) -> Iterator[Object]:
    """The objects of a list; what is none is left out."""
    values = fields.get(key)
    if isinstance(values, list):
        for value in cast("list[Any]", values):
            if isinstance(value, Mapping):
                yield cast("Object", value)
