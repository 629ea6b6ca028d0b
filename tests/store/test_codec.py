"""What is stored of a span is the span: facts → rows → facts is the identity."""

from __future__ import annotations

import datetime
import decimal
import enum
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from raw_spans import SPAN, SPAN_OF, TRACE, anything, elements, same, spans, texts

from step_exporter.facts import Event, RawSpan
from step_exporter.store import values
from step_exporter.store.codec import Encoded, Sources, canonical, decode, decode_source, encode
from step_exporter.store.prepare import prepare
from step_exporter.store.safety import bad_id, is_safe, made_safe, with_lower_ids

pytestmark = pytest.mark.once


def through_rows(encoded: Encoded) -> tuple[RawSpan, Any]:
    sources = {source.hash: decode_source(source.body) for source in encoded.sources}
    return decode(
        encoded.row,
        sources,
        {element.hash: element for element in elements(encoded.contents)},
    )


def stored(raw: RawSpan) -> RawSpan:
    """What the database gives back of a span."""
    encoded = encode(raw, Sources())
    back, _ = through_rows(encoded)
    assert same(back) == same(encoded.raw)
    return back


@settings(max_examples=300, deadline=None)
@given(spans())
def test_a_span_comes_back_as_it_went_in(raw: RawSpan) -> None:
    encoded = encode(raw, Sources())
    back, contents = through_rows(encoded)
    assert same(back) == same(raw)
    assert contents == encoded.contents
    assert canonical(back) == canonical(raw)


@settings(max_examples=200, deadline=None)
@given(spans())
def test_every_column_is_text_that_both_engines_take(raw: RawSpan) -> None:
    encoded = encode(raw, Sources())
    bodies = [element.body for element in elements(encoded.contents)] + [source.body for source in encoded.sources]
    for value in (*encoded.row, *bodies):
        if isinstance(value, str):
            value.encode("utf-8")
            assert "\0" not in value
    for text in (encoded.row.attributes, encoded.row.events or "[]", encoded.row.links or "[]"):
        orjson.loads(text)
        assert "\\u0000" not in text.replace("\\\\", "")
        assert "NaN" not in text or "NaN" in str(raw)


@settings(max_examples=200, deadline=None)
@given(spans(), st.integers(), st.floats() | st.integers() | st.none() | texts, anything)
def test_making_a_span_safe_twice_is_making_it_safe_once(raw: RawSpan, start: int, end: Any, name: Any) -> None:
    safe = made_safe(replace(raw, start_ns=start, end_ns=end, name=name, dropped_events=start))
    assert same(made_safe(safe)) == same(safe)
    assert is_safe(replace(safe, attributes={}, events=(), links=()))
    stored(safe)


def test_equal_attributes_are_equal_text_in_any_order() -> None:
    assert values.encode({"b": 1, "a": {"d": 1, "c": 2}}) == values.encode({"a": {"c": 2, "d": 1}, "b": 1})
    assert values.encode({"b": 1, "a": 1.5}) == '{"a":1.5,"b":1}'


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class BrokenMapping(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no items")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Level.LOW, 1),
        (Colour.RED, "red"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (Broken(), "[Broken: cannot be read]"),
        (BrokenMapping(a=1), "[BrokenMapping: cannot be read]"),
        ([1, [Level.LOW, "x"]], (1, (1, "x"))),
        ({1: 2}, {"1": 2}),
    ],
)
def test_a_value_of_another_type_becomes_a_plain_one_once_and_is_flagged(value: object, expected: object) -> None:
    back = stored(replace(SPAN_OF, attributes={"key": value, "other": "kept"}))
    assert back.attributes == {"key": expected, "other": "kept"}
    assert back.flags == ("unsafe_value",)


def test_lists_and_texts_of_another_type_are_not_doubtful() -> None:
    class Text(str):
        __slots__ = ()

    back = stored(replace(SPAN_OF, attributes={"list": [1, 2], "bytes": bytearray(b"x"), "text": Text("t")}))
    assert back.attributes == {"list": (1, 2), "bytes": b"x", "text": "t"}
    assert back.flags == ()


def test_an_endless_value_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert stored(replace(SPAN_OF, attributes={"endless": endless})).flags == ("truncated",)


def test_a_text_over_a_mebibyte_is_cut_with_its_length_and_hash() -> None:
    back = stored(replace(SPAN_OF, attributes={"long": "x" * 10_000_000, "short": "y" * 1_000_000}))
    assert back.attributes["long"].startswith("x" * 65_536 + " … [truncated: 10000000 characters, sha256 ")
    assert len(back.attributes["long"]) < 65_700
    assert len(back.attributes["short"]) == 1_000_000
    assert back.flags == ("truncated",)


def test_of_a_long_conversation_only_the_long_message_is_cut() -> None:
    messages = [{"role": "user", "content": "x" * 3_000_000}, {"role": "assistant", "content": "short"}]
    back = stored(replace(SPAN_OF, attributes={"gen_ai.input.messages": orjson.dumps(messages).decode()}))
    first, second = orjson.loads(back.attributes["gen_ai.input.messages"])
    assert first["role"] == "user"
    assert "[truncated: 3000000 characters" in first["content"]
    assert second == messages[1]
    assert back.flags == ("truncated",)


