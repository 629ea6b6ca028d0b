"""OTLP/JSON to ``RawSpan``.

Tolerant, because exporters differ: ids in either case (or base64, as protobuf's own JSON mapping writes
bytes), 64-bit integers as strings or numbers, enums as numbers or names. What cannot be read as a span is
yielded as a ``Problem`` in its place and costs its neighbours nothing.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import orjson

from step_exporter.errors import InputError
from step_exporter.facts import HAS_IS_REMOTE, IS_REMOTE, AttributeValue, Event, Link, RawSpan, Resource, Scope

TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")

KINDS = ("internal", "internal", "server", "client", "producer", "consumer")
"""By SpanKind's number; 0 (unspecified) is to be read as internal, says ``trace.proto``."""
STATUS_CODES = ("unset", "ok", "error")

OTHER_SIGNALS = frozenset({"resourceLogs", "resourceMetrics", "resourceProfiles"})
"""What the Collector's file exporter may write into the same file."""

PEOPLE = "stepExporter"
"""The field of a document that OTLP does not know: what people set and deleted (``store.people``). It is read in files
only: who sends spans to the receiver is not asked for a name."""

Object = Mapping[str, Any]


class Problem(NamedTuple):
    """Something in the input that could not be read as a span."""

    reason: str
    source: str | None = None
    """The file, where there is one."""
    line: int | None = None
    """The line in that file, from 1."""

    def __str__(self) -> str:
        """``file:line: reason``, as far as known."""
        where = ":".join(str(part) for part in (self.source, self.line) if part is not None)
        return f"{where}: {self.reason}" if where else self.reason


def decode_json(body: bytes | str | Object) -> Iterator[RawSpan | Problem]:
    """The spans of one OTLP/JSON document (``TracesData`` or ``ExportTraceServiceRequest``), in its order.

    Raises ``InputError`` at once if the body is not JSON or not OTLP.
    """
    return decode_document(body if isinstance(body, Mapping) else parse(body))


def parse(text: bytes | str) -> Any:
    """The value of a JSON text. Raises ``InputError``.

    orjson refuses lone surrogates and NaN, which JavaScript and Python emitters write; the standard library
    takes them, at five times the cost, so it is asked second.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"not JSON: {reason}") from None


def decode_document(document: Any) -> Iterator[RawSpan | Problem]:
    """The spans of a parsed document. Raises ``InputError`` at once if it is not OTLP."""
    if not isinstance(document, Mapping):
        raise InputError("not OTLP: a JSON object with resourceSpans was expected")
    fields = cast("Object", document)
    if "resourceSpans" not in fields and fields and not OTHER_SIGNALS & fields.keys():
        raise InputError("not OTLP: no resourceSpans in it")
    return _spans(fields)


def is_document(value: Any) -> bool:
    """Whether a parsed value is an OTLP document of any signal."""
    if not isinstance(value, Mapping):
        return False
    keys = cast("Object", value).keys()
    return "resourceSpans" in keys or not OTHER_SIGNALS.isdisjoint(keys)


def _spans(document: Object) -> Iterator[RawSpan | Problem]:
    """Each part is taken apart by itself, so that one that is not what it should be is only its own problem."""
    for group in _list(document, "resourceSpans"):
        try:
            resource = _resource(group)
            scopes = _list(group, "scopeSpans")
        except UNREADABLE as error:
            yield Problem(f"resourceSpans that cannot be read: {_reason(error)}")
            continue
        for scope_group in scopes:
            try:
                scope = _scope(scope_group)
                spans = _list(scope_group, "spans")
            except UNREADABLE as error:
                yield Problem(f"scopeSpans that cannot be read: {_reason(error)}")
                continue
            for span in spans:
                try:
                    yield _span(span, resource, scope)
                except UNREADABLE as error:
                    yield Problem(f"span {_label(span)}: {_reason(error)}")


UNREADABLE = (InputError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What taking a value apart raises where it has another shape than OTLP says."""


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _label(span: Any) -> str:
    if not isinstance(span, Mapping):
        return "that is no object"
    fields = cast("Object", span)
    return repr(fields.get("name") or fields.get("spanId") or "without a name")[:100]


