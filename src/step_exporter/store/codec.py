"""A span as rows of ``spans``, ``resources`` and ``contents``, and back: facts → rows → facts is the identity.

The attributes are canonical JSON (``values``). A content value is taken apart (``conventions.content``): in its
place the JSON has ``{"$content": [last hash, *form]}``, its elements go to ``contents``, once per trace.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple, cast

import orjson
from msgspec.structs import asdict, replace

from step_exporter.conventions.clean import is_clean, visible
from step_exporter.conventions.content import (
    ContentMemo,
    Contents,
    chain,
    put_together,
    side_hashes,
    take_apart,
    values_of,
)
from step_exporter.facts import AttributeValue, Content, ContentValue, Event, Link, RawSpan, Resource, Scope, Value
from step_exporter.store import values
from step_exporter.store.safety import is_safe, is_too_long, made_safe, safe_source, shortened


class SpanRow(NamedTuple):
    """A row of ``spans``: the fields are the columns. JSON columns are canonical text."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    start_ns: int | None
    end_ns: int | None
    state: str
    status_code: str
    status_message: str | None
    process_id: str | None
    abandoned_ns: int | None
    resource: str | None
    scope: str | None
    trace_flags: int
    trace_state: str | None
    parent_is_remote: bool | None
    attributes: str
    events: str | None
    links: str | None
    dropped_attributes: int
    dropped_events: int
    dropped_links: int
    flags: str | None
    service_name: str | None
    service_instance_id: str | None
    # what reading makes of it
    role: str
    convention: str | None
    # what the store knows of it
    collisions: int
    revision: int


FACT = slice(0, SpanRow._fields.index("role"))
"""The columns that are the fact itself; two rows equal in these are the same fact."""
_ATTRIBUTES = SpanRow._fields.index("attributes")


class Source(Value, frozen=True):
    """A resource or scope, ready to store."""

    value: Resource | Scope
    """Safe."""
    hash: str
    body: str
    service_name: str | None
    service_instance_id: str | None
    has_escapes: bool
    """See ``Encoded``."""


class Encoded(Value, frozen=True):
    """A span ready to store."""

    raw: RawSpan
    """What is stored: the span as it came, made safe."""
    contents: Contents
    fact: tuple[Any, ...]
    """The columns that are the fact itself (``FACT``)."""
    sources: tuple[Source, Source]
    has_escapes: bool
    """Whether reading may give texts that no database takes: NUL or lone surrogates."""

    @property
    def chars(self) -> int:
        """The length of its attributes as they are stored."""
        return len(self.fact[_ATTRIBUTES])

    @property
    def row(self) -> SpanRow:
        """The row of a span that nobody has read yet: of role ``other``."""
        return SpanRow._make((*self.fact, "other", None, self.raw.collisions, 0))


class Sources:
    """Remembers encoded resources and scopes by identity, as thousands of spans share each. Bounded."""

    def __init__(self, bound: int = 1024) -> None:
        self._bound = bound
        self._known: OrderedDict[int, tuple[Resource | Scope, Source]] = OrderedDict()
        none = (Resource(), Scope())
        self._last = (none, (encode_source(none[0]), encode_source(none[1])))

    def pair(self, resource: Resource, scope: Scope) -> tuple[Source, Source]:
        """Both, encoded; the same tuple for spans that follow each other with the same ones."""
        given, pair = self._last
        if given[0] is not resource or given[1] is not scope:
            pair = (self(resource), self(scope))
            self._last = ((resource, scope), pair)
        return pair

    def __call__(self, source: Resource | Scope) -> Source:
        """The resource or scope, encoded."""
        known = self._known.get(id(source))
        if known is not None and known[0] is source:
            return known[1]
        encoded = encode_source(source)
        self._known[id(source)] = (source, encoded)  # holds the object, so that its id is not used again
        if len(self._known) > self._bound:
            self._known.popitem(last=False)
        return encoded