@pytest.mark.parametrize(
    "attributes",
    [
        {"input.value": "x" * 3_000_000},
        {"output.value": "{" + "x" * 3_000_000},
        {"gen_ai.input.messages": tuple({"role": "user", "content": "x" * 3_000_000} for _ in range(3))},
        {"ai.embedding": tuple(float(n) for n in range(400_000))},
        {f"gen_ai.prompt.{n}.content": "x" * 2_000_000 for n in range(3)},
        {f"gen_ai.prompt.0.part{n}": "x" * 70_000 for n in range(100)},
        {f"key{n}": "x" * 900_000 for n in range(10)},
        {f"key{n}": "\0" * 10_000 for n in range(1000)},
        {"nested": {"deep": ("x" * 9_000_000,)}},
        {"k" * 5_000_000: 1},
    ],
)
def test_oversized_spans_are_stored_smaller_and_flagged(attributes: dict[str, Any]) -> None:
    encoded = encode(replace(SPAN_OF, attributes=attributes), Sources())
    assert "truncated" in encoded.raw.flags
    assert len(encoded.row.attributes) <= 4 << 20
    assert all(len(element.body) <= 8 << 20 for element in elements(encoded.contents))
    stored(encoded.raw)


def test_attributes_and_events_beyond_ten_thousand_are_counted() -> None:
    back = stored(
        replace(
            SPAN_OF,
            attributes={f"key{n}": n for n in range(100_000)},
            events=tuple(Event("e", n) for n in range(10_005)),
            dropped_attributes=7,
        )
    )
    assert len(back.attributes) == 10_000
    assert back.dropped_attributes == 90_007
    assert len(back.events) == 10_000
    assert back.dropped_events == 5


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (1, 2**63), (2**64, None), (float("nan"), 5)])
def test_a_time_that_no_column_holds_is_kept_as_text(start: Any, end: Any) -> None:
    back = stored(replace(SPAN_OF, start_ns=start, end_ns=end))
    assert back.flags == ("clock_skew",)
    assert set(back.attributes.values()) <= {str(start), str(end)}
    assert len(back.attributes) == 1


def test_a_float_time_is_taken_and_an_end_before_the_start_is_flagged() -> None:
    assert stored(replace(SPAN_OF, start_ns=1e9, end_ns=2e9)).start_ns == 1_000_000_000
    back = stored(replace(SPAN_OF, start_ns=5, end_ns=4))
    assert (back.start_ns, back.end_ns, back.flags) == (5, 4, ("clock_skew",))


def test_nanoseconds_are_exact() -> None:
    assert stored(replace(SPAN_OF, start_ns=1_764_000_000_123_456_789, end_ns=2**63 - 1)).start_ns == (
        1_764_000_000_123_456_789
    )


@pytest.mark.parametrize("trace_id", ["0" * 32, "xyz", "", "a" * 31, "a" * 31 + "\n", None, 5, "A" * 31 + "g"])
def test_an_id_that_is_none_is_named(trace_id: Any) -> None:
    assert "trace_id" in (bad_id(replace(SPAN_OF, trace_id=trace_id)) or "")
    assert bad_id(SPAN_OF) is None


def test_ids_in_upper_case_are_the_same_ids() -> None:
    raw = with_lower_ids(replace(SPAN_OF, trace_id=TRACE.upper(), span_id=SPAN.upper()))
    assert (raw.trace_id, raw.span_id) == (TRACE, SPAN)


@pytest.mark.parametrize(("parent", "flags"), [("0" * 16, ()), ("", ()), ("nope", ("unsafe_value",))])
def test_a_parent_that_is_none_leaves_a_root(parent: str, flags: tuple[str, ...]) -> None:
    back = stored(replace(SPAN_OF, parent_span_id=parent))
    assert back.parent_span_id is None
    assert back.flags == flags


def test_a_prompt_that_repeats_the_conversation_stores_each_message_once() -> None:
    conversation: list[dict[str, str]] = []
    bodies = dict[str, int]()
    for turn in range(20):
        conversation.append({"role": "user", "content": f"message {turn} " + "x" * 1000})
        raw = replace(SPAN_OF, attributes={"gen_ai.input.messages": orjson.dumps(conversation).decode()})
        encoded = encode(raw, Sources())
        assert len(encoded.row.attributes) < 200
        bodies.update({element.hash: len(element.body) for element in elements(encoded.contents)})
    assert len(bodies) == 20
    assert sum(bodies.values()) < 22_000


@pytest.mark.parametrize("value", [2**20_000, -(10**5000), 2**63, -(2**63) - 1], ids="abcd")
def test_an_integer_of_any_size_comes_back(value: int) -> None:
    assert stored(replace(SPAN_OF, attributes={"n": value})).attributes["n"] == value


def test_an_element_that_is_gone_takes_its_value_with_it() -> None:
    encoded = encode(replace(SPAN_OF, attributes={"input.value": "text", "a": 1}), Sources())
    back, contents = decode(encoded.row, {}, {})
    assert back.attributes == {"a": 1}
    assert contents.attributes == {}


@pytest.mark.parametrize(
    "attributes",
    [
        {"gen_ai.system_instructions": '[{"type": "text", "content": "a\\u0000b\\ud800c"}]'},
        {"gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "a\\u0000b\\ud800c"}]}]'},
        {"gen_ai.input.messages": '[{"role": "user", "content": "a\\u0000b\\ud800c"}]'},
        {"input.value": '{"system": "a\\u0000b\\ud800c", "messages": [{"role": "user", "content": "hi"}]}'},
        {"gen_ai.conversation.id": "a\0b\ud800c"},
        {"gen_ai.response.finish_reasons": '["a\\u0000b\\ud800c"]'},
        {"mlflow.spanType": '"LLM"', "mlflow.llm.model": '"a\\u0000b\\ud800c"'},
    ],
)
def test_what_escapes_hide_is_shown_in_every_text_that_is_read(attributes: dict[str, str]) -> None:
    raw = RawSpan(TRACE, SPAN, None, "chat", attributes={"gen_ai.operation.name": "chat", **attributes})
    ((prepared,), _) = prepare([raw], Sources())
    facts = repr(prepared.facts)
    assert "a\\\\u0000b\\\\ud800c" in facts
    assert "\\x00" not in facts
