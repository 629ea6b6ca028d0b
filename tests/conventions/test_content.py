"""Content is kept as elements, each stored once, and comes back as it was; without content nothing of it is left."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from step_exporter.conventions import genai_message
from step_exporter.conventions.content import (
    CONTENT_KEYS,
    SENSITIVE_KEYS,
    ContentMemo,
    Contents,
    chain,
    edges,
    is_content,
    put_together,
    side_hashes,
    strip,
    take_apart,
)
from step_exporter.facts import Event, Link, RawSpan

TEXT = st.text(st.characters(exclude_categories=()))
SCALARS = st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | TEXT | st.binary()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(TEXT | st.just("$bytes"), inner, max_size=4),
    max_leaves=12,
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "gen_ai.input.messages",
        "gen_ai.prompt",
        "input.value",
        "ai.response.text",
        "events",
        "llm.openai.messages",
        "llm.input_messages.0.message.role",
        "llm.input_messages.0.message.content",
        "llm.input_messages.3.message.content",
        "llm.input_messages.11.message.content",
        "llm.input_messages.007.message.content",
        "llm.input_messages.x",
        "llm.input_messages.None",
        "llm.prompts.0",
        "llm.prompts.0.",
        "gen_ai.prompt.0.content",
        "gen_ai.prompt.",
        "gen_ai.completion.0.tool_calls.0.name",
        "http.method",
    ]
)


def span(attributes: dict[str, Any], events: tuple[Event, ...] = ()) -> RawSpan:
    return RawSpan("0" * 31 + "1", "0" * 15 + "1", None, "chat", attributes=attributes, events=events)


def restored(raw: RawSpan, contents: Contents) -> dict[str, Any]:
    """The attributes as a store that keeps only hashes and forms gives them back."""
    back = {key: value for key, value in raw.attributes.items() if key not in contents.consumed}
    for key, value in contents.attributes.items():
        back.update(put_together(key, value))
    return back


def exactly(value: Any) -> str:
    """A text in which 1, 1.0 and True differ, and NaN equals NaN."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{exactly(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, tuple):
        return "(" + ",".join(map(exactly, value)) + ")"
    return repr(value)


def hashes(raw: RawSpan, key: str) -> list[str]:
    return [element.hash for element in chain(take_apart(raw).attributes[key])]


MESSAGES = [
    {"role": "user", "parts": [{"type": "text", "content": "What is the weather?"}]},
    {"role": "assistant", "parts": [{"type": "tool_call", "id": "call_1", "name": "get_weather", "arguments": {}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "sunny"}]},
]


def tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(tuples, value))
    return {key: tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES))
def test_any_attributes_come_back_as_they_were(attributes: dict[str, Any]) -> None:
    raw = span(attributes)
    assert exactly(restored(raw, take_apart(raw))) == exactly(attributes)


@settings(deadline=None)
@given(
    st.lists(JSON_VALUES | st.dictionaries(st.sampled_from(["role", "content"]), TEXT), max_size=5),
    st.sampled_from([(",", ":"), (", ", ": "), (",\n  ", ": ")]),
    st.sampled_from(
        ['{"messages":%s}', '{"model":"m","input": [%s]}', '{"tools":[{"messages":[]}],"messages":%s}', "%s"]
    ),
    st.booleans(),
    st.integers(0, 400),
)
def test_any_json_text_comes_back_as_it_was_even_cut_off(
    items: list[Any], separators: tuple[str, str], frame: str, ascii_only: bool, cut: int
) -> None:
    text = frame % json.dumps(items, separators=separators, ensure_ascii=ascii_only)
    for value in (text, text[:cut], text + "\0"):
        raw = span({"input.value": value})
        contents = take_apart(raw)
        assert restored(raw, contents) == raw.attributes
        for element in contents.attributes["input.value"].elements:
            element.body.encode()
            assert "\0" not in element.body
        for part in contents.attributes["input.value"].form:
            part.encode()


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["content", "message", "tool_calls", "id", "gen_ai.prompt"]), VALUES))
def test_event_attributes_come_back_as_they_were(attributes: dict[str, Any]) -> None:
    raw = span({}, (Event("other", 1), Event("gen_ai.user.message", 2, attributes)))
    taken = take_apart(raw).events
    if not taken:
        assert not attributes.keys() - {"id"}
        return
    assert not taken[0]
    back = {key: value for key, value in attributes.items() if key not in taken[1]}
    for key, value in taken[1].items():
        back.update(put_together(key, value))
    assert exactly(back) == exactly(attributes)