def encode_source(source: Resource | Scope) -> Source:
    """A resource or scope with its hash: the first half of the SHA-256 of its canonical JSON."""
    safe = safe_source(source)
    if safe == source:
        safe = source  # the spans that carry it need not be changed
    fields: dict[str, AttributeValue] = asdict(safe)
    body = values.encode({key: value for key, value in fields.items() if value or key in ("attributes", "name")})
    digest = sha256(body.encode()).hexdigest()[:32]
    escapes = _has_escape(body)
    if isinstance(safe, Scope):
        return Source(safe, digest, body, None, None, escapes)
    name, instance = (safe.attributes.get(key) for key in ("service.name", "service.instance.id"))
    return Source(
        safe,
        digest,
        body,
        visible(name) if isinstance(name, str) else None,
        visible(instance) if isinstance(instance, str) else None,
        escapes,
    )


def decode_source(body: str) -> Resource | Scope:
    """The resource or scope of a row of ``resources``; a scope has a name, if an empty one."""
    fields: dict[str, Any] = values.decode(body)
    return Scope(**fields) if "name" in fields else Resource(**fields)


# To rows


def encode(raw: RawSpan, sources: Sources, memo: ContentMemo | None = None) -> Encoded:
    """The span as rows. Its ids must be valid (``safety.bad_id``); all else may be anything."""
    if not is_safe(raw):
        raw = made_safe(raw)
    while True:
        contents = take_apart(raw, memo)
        attributes, hidden = _attributes_text(raw, contents)
        events = _events_text(raw, contents) if raw.events else None
        if not is_too_long(attributes, events, contents):
            break
        shorter = shortened(raw, contents)
        if shorter is raw:
            break
        raw = shorter
    pair = resource, scope = sources.pair(raw.resource, raw.scope)
    if resource.value is not raw.resource or scope.value is not raw.scope:
        raw = replace(raw, resource=cast(Resource, resource.value), scope=cast(Scope, scope.value))
    name, message, state = raw.name, raw.status_message, raw.trace_state
    if hidden:
        name, message, state = (text and visible(text) for text in (name, message, state))
    fact = (  # not a named tuple, which takes 0.3 µs more
        raw.trace_id,
        raw.span_id,
        raw.parent_span_id,
        cast(str, name),
        raw.kind,
        raw.start_ns,
        raw.end_ns,
        "ended" if raw.ended else "open",
        raw.status_code,
        message,
        raw.process_id,
        raw.abandoned_ns,
        resource.hash,
        scope.hash,
        raw.trace_flags,
        state or None,
        raw.parent_is_remote,
        attributes,
        events,
        _links_text(raw.links) if raw.links else None,
        raw.dropped_attributes,
        raw.dropped_events,
        raw.dropped_links,
        values.encode_value(raw.flags) if raw.flags else None,
        resource.service_name,
        resource.service_instance_id,
    )
    has_escapes = hidden or resource.has_escapes or contents.has_escapes or _have_codes(attributes, events)
    return Encoded(raw, contents, fact, pair, has_escapes)


_NO_CONTENT: dict[str, ContentValue] = {}
_NAME, _MESSAGE, _STATE = "\0name", "\0status_message", "\0trace_state"
"""Where the attributes hide a text that its own column cannot hold. No attribute's name begins with NUL."""


def _attributes_text(raw: RawSpan, contents: Contents) -> tuple[str, bool]:
    """The attributes as stored, and whether other texts of the span are hidden in them."""
    clean = is_clean
    message, state = raw.status_message, raw.trace_state
    if clean(raw.name) and (not message or clean(message)) and (not state or clean(state)):
        return _encoded(raw.attributes, contents) if contents.consumed else values.encode(raw.attributes), False
    texts = ((_NAME, raw.name), (_MESSAGE, raw.status_message), (_STATE, raw.trace_state))
    hidden = {key: text for key, text in texts if text and not clean(text)}
    kept = {**_without_content(raw.attributes, contents), **hidden}
    return values.encode(kept, _placeholders(contents.attributes)), True


def _encoded(attributes: Mapping[str, AttributeValue], contents: Contents) -> str:
    """``values.encode`` with placeholders. It writes the attributes twice, to see whether any needs an escape; here
    the placeholders are told from escapes by their number, which saves 1.5 µs."""
    placeholders = _placeholders(contents.attributes)
    # Placeholders come in place of the values, where these are not flattened ones.
    in_place = contents.consumed.issubset(placeholders)
    kept = attributes if in_place else _without_content(attributes, contents)
    if values.RESERVED not in kept:
        try:
            text = orjson.dumps({**kept, **placeholders}, option=orjson.OPT_SORT_KEYS).decode()
        except TypeError:
            pass
        else:
            if (
                "null" not in text
                and text.count('{"$') == len(placeholders)
                and ("\\" not in text or "\\u0000" not in text)
            ):
                return text
    return values.encode(_without_content(attributes, contents), placeholders)


