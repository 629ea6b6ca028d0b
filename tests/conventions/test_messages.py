"""Every vocabulary's prompts and answers come out in one form, and a reply equals its echo in the next prompt."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from step_exporter.conventions import _values
from step_exporter.conventions import messages as reading
from step_exporter.conventions.content import CONTENT_KEYS, Contents, take_apart
from step_exporter.conventions.messages import read_messages
from step_exporter.facts import Event, Message, RawSpan

CALL = ("get_weather", '{"city":"Paris"}')
ASKED = ("user", "What is the weather?", ())
CALLED = ("assistant", "", (CALL,))
GOT = ("tool", "sunny in Paris", ())
SAID = ("assistant", "It is sunny.", ())
BRIEF = ("system", "be brief", ())


def span(attributes: dict[str, Any], events: tuple[Event, ...] = ()) -> RawSpan:
    return RawSpan("0" * 31 + "1", "0" * 15 + "1", None, "chat", attributes=attributes, events=events)


def read(attributes: dict[str, Any], events: tuple[Event, ...] = ()) -> tuple[list[Any], list[Any]]:
    """Prompt and answer, each message as what makes it equal to another."""
    raw = span(attributes, events)
    prompt, answer = read_messages(raw, take_apart(raw))
    return list(map(equal, prompt)), list(map(equal, answer))


def equal(message: Message) -> tuple[Any, ...]:
    return (message.role, message.text, tuple((call.name, call.arguments) for call in message.tool_calls))


def structured(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(structured, value))
    return {key: structured(item) for key, item in value.items()} if isinstance(value, dict) else value


def flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(f"{prefix}.{key}", item).items()}
    if isinstance(value, list):
        return {k: v for n, item in enumerate(value) for k, v in flat(f"{prefix}.{n}", item).items()}
    return {prefix: value}


def genai(*parts: dict[str, Any], role: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "parts": list(parts), **more}


GENAI = [
    genai({"type": "text", "content": "What is the weather?"}, role="user", name=None),
    genai(
        {"type": "reasoning", "content": "hmm"},
        {"type": "tool_call", "id": "call_1", "name": "get_weather", "arguments": {"city": "Paris"}},
        role="assistant",
        name="weather-agent",
    ),
    genai({"type": "tool_call_response", "id": "call_1", "response": "sunny in Paris"}, role="tool"),
]
GENAI_REPLY = [
    genai(
        {"type": "tool_call", "id": "fc_9", "name": "get_weather", "arguments": '{"city": "Paris"}'},
        role="assistant",
        finish_reason="tool_call",
    )
]
OPENAI = [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "the weather?"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny in Paris"},
]
ANTHROPIC = [
    {"role": "user", "content": "What is the weather?"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hmm", "signature": "s"},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny in Paris"}]},
]
RESPONSES = [
    {"role": "user", "content": [{"type": "input_text", "text": "What is the weather?"}]},
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {
        "type": "function_call",
        "call_id": "call_1",
        "id": "fc_1",
        "name": "get_weather",
        "arguments": '{"city":"Paris"}',
    },
    {"type": "function_call_output", "call_id": "call_1", "output": "sunny in Paris"},
]
GEMINI = [
    {"role": "user", "parts": [{"text": "What is the weather?"}]},
    {
        "role": "model",
        "parts": [
            {"text": "hmm", "thought": True},
            {"functionCall": {"name": "get_weather", "args": {"city": "Paris"}}},
        ],
    },
    {"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"b": 1, "a": 2}}}]},
]
BEDROCK = [
    {"role": "user", "content": [{"text": "What is the weather?"}]},
    {
        "role": "assistant",
        "content": [
            {"reasoningContent": {"reasoningText": {"text": "hmm"}}},
            {"toolUse": {"toolUseId": "c", "name": "get_weather", "input": {"city": "Paris"}}},
        ],
    },
    {"role": "user", "content": [{"toolResult": {"toolUseId": "c", "content": [{"text": "sunny in Paris"}]}}]},
]


def langchain(kind: str, **fields: Any) -> dict[str, Any]:
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", kind], "kwargs": fields}


LANGCHAIN = [
    langchain("HumanMessage", content="What is the weather?", type="human", id="1"),
    langchain(
        "AIMessageChunk",
        content=[{"type": "tool_use", "id": "c", "name": "get_weather", "input": {}}],
        tool_calls=[{"name": "get_weather", "args": {"city": "Paris"}, "id": "c", "type": "tool_call"}],
    ),
    langchain("ToolMessage", content="sunny in Paris", type="tool", name="get_weather", tool_call_id="c"),
]
LANGCHAIN_DATA = [
    {"type": "human", "data": {"content": "What is the weather?", "type": "human"}},
    {
        "type": "ai",
        "data": {"content": "", "type": "ai", "tool_calls": [{"name": "get_weather", "args": {"city": "Paris"}}]},
    },
    {"type": "tool", "data": {"content": "sunny in Paris", "type": "tool", "tool_call_id": "c"}},
]
VERCEL = [
    {"role": "user", "content": [{"type": "text", "text": "What is the weather?"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "tool-call", "toolCallId": "c", "toolName": "get_weather", "input": {"city": "Paris"}},
        ],
    },
    {
        "role": "tool",
        "content": [
            {
                "type": "tool-result",
                "toolCallId": "c",
                "toolName": "get_weather",
                "output": {"type": "text", "value": "sunny in Paris"},
            }
        ],
    },
]
OPENINFERENCE = [
    {"message": {"role": "user", "content": "What is the weather?"}},
    {
        "message": {
            "role": "assistant",
            "contents": [{"message_content": {"type": "text", "text": ""}}],
            "tool_calls": [
                {"tool_call": {"id": "c", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}}
            ],
        }
    },
    {"message": {"role": "tool", "tool_call_id": "c", "content": "sunny in Paris"}},
]
TRACELOOP = [
    {"role": "user", "content": '[{"type": "text", "text": "What is the weather?"}]'},
    {"role": "assistant", "tool_calls": [{"id": "c", "name": "get_weather", "arguments": '{"city": "Paris"}'}]},
    {"role": "tool", "content": "sunny in Paris", "tool_call_id": "c"},
]
CONVERSATION = [ASKED, CALLED, GOT]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"gen_ai.input.messages": json.dumps(GENAI)}, CONVERSATION),
        ({"gen_ai.input.messages": structured(GENAI)}, CONVERSATION),
        ({"gen_ai.input.messages": json.dumps(ANTHROPIC)}, CONVERSATION),
        ({"input.value": json.dumps({"model": "m", "messages": OPENAI})}, [BRIEF, *CONVERSATION]),
        ({"input.value": json.dumps({"messages": ANTHROPIC, "system": "be brief"})}, [BRIEF, *CONVERSATION]),
        ({"input.value": json.dumps({"input": RESPONSES, "instructions": "be brief"})}, [BRIEF, *CONVERSATION]),
        ({"input.value": json.dumps(OPENAI)}, [BRIEF, *CONVERSATION]),
        ({"input.value": "What is the weather?"}, [ASKED]),
        ({"gen_ai.prompt": json.dumps({"messages": [LANGCHAIN]})}, CONVERSATION),
        ({"gen_ai.prompt": json.dumps({"messages": LANGCHAIN_DATA})}, CONVERSATION),
        ({"mlflow.spanInputs": json.dumps({"messages": BEDROCK, "tools": ["x" * 99]})}, CONVERSATION),
        ({"ai.prompt.messages": json.dumps(VERCEL)}, CONVERSATION),
        ({"ai.prompt": json.dumps({"system": "be brief", "prompt": "What is the weather?"})}, [BRIEF, ASKED]),
        (flat("llm.input_messages", OPENINFERENCE), CONVERSATION),
        (flat("gen_ai.prompt", TRACELOOP), CONVERSATION),
        ({"llm.openai.messages": repr(OPENAI)}, [BRIEF, *CONVERSATION]),
        (
            {
                "gcp.vertex.agent.llm_request": json.dumps(
                    {"model": "m", "config": {"system_instruction": "be brief"}, "contents": GEMINI}
                )
            },
            [BRIEF, ASKED, CALLED, ("tool", '{"a":2,"b":1}', ())],
        ),
    ],
    ids=[
        "genai-json",
        "genai-structured",
        "anthropic-blocks",
        "openai-request",
        "anthropic-request",
        "responses-request",
        "openai-messages",
        "text",
        "langchain-dump",
        "langchain-data",
        "bedrock",
        "vercel",
        "vercel-prompt",
        "openinference",
        "openllmetry",
        "litellm-raw",
        "gemini",
    ],
)
def test_a_prompt_of_any_vocabulary(attributes: dict[str, Any], expected: list[Any]) -> None:
    assert read(attributes)[0] == expected


@pytest.mark.parametrize(
    "attributes",
    [
        {"gen_ai.output.messages": json.dumps(GENAI_REPLY)},
        {"gen_ai.output.messages": structured(GENAI_REPLY)},
        {"output.value": json.dumps({"choices": [{"index": 0, "message": OPENAI[2], "finish_reason": "tool_calls"}]})},
        {"output.value": json.dumps({"id": "r", "instructions": "be brief", "output": RESPONSES[1:3]})},
        {"output.value": json.dumps({"type": "message", "id": "m", **ANTHROPIC[1]})},
        {"gen_ai.completion": json.dumps({"generations": [[{"text": "", "message": LANGCHAIN[1]}]]})},
        {"mlflow.spanOutputs": json.dumps({"output": {"message": BEDROCK[1]}})},
        {"gcp.vertex.agent.llm_response": json.dumps({"content": GEMINI[1], "usage_metadata": {}})},
        {
            "ai.response.text": "",
            "ai.response.toolCalls": json.dumps(
                [{"toolCallId": "c", "toolName": "get_weather", "input": '{"city": "Paris"}'}]
            ),
        },
        flat("llm.output_messages", OPENINFERENCE[1:2]),
        flat("gen_ai.completion", TRACELOOP[1:2]),
        {
            "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": []}]),
            "gen_ai.completion.0.function_call.name": "get_weather",
            "gen_ai.completion.0.function_call.arguments": '{"city": "Paris"}',
        },
        {"llm.openai.choices": repr([{"message": OPENAI[2], "finish_reason": "tool_calls"}])},
        {"response_data": json.dumps({"message": OPENAI[2], "usage": {}})},
    ],
    ids=[
        "genai-json",
        "genai-structured",
        "openai",
        "responses",
        "anthropic",
        "langchain",
        "bedrock",
        "gemini",
        "vercel",
        "openinference",
        "openllmetry",
        "litellm",
        "litellm-raw",
        "logfire",
    ],
)
def test_a_reply_equals_its_echo_in_every_vocabulary(attributes: dict[str, Any]) -> None:
    assert read(attributes)[1] == [CALLED]


def test_genai_events_on_spans() -> None:
    events = (
        Event("gen_ai.system.message", 1, {"content": "be brief"}),
        Event("gen_ai.user.message", 2, {"content": json.dumps(BEDROCK[0]["content"])}),
        Event("gen_ai.assistant.message", 3, {"content": json.dumps(BEDROCK[1]["content"])}),
        Event("gen_ai.tool.message", 4, {"content": json.dumps(BEDROCK[2]["content"])}),
        Event("gen_ai.choice", 5, {"message": '[{"text": "It is sunny."}]', "finish_reason": "end_turn"}),
    )
    assert read({}, events) == ([BRIEF, *CONVERSATION], [SAID])


def test_genai_events_with_the_message_in_one_attribute() -> None:
    def event(name: str, body: dict[str, Any]) -> Event:
        return Event(name, 1, {"gen_ai.event.content": json.dumps(body)})

    events = (
        event("gen_ai.user.message", {"role": "user", "content": "What is the weather?"}),
        event("gen_ai.assistant.message", {"tool_calls": OPENAI[2]["tool_calls"]}),
        event("gen_ai.tool.message", {"content": "sunny in Paris", "id": "call_1"}),
        event("gen_ai.choice", {"message": {"content": "It is sunny."}, "finish_reason": "stop", "index": 0}),
    )
    assert read({}, events) == (CONVERSATION, [SAID])


def test_genai_messages_on_the_details_event() -> None:
    details = Event(
        "gen_ai.client.inference.operation.details",
        1,
        {
            "gen_ai.system_instructions": ({"type": "text", "content": "be brief"},),
            "gen_ai.input.messages": structured(GENAI),
            "gen_ai.output.messages": structured(GENAI_REPLY),
        },
    )
    assert read({}, (details,)) == ([BRIEF, *CONVERSATION], [CALLED])


def test_system_instructions_come_first_and_once() -> None:
    instructions = json.dumps([{"type": "text", "content": "be "}, {"type": "text", "content": "brief"}])
    both = {"gen_ai.system_instructions": instructions, "gen_ai.input.messages": json.dumps(GENAI)}
    assert read(both)[0] == [BRIEF, *CONVERSATION]
    again = {"gen_ai.system_instructions": instructions, **flat("llm.input_messages", [{"message": OPENAI[0]}])}
    assert read(again)[0] == [BRIEF]


@pytest.mark.parametrize(
    "attributes",
    [
        {"llm.invocation_parameters": '{"model": "claude-sonnet-4-5", "system": "be brief"}'},
        {"llm.invocation_parameters": '{"system": [{"type": "text", "text": "be brief"}]}'},
        {"llm.anthropic.system": "[{'type': 'text', 'text': 'be brief'}]"},
        {"llm.openai.instructions": "be brief"},
    ],
    ids=["openinference-text", "openinference-blocks", "litellm-anthropic", "litellm-responses"],
)
def test_a_system_prompt_beside_the_messages_comes_first(attributes: dict[str, Any]) -> None:
    assert read({**attributes, **flat("llm.input_messages", OPENINFERENCE)})[0] == [BRIEF, *CONVERSATION]


def test_parameters_without_a_system_prompt_give_no_message() -> None:
    parameters = {"llm.invocation_parameters": '{"model": "m", "max_tokens": 100}'}
    assert read({**parameters, **flat("llm.input_messages", OPENINFERENCE)})[0] == CONVERSATION


def test_a_prompt_that_is_no_chat_is_the_users() -> None:
    """OpenLLMetry on OpenAI's completions."""
    assert read({"gen_ai.prompt.0.user": "What is the weather?"})[0] == [ASKED]


