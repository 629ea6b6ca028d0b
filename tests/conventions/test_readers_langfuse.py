"""Spans of Langfuse's SDK."""

import json

import pytest

from step_exporter.conventions import read
from step_exporter.facts import RawSpan, Role, Scope, TokenUsage

START = 1_796_057_950_000_000_000


def span(name, attributes=None, **fields):
    attributes = {"langfuse.observation." + key: value for key, value in (attributes or {}).items()}
    attributes |= {"session.id": "conv-1", "langfuse.trace.tags": ("t1",)}
    return RawSpan("a" * 32, "b" * 16, None, name, start_ns=START, attributes=attributes, **fields)


def test_a_generation():
    attributes = {
        "type": "generation",
        "model.name": "gpt-4o-mini",
        "completion_start_time": '"2026-11-30T16:59:10.030647Z"',
        "metadata.finish_reason": '"tool_calls"',
        "metadata.ls_provider": '"openai"',
        "metadata.lc_agent_name": '"weather-agent"',
        "input": '{"tools": [], "messages": [{"role": "user", "content": "Weather?"}]}',
        "output": '{"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]}',
    }
    facts = read(span("OpenAI-generation", attributes, scope=Scope("langfuse-sdk")))
    assert (facts.role, facts.convention, facts.model) == (Role.LLM, "langfuse", "gpt-4o-mini")
    assert (facts.provider_name, facts.agent_name, facts.stop_reason) == ("openai", "weather-agent", "tool_calls")
    assert facts.first_token_ns == START + 30_647_000
    assert (facts.conversation_id, facts.tags) == ("conv-1", ("t1",))
    assert [message.text for message in facts.input_messages] == ["Weather?"]
    assert facts.asked_call_ids == ("c1",)


@pytest.mark.parametrize(
    ("usage", "flags"),
    [
        ({"prompt_tokens": 101, "completion_tokens": 37, "total_tokens": 138, "details": {}}, ()),
        ({"input_tokens": 101, "output_tokens": 37, "total_tokens": 138, "details": {}}, ()),
        ({"input": 101, "output": 37, "total": 138, "input_cached_tokens": 64, "output_reasoning_tokens": 8}, ()),
        ({"input": 37, "output": 29, "total": 138, "input_cache_read": 64, "output_reasoning": 8}, ("normalised",)),
        ({"input": 37, "output": 29, "cache_read_input_tokens": 64, "output_reasoning": 8}, ("normalised",)),
    ],
)
def test_cached_and_reasoning_tokens_are_counted_once(usage, flags):
    if usage.pop("details", None) is not None:
        given = "prompt_tokens" if "prompt_tokens" in usage else "input_tokens"
        made = "completion_tokens" if "prompt_tokens" in usage else "output_tokens"
        usage |= {f"{given}_details": {"cached_tokens": 64}, f"{made}_details": {"reasoning_tokens": 8}}
    facts = read(span("ChatOpenAI", {"type": "generation", "usage_details": json.dumps(usage)}))
    assert (facts.usage, facts.flags) == (TokenUsage(101, 37, 64, None, 8), flags)


def test_a_tool_and_its_error():
    attributes = {"type": "tool", "metadata.tool_call_id": '"c1"', "level": "ERROR", "status_message": "tool broke"}
    facts = read(span("get_weather", attributes))
    assert (facts.role, facts.tool_name, facts.call_id) == (Role.TOOL, "get_weather", "c1")
    assert (facts.failed, facts.error_message) == (True, "tool broke")


def test_agents_and_what_is_none():
    facts = read(span("weather-agent", {"type": "agent"}))
    assert (facts.role, facts.agent_name) == (Role.AGENT, "weather-agent")
    node = {"type": "agent", "metadata.langgraph_node": '"agent"'}
    assert read(span("agent", node)).role is Role.OTHER
    inner = {"type": "agent", "metadata.langgraph_node": '"tools"', "metadata.lc_agent_name": '"inner"'}
    assert read(span("inner", inner)).role is Role.AGENT
    for kind in ("span", "chain", "retriever", "embedding", "guardrail", "evaluator", "event"):
        assert read(span("x", {"type": kind})).role is Role.OTHER


@pytest.mark.parametrize(
    ("name", "agent", "role"),
    [
        ("researcher", '"researcher"', Role.AGENT),
        ("model", '"researcher"', Role.OTHER),
        ("LangGraph", None, Role.WORKFLOW),
        ("RunnableSequence", None, Role.OTHER),
    ],
)
def test_langchains_agents_are_told_by_their_names_and_nameless_graphs_are_workflows(name, agent, role):
    said = {"type": "chain"} if agent is None else {"type": "chain", "metadata.lc_agent_name": agent}
    assert read(span(name, said)).role is role


def test_langchains_thread_is_the_conversation_where_there_is_no_session():
    attributes = {"langfuse.observation.type": "chain", "langfuse.observation.metadata.thread_id": '"t1"'}
    assert read(RawSpan("a" * 32, "b" * 16, None, "x", attributes=attributes)).conversation_id == "t1"