def _without_content(attributes: Mapping[str, AttributeValue], contents: Contents) -> dict[str, AttributeValue]:
    return {key: value for key, value in attributes.items() if key not in contents.consumed}


def _placeholders(content: Mapping[str, ContentValue]) -> dict[str, object]:
    return {key: {"$content": [chain(value)[-1].hash, *value.form]} for key, value in content.items()}


def _events_text(raw: RawSpan, contents: Contents) -> str:
    texts: list[str] = []
    for number, event in enumerate(raw.events):
        content = contents.events[number] if contents.events else _NO_CONTENT
        attributes = event.attributes
        if content:
            attributes = {key: value for key, value in attributes.items() if key not in content}
        dropped = f'"dropped_attributes":{event.dropped_attributes},' if event.dropped_attributes else ""
        texts.append(
            f'{{"attributes":{values.encode(attributes, _placeholders(content))},{dropped}'
            f'"name":{values.encode_value(event.name)},"time_ns":{"null" if event.time_ns is None else event.time_ns}}}'
        )
    return f"[{','.join(texts)}]"


def _links_text(links: Iterable[Link]) -> str:
    texts = [
        f'{{"attributes":{values.encode(link.attributes)},'
        + values.encode({key: value for key, value in asdict(link).items() if key != "attributes"})[1:]
        for link in links
    ]
    return f"[{','.join(texts)}]"


def _have_codes(attributes: str, events: str | None) -> bool:
    """Whether a text holds an escape, which parsing may turn into NUL or half a surrogate pair. To see which one it is
    takes 8 µs for a message of 20 KiB, and most have some; ``reading`` looks at what came out."""
    return _has_code(attributes) or (events is not None and _has_code(events))


def _has_code(text: str) -> bool:
    """``_has_escape`` of a short text, where it is cheaper to see that it is a quote: most tools are given JSON."""
    return "\\" in text and (len(text) > _LONG or _CODE.search(text) is not None)


_CODE = re.compile(r"\\[uUx0]")
"""How JSON, and Python in a repr, write a character by its number."""
_LONG = 4096


def _has_escape(text: str) -> bool:
    return "\\" in text  # JSON's, or Python's, as some attributes hold a repr; a body that is escaped begins with two


# From rows


def decode(
    row: SpanRow, sources: Mapping[str, Resource | Scope], contents: Mapping[str, Content]
) -> tuple[RawSpan, Contents]:
    """The span of a row and its content values, as ``encode`` had them. An element of content that is not there
    any more takes its value with it."""
    taken: dict[str, ContentValue] = {}
    attributes, consumed = _filled(orjson.loads(row.attributes), taken, contents)
    name, message, state = row.name, row.status_message, row.trace_state or ""
    if _NAME in attributes or _MESSAGE in attributes or _STATE in attributes:
        name = attributes.pop(_NAME, name)
        message = attributes.pop(_MESSAGE, message)
        state = attributes.pop(_STATE, state)
    events, event_contents = _decode_events(row.events, contents) if row.events else ((), ())
    raw = RawSpan(
        trace_id=row.trace_id,
        span_id=row.span_id,
        parent_span_id=row.parent_span_id,
        name=name,
        kind=row.kind,
        start_ns=row.start_ns,
        end_ns=row.end_ns,
        ended=row.state == "ended",
        status_code=row.status_code,
        status_message=message,
        attributes=attributes,
        events=events,
        links=_decode_links(row.links) if row.links else (),
        resource=cast(Resource, sources.get(row.resource or "", Resource())),
        scope=cast(Scope, sources.get(row.scope or "", Scope())),
        trace_flags=row.trace_flags,
        trace_state=state,
        parent_is_remote=None if row.parent_is_remote is None else bool(row.parent_is_remote),
        dropped_attributes=row.dropped_attributes,
        dropped_events=row.dropped_events,
        dropped_links=row.dropped_links,
        process_id=row.process_id,
        abandoned_ns=row.abandoned_ns,
        flags=tuple(orjson.loads(row.flags)) if row.flags else (),
        collisions=row.collisions,
    )
    return raw, Contents(taken, frozenset(consumed), event_contents)