def test_a_tools_result_is_no_words_of_the_user() -> None:
    """OpenInference on Anthropic's SDK, at first."""
    result = {"role": "user", "tool_call_id": "toolu_1", "content": "sunny in Paris"}
    assert read(flat("llm.input_messages", [{"message": result}]))[0] == [GOT]


def test_calls_that_are_written_as_the_content_are_calls() -> None:
    """Langtrace."""
    call = {"id": "c", "type": "function", "function": {"name": CALL[0], "arguments": CALL[1]}}
    event = Event(
        "gen_ai.content.completion", 1, {"gen_ai.completion": json.dumps([{"role": "assistant", "content": [call]}])}
    )
    assert read({}, (event,))[1] == [CALLED]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('[{"type": "text", "text": "It is sunny."}]', "It is sunny."),
        ('[{"text": "It is sunny."}]', "It is sunny."),
        ('[{"city": "Paris"}]', '[{"city": "Paris"}]'),
        ('[{"text": "It is', '[{"text": "It is'),
    ],
    ids=["typed", "bedrock", "data", "cut"],
)
def test_parts_that_are_written_as_text_are_read_and_data_is_left_alone(written: str, text: str) -> None:
    """OpenLLMetry."""
    said = {"gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": written}
    assert read(said)[1] == [("assistant", text, ())]


