"""What is made of a span before it is stored, so that one bad value never costs its neighbours.

``made_safe`` and ``shortened`` give back a span that can be stored whole, with what had to change named in its
``flags``: ``unsafe_value`` (a type that no attribute has), ``truncated`` (too long), ``clock_skew`` (a time that
cannot be). That span is what is read, now and at any rebuild. Neither ever raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, cast

import orjson
from msgspec.structs import replace

from step_exporter.conventions.content import Contents, put_together
from step_exporter.facts import MAX_NS, AttributeValue, ContentValue, Event, Link, RawSpan, Resource, Scope
from step_exporter.store import values
from step_exporter.store.values import HEAD, MAX_TEXT, TRUNCATED, UNSAFE

MAX_ATTRIBUTES = 10_000
"""Attributes of one span or event; the SDK's own limit is 128."""
MAX_EVENTS = 10_000
"""Events of one span, and links."""
MAX_TOTAL = 4 * MAX_TEXT
"""Bytes of a span's attributes without content, and of its events."""

CLOCK_SKEW = "clock_skew"
RAW_START = "step_exporter.raw_start_ns"
"""The attribute that keeps, as text, a start that no column holds."""
RAW_END = "step_exporter.raw_end_ns"
RAW_TIME = "step_exporter.raw_time_ns"
"""The same on an event."""
RAW_PARENT = "step_exporter.raw_parent_span_id"

_KINDS = frozenset({"internal", "server", "client", "producer", "consumer"})
_STATUS_CODES = frozenset({"unset", "ok", "error"})
_MAX_COUNT = 2**31 - 1
_TRACE_ID = re.compile("[0-9a-f]{32}")
_SPAN_ID = re.compile("[0-9a-f]{16}")
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


# Ids


def bad_id(raw: RawSpan) -> str | None:
    """Why the span's ids cannot be a key, or None."""
    if not _is_trace_id(raw.trace_id):
        return f"trace_id {str(raw.trace_id)[:100]!r} is not 32 hexadecimal digits, or all zero"
    if not is_span_id(raw.span_id):
        return f"span_id {str(raw.span_id)[:100]!r} is not 16 hexadecimal digits, or all zero"
    return None


def with_lower_ids(raw: RawSpan) -> RawSpan:
    """The span with its ids in lower case."""
    return replace(
        raw, trace_id=_lower(raw.trace_id), span_id=_lower(raw.span_id), parent_span_id=_lower(raw.parent_span_id)
    )


def _is_trace_id(value: object) -> bool:
    return type(value) is str and _TRACE_ID.fullmatch(value) is not None and value != _NO_TRACE


def is_span_id(value: object) -> bool:
    """Whether it is 16 hexadecimal digits, and not all zero."""
    return type(value) is str and _SPAN_ID.fullmatch(value) is not None and value != _NO_SPAN


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


# Types, ranges and counts


def is_safe(raw: RawSpan) -> bool:
    """Whether types and ranges are right, so that the span can be stored as it is if it is not too long."""
    start, end, name, attributes = raw.start_ns, raw.end_ns, raw.name, raw.attributes
    parent_id, message = raw.parent_span_id, raw.status_message
    if type(start) is int and type(end) is int:  # nearly always: without a call for each check, in half the time
        timely = 0 <= start <= end <= MAX_NS or (_is_time(start) and _is_time(end) and CLOCK_SKEW in raw.flags)
    else:
        timely = _is_time(start) and _is_time(end)
    return (
        timely
        and type(name) is str
        and len(name) <= HEAD
        and raw.kind in _KINDS
        and raw.status_code in _STATUS_CODES
        and (message is None or _is_short(message))
        and (not (state := raw.trace_state) or _is_short(state))
        and (parent_id is None or is_span_id(parent_id))
        and _is_count(raw.trace_flags)
        and _is_count(raw.dropped_attributes)
        and _is_count(raw.dropped_events)
        and _is_count(raw.dropped_links)
        and not raw.links  # rare: always the long way
        and len(attributes) <= MAX_ATTRIBUTES
        and values.is_plain(attributes)
        and (not (events := raw.events) or (len(events) <= MAX_EVENTS and all(map(_is_safe_event, events))))
    )


def _is_safe_event(event: Event) -> bool:
    return (
        _is_short(event.name)
        and _is_time(event.time_ns)
        and _is_count(event.dropped_attributes)
        and len(event.attributes) <= MAX_ATTRIBUTES
        and values.is_plain(event.attributes)
    )