def has_escapes(row: SpanRow, resource: str, contents: Contents) -> bool:
    """``Encoded.has_escapes`` of a stored span."""
    return (
        _has_escape(resource)
        or _have_codes(row.attributes, row.events)
        or any(_has_escape(element.body) for value in values_of(contents) for element in value.elements)
    )


def _filled(
    stored: dict[str, Any], taken: dict[str, ContentValue], contents: Mapping[str, Content]
) -> tuple[dict[str, AttributeValue], set[str]]:
    """Attributes from parsed JSON, content values back in place (and in ``taken``), and the names of the latter."""
    for key, value in list(stored.items()):
        placeholder = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        if len(placeholder) == 1 and "$content" in placeholder:  # a real mapping of this form is within $object
            del stored[key]
            found = _collect(placeholder["$content"], contents)
            if found is not None:
                taken[key] = found
    attributes = values.restore(stored)
    if not taken:
        return attributes, set()
    restored: dict[str, AttributeValue] = {}
    for key, value in taken.items():
        restored.update(put_together(key, value))
    return {**attributes, **restored}, set(restored)


def _collect(placeholder: list[str], contents: Mapping[str, Content]) -> ContentValue | None:
    last, *form = placeholder
    elements: list[Content] = []
    at: str | None = last
    try:
        while at is not None:
            elements.append(contents[at])
            at = contents[at].parent_hash
        sides = [contents[side] for side in side_hashes(tuple(form))]
    except KeyError:
        return None
    return ContentValue(tuple(form), (*reversed(elements), *sides))


def _decode_events(
    text: str, contents: Mapping[str, Content]
) -> tuple[tuple[Event, ...], tuple[dict[str, ContentValue], ...]]:
    events: list[Event] = []
    taken: list[dict[str, ContentValue]] = []
    for event in cast("list[dict[str, Any]]", orjson.loads(text)):
        taken.append({})
        attributes, _ = _filled(event["attributes"], taken[-1], contents)
        events.append(
            Event(
                cast(str, values.restore_value(event["name"])),
                event["time_ns"],
                attributes,
                event.get("dropped_attributes", 0),
            )
        )
    return tuple(events), tuple(taken) if any(taken) else ()


def _decode_links(text: str) -> tuple[Link, ...]:
    return tuple(
        Link(attributes=values.restore(link.pop("attributes")), **_fields(link))
        for link in cast("list[dict[str, Any]]", orjson.loads(text))
    )


def _fields(stored: dict[str, Any]) -> dict[str, Any]:
    return {key: values.restore_value(value) for key, value in stored.items()}


# The fact itself


def canonical(raw: RawSpan) -> bytes:
    """The whole fact as canonical JSON: what collisions are decided by and what quarantine keeps.

    What the store knows of it (collisions) is no part of it.
    """
    fact: dict[str, Any] = asdict(raw)
    del fact["collisions"]
    fact["events"] = tuple(map(asdict, raw.events))
    fact["links"] = tuple(map(asdict, raw.links))
    fact["resource"], fact["scope"] = asdict(raw.resource), asdict(raw.scope)
    return values.encode_value(fact).encode()


def from_canonical(body: bytes) -> RawSpan:
    """The fact of ``canonical``. Raises ``ValueError``, ``TypeError``, ``KeyError`` if it is none."""
    fact = cast("dict[str, Any]", values.restore_value(orjson.loads(body)))
    fact["events"] = tuple(Event(**event) for event in fact["events"])
    fact["links"] = tuple(Link(**link) for link in fact["links"])
    fact["resource"], fact["scope"] = Resource(**fact["resource"]), Scope(**fact["scope"])
    return RawSpan(**fact)


def fact_hash(raw: RawSpan) -> str:
    """SHA-256 of the canonical fact, 64 hexadecimal digits."""
    return sha256(canonical(raw)).hexdigest()