def test_what_only_some_emitters_call_their_prompt_is_asked_last() -> None:
    """A name as common as "input" may be anybody's."""
    said = {"input": "something else", "output": "something else"}
    asked = {"langfuse.observation.input": "What is the weather?", "langfuse.observation.output": "It is sunny."}
    assert read({**said, **asked}) == ([ASKED], [SAID])


def test_a_whole_conversation_ends_with_the_answer() -> None:
    said = genai({"type": "text", "content": "It is sunny."}, role="assistant")
    assert read({"pydantic_ai.all_messages": json.dumps([*GENAI, said])}) == (CONVERSATION, [SAID])
    events = [
        {"event.name": "gen_ai.user.message", "role": "user", "content": "What is the weather?"},
        {"event.name": "gen_ai.choice", "index": 0, "message": {"role": "assistant", "content": "It is sunny."}},
    ]
    assert read({"events": json.dumps(events)}) == ([ASKED], [SAID])
    dump = {"messages": [*LANGCHAIN, langchain("AIMessage", content="It is sunny.", type="ai")]}
    assert read({"output.value": json.dumps(dump)})[1] == [SAID]


def test_a_role_that_is_an_enums_member() -> None:
    said = {"role": "ChatRole.SYSTEM", "content": "You help."}
    prompt, _ = read({"llm.input_messages.0.message.role": said["role"], "llm.input_messages.0.message.content": "x"})
    assert [message[0] for message in prompt] == ["system"]
    prompt, _ = read({"input.value": json.dumps({"messages": [said, {"role": "MessageRole.USER", "content": "hi"}]})})
    assert [message[0] for message in prompt] == ["system", "user"]