def _is_time(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value <= MAX_NS)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _is_short(value: object) -> bool:
    return type(value) is str and len(value) <= HEAD


def made_safe(raw: RawSpan) -> RawSpan:
    """The span with every value of a type, range and count that can be stored. Ids are left alone."""
    flags = set(raw.flags)
    attributes, dropped = _safe_attributes(raw.attributes, flags)
    start = _safe_time(raw.start_ns, RAW_START, attributes, flags)
    end = _safe_time(raw.end_ns, RAW_END, attributes, flags)
    if start is not None and end is not None and end < start:
        flags.add(CLOCK_SKEW)
    parent = _lower(raw.parent_span_id) or None
    if parent is not None and not is_span_id(parent):
        if parent != _NO_SPAN:
            attributes[RAW_PARENT] = _text(parent, flags)
            flags.add(UNSAFE)
        parent = None
    events = tuple(_safe_event(event, flags) for event in islice(raw.events, MAX_EVENTS))
    links = tuple(_safe_link(link, flags) for link in islice(raw.links, MAX_EVENTS))
    if len(events) < len(raw.events) or len(links) < len(raw.links):
        flags.add(TRUNCATED)
    return replace(
        raw,
        name=_text(raw.name, flags),
        kind=raw.kind if raw.kind in _KINDS else "internal",
        status_code=raw.status_code if raw.status_code in _STATUS_CODES else "unset",
        status_message=None if raw.status_message is None else _text(raw.status_message, flags),
        trace_state=_text(raw.trace_state, flags),
        parent_span_id=parent,
        start_ns=start,
        end_ns=end,
        attributes=attributes,
        events=events,
        links=links,
        trace_flags=_count(raw.trace_flags),
        dropped_attributes=_count(raw.dropped_attributes, dropped),
        dropped_events=_count(raw.dropped_events, len(raw.events) - len(events)),
        dropped_links=_count(raw.dropped_links, len(raw.links) - len(links)),
        flags=tuple(sorted(flags)),
    )


def safe_source(source: Resource | Scope) -> Resource | Scope:
    """The resource or scope with every value safe and none too long."""
    attributes, _ = _safe_attributes(source.attributes, set())
    attributes = cast("dict[str, AttributeValue]", _cut_strings(attributes, HEAD))
    if isinstance(source, Resource):
        return Resource(attributes, _text(source.schema_url, set()))
    return Scope(_text(source.name, set()), _text(source.version, set()), attributes, _text(source.schema_url, set()))


def _safe_attributes(attributes: Any, flags: set[str]) -> tuple[dict[str, AttributeValue], int]:
    if not isinstance(attributes, Mapping):
        return {}, 0
    mapping = cast("Mapping[Any, Any]", attributes)
    dropped = max(0, len(mapping) - MAX_ATTRIBUTES)
    if dropped:
        flags.add(TRUNCATED)
        mapping = dict(islice(mapping.items(), MAX_ATTRIBUTES))
    return values.safe_mapping(mapping, flags), dropped


def _safe_time(value: Any, key: str, attributes: dict[str, AttributeValue], flags: set[str]) -> int | None:
    if _is_time(value):
        return value
    try:
        time = int(value)  # a float, or an int of another type
    except (TypeError, ValueError, OverflowError):
        time = -1
    if 0 <= time <= MAX_NS and not isinstance(value, str):
        return time
    short = isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**100)
    attributes[key] = repr(value) if short else _text(value, set())
    flags.add(CLOCK_SKEW)
    return None


def _safe_event(event: Event, flags: set[str]) -> Event:
    attributes, dropped = _safe_attributes(event.attributes, flags)
    time = _safe_time(event.time_ns, RAW_TIME, attributes, flags)
    return Event(_text(event.name, flags), time, attributes, _count(event.dropped_attributes, dropped))


def _safe_link(link: Link, flags: set[str]) -> Link:
    attributes, dropped = _safe_attributes(link.attributes, flags)
    return Link(
        _text(link.trace_id, flags),
        _text(link.span_id, flags),
        _text(link.trace_state, flags),
        attributes,
        _count(link.dropped_attributes, dropped),
        _count(link.flags),
    )


def _text(value: Any, flags: set[str]) -> str:
    """Any value as a text of at most 64 KiB and the note on what was cut."""
    if type(value) is not str:
        value = "" if value is None else values.safe(value, flags)
        value = value if isinstance(value, str) else values.encode_value(value)
    if len(value) <= HEAD or values.is_shortened(value):
        return value
    flags.add(TRUNCATED)
    return values.shortened(value)


