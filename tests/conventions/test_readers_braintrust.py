"""Spans of Braintrust's SDKs for Go, Ruby, Java and .NET."""

import json

import pytest

from step_exporter.conventions import read, without_content
from step_exporter.facts import RawSpan, Role, Scope, TokenUsage

START = 1_796_067_000_000_000_000


def span(name, attributes):
    said = {key: value if isinstance(value, str) else json.dumps(value) for key, value in attributes.items()}
    return RawSpan("a" * 32, "b" * 16, None, name, start_ns=START, attributes=said, scope=Scope("braintrust"))


CALL = {"id": "call_0_0", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
CHAT = {
    "braintrust.span_attributes": {"type": "llm"},
    "braintrust.input_json": [{"role": "system", "content": "You help."}, {"role": "user", "content": "Weather?"}],
    "braintrust.output_json": [
        {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [CALL]}}
    ],
    "braintrust.metadata": {
        "provider": "openai",
        "endpoint": "/v1/chat/completions",
        "model": "gpt-4o-mini",
        "id": "chatcmpl-0",
    },
    "braintrust.metrics": {
        "prompt_tokens": 101,
        "completion_tokens": 37,
        "tokens": 138,
        "prompt_cached_tokens": 64,
        "prompt_cache_creation_tokens": 16,
        "completion_reasoning_tokens": 8,
        "time_to_first_token": 0.25,
    },
}


def test_a_request_of_braintrust():
    facts = read(span("Chat Completion", CHAT))
    assert (facts.role, facts.convention) == (Role.LLM, "braintrust")
    assert (facts.provider_name, facts.model, facts.request_id) == ("openai", "gpt-4o-mini", "chatcmpl-0")
    assert (facts.usage, facts.stop_reason) == (TokenUsage(101, 37, 64, 16, 8), "tool_calls")
    assert facts.first_token_ns == START + 250_000_000
    assert [(message.role, message.text) for message in facts.input_messages] == [
        ("system", "You help."),
        ("user", "Weather?"),
    ]
    assert facts.asked_call_ids == ("call_0_0",)


def test_braintrusts_stop_reason_may_be_among_the_metadata():
    metadata = {"provider": "anthropic", "model": "claude-sonnet-4-5", "stop_reason": "end_turn"}
    assert read(span("anthropic.messages", CHAT | {"braintrust.metadata": metadata})).stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("Chat Completion", {"braintrust.metadata": {"endpoint": "/v1/embeddings", "model": "e"}}),
        ("pinecone.embed", {"braintrust.input_json": {"inputs": ["Weather?"]}}),
        ("cohere.rerank", {}),
    ],
)
def test_what_asks_no_language_model_is_no_request_though_braintrust_says_llm(name, attributes):
    assert read(span(name, {"braintrust.span_attributes": {"type": "llm"}, **attributes})).role is Role.OTHER


@pytest.mark.parametrize("kind", ["task", "score", "eval", "function"])
def test_what_braintrust_wraps_or_evaluates_is_nothing_of_a_loop(kind):
    assert read(span("my-task", {"braintrust.span_attributes": {"type": kind}})).role is Role.OTHER


def test_a_task_of_braintrust_that_is_an_agent_to_another_instrumentation_stays_one():
    task = {"braintrust.span_attributes": {"type": "task"}, "gen_ai.operation.name": "invoke_agent"}
    assert read(span("invoke_agent bot", task)).role is Role.AGENT


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tool [get_weather]", {}),
        ("tool: get_weather", {}),
        ("x", {"tool.name": "get_weather"}),
        ("x", {"gen_ai.tool.name": "get_weather"}),
    ],
)
def test_braintrusts_tools_have_their_names(name, said):
    facts = read(span(name, {"braintrust.span_attributes": {"type": "tool"}, **said}))
    assert (facts.role, facts.tool_name) == (Role.TOOL, "get_weather")


def test_nothing_that_was_said_is_left_of_braintrusts_spans_where_content_is_off():
    keys = ("input", "input_json", "output", "output_json", "expected")
    raw = span("x", {**{f"braintrust.{key}": "SECRET" for key in keys}, "tool.input": "SECRET"})
    assert without_content(raw).attributes == {}
    assert read(without_content(span("Chat Completion", CHAT))).stop_reason == "tool_calls"