def test_langfuses_tools_are_no_messages() -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    said = [{"role": "user", "content": "hi"}, {"role": "tool", "content": tool}]
    prompt, _ = read({"langfuse.observation.input": json.dumps(said)})
    assert [message[0] for message in prompt] == ["user"]


def test_parallel_calls_are_one_reply_however_they_are_sent() -> None:
    items = [
        {"type": "function_call", "call_id": str(n), "name": f"tool_{n}", "arguments": "{}", "id": f"fc_{n}"}
        for n in range(2)
    ]
    parts = [{"type": "tool_call", "id": str(n), "name": f"tool_{n}", "arguments": None} for n in range(2)]
    expected = [("assistant", "", (("tool_0", "{}"), ("tool_1", "{}")))]
    assert read({"output.value": json.dumps({"output": items})})[1] == expected
    assert read({"gen_ai.output.messages": json.dumps([genai(*parts, role="assistant")])})[1] == expected
    messages = [{"message": {"role": "assistant", **call}} for call in ({"tool_calls": [p]} for p in parts)]
    assert read(flat("llm.output_messages", messages))[1] == expected


def test_one_message_with_several_results_is_a_tool_message_each() -> None:
    results = [{"type": "tool_result", "tool_use_id": str(n), "content": f"result {n}"} for n in range(2)]
    turn = {"role": "user", "content": [*results, {"type": "text", "text": "and now?"}]}
    raw = span({"gen_ai.input.messages": json.dumps([turn])})
    messages = read_messages(raw, take_apart(raw))[0]
    assert [(m.role, m.text, m.tool_call_id) for m in messages] == [
        ("tool", "result 0", "0"),
        ("tool", "result 1", "1"),
        ("user", "and now?", None),
    ]