def _span(span: Object, resource: Resource, scope: Scope) -> RawSpan:
    flags = integer(span.get("flags")) or 0
    status: Object = span.get("status") or {}
    trace_id = hex_id(span.get("traceId"), TRACE_ID)
    span_id = hex_id(span.get("spanId"), SPAN_ID)
    if trace_id is None:
        raise InputError(f"trace id {span.get('traceId')!r:.100} is not 32 hexadecimal digits, or zero")
    if span_id is None:
        raise InputError(f"span id {span.get('spanId')!r:.100} is not 16 hexadecimal digits, or zero")
    parent = span.get("parentSpanId") or None
    parent_span_id = hex_id(parent, SPAN_ID)
    return RawSpan(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent_span_id,
        name=_text(span.get("name")),
        kind=_enum(span.get("kind"), KINDS, "SPAN_KIND_"),
        start_ns=time_ns(span.get("startTimeUnixNano")),
        end_ns=time_ns(span.get("endTimeUnixNano")),
        ended=True,
        status_code=_enum(status.get("code"), STATUS_CODES, "STATUS_CODE_"),
        status_message=_text(status.get("message")) or None,
        attributes=_attributes(span.get("attributes")),
        events=tuple(_event(event) for event in span.get("events") or ()),
        links=tuple(_link(link) for link in span.get("links") or ()),
        resource=resource,
        scope=scope,
        trace_flags=flags & 0xFF,
        trace_state=_text(span.get("traceState")),
        parent_is_remote=bool(flags & IS_REMOTE) if flags & HAS_IS_REMOTE else None,
        dropped_attributes=integer(span.get("droppedAttributesCount")) or 0,
        dropped_events=integer(span.get("droppedEventsCount")) or 0,
        dropped_links=integer(span.get("droppedLinksCount")) or 0,
        flags=("unsafe_value",) if parent and parent_span_id is None and str(parent).strip("0") else (),
    )


def _event(event: Object) -> Event:
    return Event(
        _text(event.get("name")),
        time_ns(event.get("timeUnixNano")),
        _attributes(event.get("attributes")),
        integer(event.get("droppedAttributesCount")) or 0,
    )


def _link(link: Object) -> Link:
    """Ids that are none are kept as they are: a link is only a remark."""
    return Link(
        hex_id(link.get("traceId"), TRACE_ID) or _text(link.get("traceId")),
        hex_id(link.get("spanId"), SPAN_ID) or _text(link.get("spanId")),
        _text(link.get("traceState")),
        _attributes(link.get("attributes")),
        integer(link.get("droppedAttributesCount")) or 0,
        integer(link.get("flags")) or 0,
    )


def _resource(group: Object) -> Resource:
    resource: Object = group.get("resource") or {}
    return Resource(_attributes(resource.get("attributes")), _text(group.get("schemaUrl")))


def _scope(group: Object) -> Scope:
    scope: Object = group.get("scope") or {}
    return Scope(
        _text(scope.get("name")),
        _text(scope.get("version")),
        _attributes(scope.get("attributes")),
        _text(group.get("schemaUrl")),
    )


def _attributes(pairs: Iterable[Object] | None) -> dict[str, AttributeValue]:
    return {pair["key"]: any_value(pair.get("value")) for pair in pairs or () if isinstance(pair.get("key"), str)}


def any_value(value: Any) -> AttributeValue:
    """The Python value of an ``AnyValue``; None where it is empty or of a kind that is not known."""
    if not isinstance(value, Mapping):
        return value if isinstance(value, str | bool | int | float) else None
    for kind, content in cast("Object", value).items():
        match kind:
            case "stringValue":
                return _text(content)
            case "intValue":
                number = integer(content)
                return content if number is None else number
            case "boolValue":
                return content if isinstance(content, bool) else str(content).lower() == "true"
            case "doubleValue":
                return None if content is None else float(content)  # JavaScript writes NaN as null
            case "arrayValue":
                return tuple(any_value(item) for item in _list(content or {}, "values"))
            case "kvlistValue":
                return _attributes(_list(content or {}, "values"))
            case "bytesValue":
                return base64.b64decode(content)
            case _:
                pass
    return None


def hex_id(value: Any, pattern: re.Pattern[str]) -> str | None:
    """An id in lower-case hexadecimal digits; None where it is none."""
    if not isinstance(value, str):
        return None
    if value.endswith("="):
        try:
            value = base64.b64decode(value, validate=True).hex()
        except ValueError:
            return None
    value = value.lower()
    return value if pattern.fullmatch(value) else None


def time_ns(value: Any) -> int | None:
    """A time; None where it is missing or 0, which ``trace.proto`` calls unknown."""
    return integer(value) or None


def integer(value: Any) -> int | None:
    """A 64-bit integer, which OTLP/JSON writes as a string, and many as a number; None where it is none."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str | float):
        try:
            return int(value)
        except (ValueError, OverflowError):
            return None
    return None


def _enum(value: Any, names: Sequence[str], prefix: str) -> str:
    if isinstance(value, str) and value.startswith(prefix):
        name = value.removeprefix(prefix).lower()
        return name if name in names else names[0]
    number = integer(value) or 0
    return names[number] if 0 <= number < len(names) else names[0]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else str(value)


def _list(fields: Object, key: str) -> Sequence[Any]:
    value = fields.get(key) or ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(f"{key} is not a list")
    return cast("Sequence[Any]", value)