@pytest.mark.parametrize(
    "value_of",
    [
        lambda messages: json.dumps(messages),
        lambda messages: json.dumps({"model": "m", "messages": messages, "tools": ["x" * 100]}),
        lambda messages: json.dumps({"messages": [messages]}),
        lambda messages: json.dumps({"inputs": {"messages": messages}, "tags": []}),
        lambda messages: json.dumps(messages, indent=2),
        tuples,
    ],
    ids=["json", "request", "batch", "nested", "indented", "structured"],
)
def test_a_prompt_that_continues_another_repeats_its_hashes(value_of: Any) -> None:
    first = hashes(span({"gen_ai.prompt": value_of(MESSAGES[:1])}), "gen_ai.prompt")
    second = hashes(span({"gen_ai.prompt": value_of(MESSAGES[:2])}), "gen_ai.prompt")
    third = hashes(span({"gen_ai.prompt": value_of(MESSAGES)}), "gen_ai.prompt")
    assert len(third) == 3
    assert third[:2] == second
    assert second[:1] == first


def test_flattened_messages_repeat_their_hashes_too() -> None:
    def flat(count: int) -> dict[str, Any]:
        return {f"llm.input_messages.{n}.message.content": f"message {n}" for n in range(count)}

    long, short = (hashes(span(flat(n)), "llm.input_messages.") for n in (12, 3))
    assert len(long) == 12
    assert long[:3] == short


def test_the_last_hash_and_the_form_are_all_that_a_span_must_keep() -> None:
    body = json.dumps({"messages": MESSAGES, "tools": ["x" * 200]})
    value = take_apart(span({"input.value": body})).attributes["input.value"]
    stored = {element.hash: element for element in value.elements}
    elements, at = [], chain(value)[-1].hash
    while at is not None:
        elements.append(stored[at])
        at = stored[at].parent_hash
    elements = [*reversed(elements), *(stored[side] for side in side_hashes(value.form))]
    assert put_together("input.value", replace(value, elements=tuple(elements))) == {"input.value": body}


def test_what_every_call_repeats_after_its_messages_is_stored_once() -> None:
    def request(count: int) -> RawSpan:
        return span({"input.value": json.dumps({"messages": MESSAGES[:count], "tools": ["x" * 200]})})

    one, two = (take_apart(request(n)).attributes["input.value"] for n in (1, 2))
    assert one.elements[-1] == two.elements[-1]
    assert one.form == (*two.form[:2], "", two.form[3])
    assert edges(one)[1] == edges(two)[1]


def test_a_conversation_cut_off_by_a_length_limit_still_shares_its_prefix() -> None:
    whole = json.dumps(MESSAGES)
    cut = whole[: whole.index("sunny")]
    assert (
        hashes(span({"gen_ai.input.messages": cut}), "gen_ai.input.messages")
        == (hashes(span({"gen_ai.input.messages": whole}), "gen_ai.input.messages")[:2])
    )


def test_a_key_in_a_tool_definition_is_not_taken_for_the_messages() -> None:
    body = json.dumps({"tools": [{"input": [{"a": 1}]}], "messages": MESSAGES})
    value = take_apart(span({"input.value": body})).attributes["input.value"]
    assert [json.loads(element.body) for element in chain(value)] == MESSAGES


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXT.map(lambda t: t * 30)}),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([None, 2]),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 200)), max_size=6),
)
def test_the_memo_changes_no_result(messages: list[Any], indent: int | None, calls: list[tuple[int, int]]) -> None:
    memo = ContentMemo(max_texts=3)
    padding = {"role": "system", "content": "x" * 1100}
    for count, cut in calls:
        text = json.dumps({"messages": [padding, *messages[:count]], "n": 1}, indent=indent)
        for value in (text, text[: len(text) - cut], text.replace("},", "} ,", 1)):
            raw = span({"input.value": value, "output.value": value})
            assert take_apart(raw, memo) == take_apart(raw)