def test_autogens_results_are_a_tool_message_each() -> None:
    results = [json.dumps({"name": "f", "content": said, "call_id": f"c{n}"}) for n, said in enumerate(["a", "b"])]
    attributes = {f"llm.input_messages.0.function.{n}": result for n, result in enumerate(results)}
    raw = span({"llm.input_messages.0.message.role": "function", **attributes})
    found, _ = read_messages(raw, take_apart(raw))
    assert [(m.role, m.text, m.name, m.tool_call_id) for m in found] == [
        ("tool", "a", "f", "c0"),
        ("tool", "b", "f", "c1"),
    ]


def test_a_tool_message_knows_its_tool() -> None:
    raw = span({"input.value": json.dumps({"messages": OPENAI})})
    tool = read_messages(raw, take_apart(raw))[0][-1]
    assert (tool.role, tool.name, tool.tool_call_id) == ("tool", "get_weather", "call_1")


def test_a_message_names_the_element_that_it_was_read_from() -> None:
    raw = span({"gen_ai.input.messages": json.dumps(GENAI)})
    contents = take_apart(raw)
    elements = contents.attributes["gen_ai.input.messages"].elements
    assert [m.content_hash for m in read_messages(raw, contents)[0]] == [element.hash for element in elements]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"city": "Paris", "n": 1}', {"n": 1.0, "city": "Paris"}),
        ("", {}),
        (None, "{}"),
        ('{"a": "é"}', '{"a":"\\u00e9"}'),
    ],
)
def test_equal_arguments_are_equal_text(one: Any, other: Any) -> None:
    def arguments(value: Any) -> Any:
        part = {"type": "tool_call", "name": "t", "arguments": value}
        return read({"gen_ai.output.messages": json.dumps([genai(part, role="assistant")])})[1]

    assert arguments(one) == arguments(other)


