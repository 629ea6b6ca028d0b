"""Spans of any content, for Hypothesis: every value that an attribute may have, in every place."""

from __future__ import annotations

import math
import struct
from typing import Any

from hypothesis import strategies as st
from msgspec.structs import astuple

from step_exporter.conventions.content import Contents, values_of
from step_exporter.facts import Content, Event, Link, RawSpan, Resource, Scope, Value
from step_exporter.store import values

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"

SPAN_OF = RawSpan(TRACE, SPAN, None, "chat", start_ns=1_000, end_ns=2_000)

CONTENT_KEYS = (
    "gen_ai.input.messages",
    "input.value",
    "gen_ai.prompt",
    "gen_ai.prompt.0.content",
    "gen_ai.prompt.1.role",
    "llm.input_messages.0.message.content",
    "llm.tools.0.tool.json_schema",
    "gen_ai.tool.definitions",
)

texts = st.text(st.characters(exclude_categories=()), max_size=12) | st.sampled_from(
    ["\0", "\ud800", "\ud83d\ude00", "\\ud800", "\\", "$text", "é\0", '{"a": [1, 2]}', '[{"role": "user"}]']
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**400])
    | st.floats()
    | texts
    | st.binary(max_size=8)
)
keys = texts.filter(bool) | st.sampled_from(["$text", "$content", "$object", "$", values.RESERVED, *CONTENT_KEYS])
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
attributes = st.dictionaries(keys, anything, max_size=5)
times = st.none() | st.integers(0, 2**63 - 1)
counts = st.integers(0, 2**31 - 1)
events = st.lists(st.builds(Event, texts | st.just("gen_ai.choice"), times, attributes, counts), max_size=2).map(tuple)
links = st.lists(st.builds(Link, texts, texts, texts, attributes, counts, counts), max_size=2).map(tuple)
resources = st.builds(Resource, attributes, texts)
scopes = st.builds(Scope, texts, texts, attributes, texts)


@st.composite
def spans(draw: st.DrawFn) -> RawSpan:
    start = draw(times)
    return RawSpan(
        trace_id=TRACE,
        span_id=SPAN,
        parent_span_id=draw(st.none() | st.just("00f067aa0ba902b7")),
        name=draw(texts),
        kind=draw(st.sampled_from(["internal", "server", "client", "producer", "consumer"])),
        start_ns=start,
        end_ns=draw(st.none() | st.integers(start or 0, 2**63 - 1)),
        ended=draw(st.booleans()),
        status_code=draw(st.sampled_from(["unset", "ok", "error"])),
        status_message=draw(st.none() | texts),
        attributes=draw(attributes),
        events=draw(events),
        links=draw(links),
        resource=draw(resources),
        scope=draw(scopes),
        trace_flags=draw(st.integers(0, 255)),
        trace_state=draw(texts),
        parent_is_remote=draw(st.none() | st.booleans()),
        dropped_attributes=draw(counts),
        process_id=draw(st.none() | st.just("p1")),
        abandoned_ns=draw(st.none() | st.just(7)),
    )


def same(value: Any) -> Any:
    """The value in a form where NaN equals NaN, 0.0 differs from -0.0 and 1 from 1.0 and True."""
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else struct.pack("d", value))
    if isinstance(value, dict):
        return {key: same(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(same(item) for item in value)
    if isinstance(value, Value):
        return (type(value), same(astuple(value)))
    return (type(value), value)


def elements(contents: Contents) -> list[Content]:
    """All elements of a span's content values."""
    return [element for value in values_of(contents) for element in value.elements]