def test_a_short_argument_or_result_stays_where_it_is() -> None:
    short, long = "x" * 64, "x" * 65
    keys = ("gen_ai.tool.call.arguments", "gen_ai.tool.call.result", "ai.toolCall.args")
    assert take_apart(span(dict.fromkeys(keys, short))) == Contents()
    assert take_apart(span(dict.fromkeys(keys, long))).consumed == frozenset(keys)
    # messages name the element that they are from; an event counts as one that carries content by its elements
    said = {"gen_ai.output.messages": short, "ai.response.text": short, "llm.openai.messages": short}
    assert take_apart(span(said)).consumed == frozenset(said)
    assert take_apart(span({}, (Event("e", 1, {keys[0]: short}),))).events


ITEMS = st.sampled_from(
    [
        {"role": "user", "parts": [{"type": "text", "content": '}, {"role": "user"},{"role"'}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": None, "name": "f", "arguments": {"a": [1.0, {}]}}]},
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": "c", "response": [{"role": "x"}, {"role": 1}]}],
        },
        {"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}]},
        {"parts": [], "role": "user"},
        {"role": "user", "content": "é", "more": [{"a": 1}, {"role": 2}]},
        {"role": "user"},
        "text",
        5,
    ]
)


@settings(deadline=None)
@given(
    st.lists(ITEMS, max_size=5),
    st.sampled_from([(", ", ": "), (",", ":"), (" , ", " : ")]),
    st.sampled_from(["", "]", "}]", "]}", "x"]),
    st.integers(0, 30),
)
def test_where_an_item_ends_is_guessed_right_or_not_at_all(
    items: list[Any], separators: tuple[str, str], end: str, cut: int
) -> None:
    whole = json.dumps(items, separators=separators, ensure_ascii=False)
    for text in (whole, whole + end, whole[: len(whole) - cut], whole[: len(whole) - cut] + end):
        raw = span({"gen_ai.input.messages": text})
        with mock.patch.object(genai_message, "parse", return_value=None):
            found = take_apart(raw)
        assert take_apart(raw) == found


def test_a_number_that_python_refuses_ends_the_messages_whatever_stands_before_it() -> None:
    hi = '{"role":"user","parts":[{"type":"text","content":"hi"}]}'
    odd = '{"role":"assistant","parts":[{"type":"reasoning","content":"hm"}]}'
    endless = '{"role":"assistant","parts":[{"type":"tool_call","arguments":{"n":' + "9" * 5000 + "}}]}"
    memo = ContentMemo()
    for before in (hi, odd):
        for items in ([before, before], [before, before, endless], [before, before, endless, hi]):
            raw = span({"gen_ai.input.messages": f"[{','.join(items)}]"})
            contents = take_apart(raw, memo)
            assert contents == take_apart(raw)
            assert len(chain(contents.attributes["gen_ai.input.messages"])) == 2
    long = '{"role":"assistant","parts":[{"type":"tool_call","arguments":{"n":"' + "9" * 5000 + '"}}]}'
    assert len(hashes(span({"gen_ai.input.messages": f"[{hi},{long},{hi}]"}), "gen_ai.input.messages")) == 2 + 1


def test_one_long_text_does_not_make_what_follows_long() -> None:
    memo = ContentMemo()
    said = [{"role": "user", "parts": [{"type": "text", "content": "x" * 600}]}] * 2
    first = {"gen_ai.completion": "y" * 5_000 + "\\", "gen_ai.input.messages": json.dumps(said)}
    assert take_apart(span(first), memo).longest == 5_001
    contents = take_apart(span({"gen_ai.input.messages": json.dumps([*said, *said])}), memo)
    assert (contents.longest, contents.has_escapes) == (len(json.dumps(said[0])), False)


def test_what_was_parsed_to_find_its_end_is_kept_for_the_reader() -> None:
    contents = take_apart(span({"gen_ai.input.messages": json.dumps(MESSAGES)}))
    elements = contents.attributes["gen_ai.input.messages"].elements
    parsed = [contents.parsed[element.hash] for element in elements]
    assert all(isinstance(message, genai_message.GenAIMessage) for message in parsed)
    assert [message.role for message in parsed] == [message["role"] for message in MESSAGES]
    raw = span({"gen_ai.input.messages": json.dumps([{"role": "user", "content": "é"}])})
    assert [*take_apart(raw).parsed.values()] == [{"role": "user", "content": "é"}]


def test_nesting_beyond_every_limit_is_kept_as_it_is() -> None:
    deep: Any = ()
    for _ in range(2000):
        deep = (deep,)
    text = "[" * 100_000
    raw = span({"gen_ai.input.messages": deep, "gen_ai.output.messages": text, "input.value": '[{"a":' + text})
    contents = take_apart(raw)
    assert "gen_ai.input.messages" not in contents.consumed
    assert put_together("gen_ai.output.messages", contents.attributes["gen_ai.output.messages"]) == {
        "gen_ai.output.messages": text
    }


def test_a_span_without_content_has_no_contents() -> None:
    raw = span({"http.method": "GET", "llm.token_count.prompt": 3}, (Event("exception", 1, {"message": "x"}),))
    assert take_apart(raw) == Contents()


@pytest.mark.parametrize(
    "key",
    [
        "gen_ai.agent.goal",
        "gen_ai.agent.context",
        "gen_ai.agent.instructions",
        "gen_ai.agent.thinking",
        "langwatch.contexts",
        "langwatch.rag.contexts",
        "langwatch.instructions",
        "mcp.request.payload",
    ],
)
def test_what_openlit_and_langwatch_say_of_prompts_documents_and_thoughts_is_content(key: str) -> None:
    assert is_content(key)
    assert "the secret" not in repr(strip(span({key: "the secret"})))


@pytest.mark.parametrize(
    "key",
    [
        *sorted(CONTENT_KEYS),
        *sorted(SENSITIVE_KEYS),
        "llm.tools.0.tool.json_schema",
        "llm.azure.messages",
        "agentops.task.output",
        "mastra.tool_call.input",
        "message.tool_calls.0.tool_call.function.arguments",
        "metadata.steps.0.output",
        "metadata.result.response",
    ],
)
def test_without_content_no_content_key_is_left(key: str) -> None:
    secret = "the secret"
    raw = replace(
        span(
            {key: secret, "gen_ai.request.model": "m", "error.type": "E", "error.message": secret},
            (
                Event("gen_ai.choice", 1, {"message": secret, "finish_reason": "stop", key: secret}),
                Event(
                    "exception", 2, {"exception.type": "E", "exception.message": secret, "exception.stacktrace": secret}
                ),
            ),
        ),
        status_message=secret,
        status_code="error",
        links=(Link("0" * 32, "0" * 16, "", {key: secret}),),
    )
    stripped = strip(raw)
    assert is_content(key) or key in SENSITIVE_KEYS
    assert secret not in repr(stripped)
    assert stripped.attributes == {"gen_ai.request.model": "m", "error.type": "E"}
    assert [event.attributes for event in stripped.events] == [{"finish_reason": "stop"}, {"exception.type": "E"}]
    assert take_apart(stripped) == Contents()


def test_what_says_itself_that_it_tells_of_people_goes() -> None:
    """LiveKit."""
    assert strip(span({"lk.pii.whatever_comes_next": "the secret", "lk.retry_count": 0})).attributes == {
        "lk.retry_count": 0
    }


def test_a_boolean_quotes_nobody_and_stays() -> None:
    assert strip(span({"error": True, "text": False})).attributes == {"error": True, "text": False}


def test_words_that_are_content_to_some_come_back_from_spans_of_all_others() -> None:
    attributes: dict[str, Any] = {
        "input": "in.csv",
        "output": ("a", "b"),
        "response": 200,
        "transcript": None,
        "text": "plain",
        "error": True,
        "text_output": 1.5,
        "raw_input": b"x",
    }
    contents = take_apart(span(attributes))
    back = {key: value for key, value in attributes.items() if key not in contents.consumed}
    for key, value in contents.attributes.items():
        back |= put_together(key, value)
    assert back == attributes
    assert list(map(type, back.values())) == [type(attributes[key]) for key in back]