def test_arguments_that_are_no_json_stay_as_they_came() -> None:
    part = {"type": "tool_call", "name": "t", "arguments": '{"city": "Par'}
    reply = read({"gen_ai.output.messages": json.dumps([genai(part, role="assistant")])})[1]
    assert reply == [("assistant", "", (("t", '{"city": "Par'),))]


def test_parts_that_are_no_text_count_without_their_ids() -> None:
    def image(identity: str) -> Any:
        part = {"type": "image_url", "id": identity, "image_url": {"url": "u"}}
        return read({"input.value": json.dumps({"messages": [{"role": "user", "content": ["look ", part]}]})})[0]

    assert image("1") == image("2") == [("user", 'look {"image_url":{"url":"u"},"type":"image_url"}', ())]


def test_what_smolagents_makes_of_calls_and_code() -> None:
    def echo(role: str, text: str) -> dict[str, Any]:
        return {"message": {"role": role, "contents": [{"message_content": {"type": "text", "text": text}}]}}

    calls = "Calling tools:\n[{'id': 'c', 'function': {'name': '%s', 'arguments': {'city': 'Paris'}}}]"
    asked = [echo("user", "What is the weather?"), echo("tool-call", calls % "get_weather")]
    got = echo("tool-response", "Observation:\nsunny in Paris")
    assert read(flat("llm.input_messages", [*asked, got]))[0] == CONVERSATION
    code = [echo("assistant", "It is sunny."), echo("tool-call", calls % "python_interpreter")]
    assert read(flat("llm.input_messages", code))[0] == [SAID]


@pytest.mark.parametrize(
    "attributes",
    [
        {"traceloop.entity.input": json.dumps({"args": ["x"], "kwargs": {"history": OPENAI}})},
        {"llm.openai.choices": "[{'message': <object>}]"},
        {"output.value": "<coroutine object parse at 0x7f16>"},
        {"gen_ai.output.messages": json.dumps([genai(role="assistant")])},
        {"llm.input_messages.0.message.role": "user"},
        {"gen_ai.tool.call.arguments": '{"city": "Paris"}'},
    ],
)
def test_what_is_no_message_gives_none(attributes: dict[str, Any]) -> None:
    assert read(attributes) == ([], [])


FIELDS = (
    st.sampled_from(["role", "content", "parts", "type", "text", "tool_calls", "function", "name", "arguments", "id"])
    | st.sampled_from(["message", "messages", "kwargs", "data", "lc", "input", "output", "system", "config"])
    | st.sampled_from(["tool_call", "toolUse", "toolResult", "function_call", "functionResponse", "message_content"])
)
WORDS = st.sampled_from(
    ["user", "ai", "tool", "text", "tool_call", "tool_result", "function_call", "human", "reasoning", "[{", '"', ""]
)
SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=15,
)
KEYS = st.sampled_from([*sorted(CONTENT_KEYS), "llm.input_messages.0.message", "gen_ai.completion.0", "llm.x.choices"])


