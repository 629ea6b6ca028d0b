"""Spans of Logfire's own instrumentations of clients, and of the OpenAI Agents SDK."""

import json

import pytest

from step_exporter.conventions import read, without_content
from step_exporter.facts import RawSpan, Role, Scope, TokenUsage


def span(scope, template, attributes=None):
    said = {
        key: value if isinstance(value, (str, int)) else json.dumps(value) for key, value in (attributes or {}).items()
    }
    said["logfire.msg_template"] = template
    return RawSpan("a" * 32, "b" * 16, None, template, start_ns=1, attributes=said, scope=Scope(scope))


def spoken(messages):
    return [(message.role, message.text) for message in messages]


# Logfire 3


def test_a_request_to_openai_before_logfire_named_operations():
    attributes = {
        "request_data": {"messages": [{"role": "user", "content": "Weather?"}], "model": "gpt-4o-mini"},
        "response_data": {
            "message": {"content": "It is sunny.", "role": "assistant"},
            "usage": {"completion_tokens": 37, "prompt_tokens": 101, "prompt_tokens_details": {"cached_tokens": 64}},
        },
    }
    facts = read(span("logfire.openai", "Chat Completion with {request_data[model]!r}", attributes))
    assert (facts.role, facts.convention) == (Role.LLM, "logfire")
    assert (facts.provider_name, facts.model, facts.usage) == ("openai", "gpt-4o-mini", TokenUsage(101, 37, 64))
    assert spoken(facts.input_messages) == [("user", "Weather?")]
    assert spoken(facts.output_messages) == [("assistant", "It is sunny.")]


def test_a_request_to_anthropic_before_logfire_named_operations_counts_cached_tokens_in():
    usage = {"cache_creation_input_tokens": 16, "cache_read_input_tokens": 64, "input_tokens": 101, "output_tokens": 37}
    attributes = {"request_data": {"model": "claude-sonnet-4-5"}, "response_data": {"usage": usage}}
    facts = read(span("logfire.anthropic", "Message with {request_data[model]!r}", attributes))
    assert (facts.role, facts.provider_name, facts.model) == (Role.LLM, "anthropic", "claude-sonnet-4-5")
    assert facts.usage == TokenUsage(181, 37, 64, 16)


def test_the_end_of_a_streamed_answer_is_of_the_request():
    template = "streaming response from {request_data[model]!r} took {duration:.2f}s"
    attributes = {
        "logfire.span_type": "log",
        "request_data": {"model": "gpt-4o-mini"},
        "response_data": {"usage": {"completion_tokens": 37, "prompt_tokens": 101}},
    }
    facts = read(span("logfire.openai", template, attributes))
    assert (facts.role, facts.usage) == (Role.LLM, TokenUsage(101, 37))


@pytest.mark.parametrize("template", ["Embedding Creation with {request_data[model]!r}", "Image Generation with {x}"])
def test_embeddings_and_images_are_no_requests(template):
    assert read(span("logfire.openai", template, {"request_data": {"model": "m"}})).role is Role.OTHER


def test_a_span_of_ones_own_that_begins_like_a_request_is_none():
    assert read(span("my-app", "Message with {subject}")).role is Role.OTHER


# Logfire 4


@pytest.mark.parametrize(("counted", "prompt"), [(181, 181), (101, 181)])
def test_cached_tokens_are_counted_in_once_whether_or_not_logfire_has_added_them(counted, prompt):
    usage = {"cache_creation_input_tokens": 16, "cache_read_input_tokens": 64, "input_tokens": 101, "output_tokens": 37}
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": counted,
        "gen_ai.usage.output_tokens": 37,
        "gen_ai.usage.cache_read.input_tokens": 64,
        "gen_ai.usage.cache_creation.input_tokens": 16,
        "gen_ai.usage.raw": usage,
    }
    facts = read(span("logfire.anthropic", "Message with {request_data[model]!r}", attributes))
    assert facts.usage == TokenUsage(prompt, 37, 64, 16)


# Logfire on the OpenAI Agents SDK

AGENTS = "logfire.openai_agents"


def test_a_turn_of_the_openai_agents_sdk_is_a_step():
    facts = read(span(AGENTS, "Turn {turn} for agent weather-agent", {"sdk_span_type": "turn", "turn": 1}))
    assert (facts.role, facts.convention) == (Role.STEP, "logfire")
    assert read(span(AGENTS, "Task: Agent workflow", {"sdk_span_type": "task"})).role is Role.OTHER


def test_a_chat_of_the_openai_agents_sdk_takes_its_answer_for_no_part_of_its_prompt():
    asked = {"role": "user", "content": "Weather?"}
    said = {"role": "assistant", "content": "It is sunny."}
    attributes = {
        "input": [asked],
        "output": [said],
        "request_data": {"messages": [asked, said], "model": "gpt-4o-mini"},
        "usage": {"input_tokens": 101, "output_tokens": 37, "input_tokens_details": {"cached_tokens": 64}},
    }
    facts = read(span(AGENTS, "Chat completion with {gen_ai.request.model!r}", attributes))
    assert (facts.role, facts.model, facts.usage) == (Role.LLM, "gpt-4o-mini", TokenUsage(101, 37, 64))
    assert spoken(facts.input_messages) == [("user", "Weather?")]
    assert spoken(facts.output_messages) == [("assistant", "It is sunny.")]


def test_nothing_that_was_said_is_left_of_the_openai_agents_sdks_spans_where_content_is_off():
    attributes = dict.fromkeys(("input", "output", "raw_input", "response", "error"), "SECRET")
    raw = span(AGENTS, "Function: {name}", {**attributes, "name": "get_weather"})
    assert without_content(raw).attributes == {"logfire.msg_template": "Function: {name}", "name": "get_weather"}