def _count(value: Any, more: int = 0) -> int:
    value = value if isinstance(value, int) else 0
    return min(max(0, int(value)) + more, _MAX_COUNT)


# Lengths


def is_too_long(text: str, events: str | None, contents: Contents) -> bool:
    """Whether a part of the span's stored form is longer than it may be."""
    return len(text) > MAX_TEXT or (events is not None and len(events) > MAX_TEXT) or contents.longest > MAX_TEXT


def _is_long(value: ContentValue) -> bool:
    return any(len(element.body) > MAX_TEXT for element in value.elements)


def shortened(raw: RawSpan, contents: Contents) -> RawSpan:
    """The span with each text over 1 MiB cut to its head, and without what is still over 4 MiB together."""
    attributes = _shorter(raw.attributes, contents.attributes)
    attributes, dropped = _fitting(attributes, contents.consumed)
    events = list[Event]()
    room = MAX_TOTAL
    for number, event in enumerate(raw.events):
        content: Mapping[str, ContentValue] = contents.events[number] if contents.events else {}
        shorter = _shorter(event.attributes, content)
        room -= _size({key: value for key, value in shorter.items() if key not in content}) + len(event.name) + 60
        if room < 0:
            break
        events.append(replace(event, attributes=shorter))
    short = replace(
        raw,
        attributes=attributes,
        events=tuple(events),
        dropped_attributes=_count(raw.dropped_attributes, dropped),
        dropped_events=_count(raw.dropped_events, len(raw.events) - len(events)),
    )
    return raw if short == raw else replace(short, flags=tuple(sorted({*raw.flags, TRUNCATED})))


def _shorter(
    attributes: Mapping[str, AttributeValue], content: Mapping[str, ContentValue]
) -> dict[str, AttributeValue]:
    """The attributes with long texts cut; those of a long conversation message by message."""
    shorter = dict(attributes)
    conversations = set[str]()
    for key, value in content.items():
        if len(value.elements) > 1:
            conversations.add(key)
        if not _is_long(value):
            continue
        if value.form[0] in ("text", "json"):
            elements = tuple(replace(element, body=_shorter_body(element.body)) for element in value.elements)
            shorter.update(put_together(key, replace(value, elements=elements)))
        else:
            for name, item in put_together(key, value).items():
                shorter[name] = _shorter_items(item) if value.form[0] == "list" else _shorter_item(item)
    for key, value in shorter.items():
        if key not in conversations:
            shorter[key] = _cut_strings(value, MAX_TEXT)
    return shorter


def _shorter_items(items: AttributeValue) -> AttributeValue:
    return tuple(_shorter_item(item) for item in cast("tuple[AttributeValue, ...]", items))


def _shorter_item(value: AttributeValue) -> AttributeValue:
    cut = _cut_strings(value, HEAD)
    text = values.encode_value(cut)
    return values.shortened(text) if len(text) > MAX_TEXT else cut


def _shorter_body(body: str) -> str:
    """An element that is too long: the texts in it cut, if it is JSON, else its head."""
    if len(body) <= MAX_TEXT:
        return body
    try:
        cut = orjson.dumps(_cut_strings(orjson.loads(body), HEAD)).decode()
    except (ValueError, TypeError, RecursionError):
        return values.shortened(body)
    return cut if len(cut) <= MAX_TEXT else orjson.dumps(values.shortened(body)).decode()


def _cut_strings(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return values.shortened(value) if len(value) > limit and not values.is_shortened(value) else value
    if isinstance(value, tuple):
        return tuple(_cut_strings(item, limit) for item in cast("tuple[Any, ...]", value))
    if isinstance(value, list):  # of parsed JSON
        return [_cut_strings(item, limit) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        return {key: _cut_strings(item, limit) for key, item in mapping.items()}
    return value


def _fitting(attributes: dict[str, AttributeValue], consumed: frozenset[str]) -> tuple[dict[str, AttributeValue], int]:
    """The attributes that fit into 4 MiB: the largest go first. Those that are content do not count."""
    sizes = {key: _size({key: value}) for key, value in attributes.items() if key not in consumed}
    total, dropped = sum(sizes.values()), 0
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        if total <= MAX_TOTAL:
            break
        total -= sizes[key]
        value = attributes[key]
        if isinstance(value, str) and len(value) > HEAD and not values.is_shortened(value):
            attributes[key] = values.shortened(value)
            total += _size({key: attributes[key]})
        else:
            del attributes[key]
            dropped += 1
    return attributes, dropped


def _size(attributes: Mapping[str, AttributeValue]) -> int:
    return len(values.encode(attributes))