@settings(deadline=None)
@given(
    st.dictionaries(KEYS, SHAPES, max_size=5), st.booleans(), st.sampled_from(["gen_ai.choice", "gen_ai.tool.message"])
)
def test_no_value_raises(values: dict[str, Any], as_text: bool, event: str) -> None:
    made = {key: json.dumps(value) if as_text else structured(value) for key, value in values.items()}
    body = {"content": next(iter(made.values()), ""), "tool_calls": next(reversed(made.values()), "")}
    raw = span(made, (Event(event, 1, body),))
    for messages in read_messages(raw, take_apart(raw)):
        for message in messages:
            assert message.role in {"system", "user", "assistant", "tool"}
            assert isinstance(message.text, str)
            hash(message)


PARTS = WORDS | st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "tool_call", "tool_call_response", "reasoning", "blob", "", None])},
    optional={
        "content": WORDS | SHAPES,
        "text": WORDS,
        "id": WORDS | st.integers(),
        "name": WORDS | st.none(),
        "arguments": SHAPES | st.just('{"b": 1.0, "a": "é"}'),
        "response": SHAPES | st.just('[{"type": "text", "text": " sunny "}]'),
        "result": WORDS,
    },
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(PARTS, max_size=3),
    st.sampled_from(["user", "assistant", "tool", "system", "AI", "nobody", 1]),
    st.dictionaries(st.sampled_from(["name", "finish_reason"]), WORDS | st.none() | st.just(["x"])),
    st.sampled_from(["gen_ai.input.messages", "gen_ai.output.messages"]),
)
def test_the_commonest_shape_is_read_as_every_other(
    parts: list[Any], role: Any, more: dict[str, Any], key: str
) -> None:
    def said(message: dict[str, Any]) -> Any:
        raw = span({key: json.dumps([message])})
        return [[replace(m, content_hash=None) for m in messages] for messages in read_messages(raw, take_apart(raw))]

    message = {"role": role, "parts": parts, **more}
    assert said(message) == said({**message, "a field that means nothing": 1})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(JSON, st.booleans())
def test_arguments_and_results_are_read_alike_however_they_are_wrapped(value: Any, ascii_only: bool) -> None:
    """By one parser where the message is a plain one, by another where it is not."""

    def said(**more: str) -> Any:
        parts = [
            {"type": "tool_call", "id": "c", "name": "f", "arguments": value},
            {"type": "tool_call_response", "id": "c", "response": value},
        ]
        text = json.dumps([{"role": "user", "parts": parts, **more}], ensure_ascii=ascii_only)
        raw = span({"gen_ai.input.messages": text})
        return [replace(message, content_hash=None) for message in read_messages(raw, take_apart(raw))[0]]

    assert said() == said(more="than a plain one")


TURNS = st.sampled_from(
    [
        {"role": "system", "parts": [{"type": "text", "content": "be brief"}]},
        {"role": "user", "parts": [{"type": "text", "content": "hi"}]},
        {"role": "user", "parts": []},
        {"role": "assistant", "parts": []},
        {"role": "assistant", "parts": [{"type": "text", "content": "so"}]},
        *(
            {"role": "assistant", "parts": [{"type": "tool_call", "id": id_, "name": name, "arguments": {}}]}
            for id_, name in [("a", "find"), ("b", "read"), ("a", "other"), ("", "none")]
        ),
        *(
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": id_, "response": "r"}]}
            for id_ in ("a", "b", "a", "c", None)
        ),
        {"role": "tool", "name": "given", "parts": [{"type": "tool_call_response", "id": "a", "response": "r"}]},
        {"role": "tool", "content": "r", "tool_call_id": "b"},
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(TURNS, max_size=9), st.lists(st.integers(0, 9), max_size=6), st.booleans())
def test_a_prompt_that_continues_another_is_read_as_if_it_were_the_first(
    turns: list[Any], lengths: list[int], with_system: bool
) -> None:
    more = {"gen_ai.system_instructions": '[{"type": "text", "content": "be kind"}]'} if with_system else {}
    for length in lengths:
        raw = span({"gen_ai.input.messages": json.dumps(turns[:length]), **more})
        found = read_messages(raw, take_apart(raw))
        with mock.patch.dict(reading._prompts, clear=True):
            assert read_messages(raw, take_apart(raw)) == found
        listed = span({"gen_ai.input.messages": tuple(map(structured, turns[:length])), **more})  # never remembered
        assert list(map(equal, read_messages(listed, take_apart(listed))[0])) == list(map(equal, found[0]))


def test_a_tool_that_is_named_later_is_named_in_all_of_the_prompt() -> None:
    turns = [
        {"role": "user", "parts": [{"type": "text", "content": "hi"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "late", "response": "r"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "late", "name": "find", "arguments": {}}]},
    ]
    names = []
    for length in (2, 3):
        raw = span({"gen_ai.input.messages": json.dumps(turns[:length])})
        names.append(read_messages(raw, take_apart(raw))[0][1].name)
    assert names == [None, "find"]


@pytest.mark.parametrize("depth", [100, 400, 900, 990, 2_000, 50_000])
def test_arguments_and_results_nested_beyond_every_limit_give_no_error(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    for part in ('"type": "tool_call", "arguments": ', '"type": "tool_call_response", "response": '):
        text = '[{"role": "user", "parts": [{' + part + deep + "}]}]"
        raw = span({"gen_ai.input.messages": text, "gen_ai.output.messages": text})
        for messages in read_messages(raw, take_apart(raw)):
            assert all(isinstance(message.text, str) for message in messages)


def test_the_stack_may_be_deeper_where_a_message_is_read_than_where_it_was_taken_apart() -> None:
    def read_below(frames: int, raw: RawSpan, contents: Contents) -> Any:
        return read_below(frames - 1, raw, contents) if frames else read_messages(raw, contents)

    for depth in range(900, 1000):  # about Python's own limit
        deep = "[" * depth + "]" * depth
        text = '[{"role": "user", "parts": [{"type": "tool_call", "arguments": ' + deep + "}]}]"
        raw = span({"gen_ai.input.messages": text})
        assert read_below(20, raw, take_apart(raw))


def test_a_shared_beginning_is_not_kept_for_every_prompt_that_continues_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CACHED_CHARS", 100_000)
    said = [{"role": "assistant", "parts": [{"type": "text", "content": "x" * 5_000}]}]
    called = {"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "f", "arguments": {}}]}
    for number in range(200):
        asked = {"role": "user", "parts": [{"type": "text", "content": f"{number}"}]}
        raw = span({"gen_ai.input.messages": json.dumps([called, *said, asked])})  # two pieces that are made one
        read_messages(raw, take_apart(raw))
        assert sum(len(m.text) for prompt in reading._prompts.values() for m in prompt.messages) < 150_000


def test_a_text_of_a_class_of_its_own_is_a_text() -> None:
    class Word(str):
        pass

    raw = span(
        {"gen_ai.input.messages": Word("hi"), "gen_ai.output.messages": Word('[{"role":"assistant","parts":[]}]')}
    )
    assert [message.text for message in read_messages(raw, take_apart(raw))[0]] == ["hi"]


def test_nesting_beyond_every_limit_gives_no_error() -> None:
    for text in ("[" * 100_000, '[{"content":' * 900 + "1" + "}]" * 900, '{"input":' * 5000 + "1" + "}" * 5000):
        raw = span({"gen_ai.input.messages": text, "output.value": text})
        read_messages(raw, take_apart(raw))


def test_a_prompt_that_would_take_python_3_11_seconds_to_parse_is_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[str] = []
    evaluate = _values.ast.literal_eval
    monkeypatch.setattr(_values.ast, "literal_eval", lambda text: evaluated.append(text) or evaluate(text))
    code = "['" + "f'{x}' + " * 5_000 + "']"
    assert [message.text for message in reading._messages(reading._decode(code), "user")] == [code]
    assert evaluated == []
    assert reading._decode("['" + "x" * 50_000 + "']") == ["x" * 50_000]
