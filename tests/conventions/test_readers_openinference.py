"""Spans of OpenInference instrumentations."""

import json

import pytest

from step_exporter.conventions import read
from step_exporter.facts import Event, RawSpan, Role, Scope, TokenUsage

START = 1_795_369_000_000_000_000


def span(name, attributes=None, **fields):
    fields.setdefault("start_ns", START)
    return RawSpan("a" * 32, "b" * 16, None, name, attributes=attributes or {}, **fields)


RESPONSE = {
    "openinference.span.kind": "LLM",
    "llm.system": "openai",
    "llm.model_name": "gpt-5-mini-2025-08-07",
    "llm.token_count.prompt": 101,
    "llm.token_count.completion": 37,
    "llm.token_count.total": 138,
    "llm.token_count.prompt_details.cache_read": 64,
    "llm.token_count.prompt_details.cache_write": 0,
    "llm.token_count.prompt_details.audio": 5,
    "llm.token_count.completion_details.reasoning": 8,
    "llm.finish_reason": "stop",
    "session.id": "conv-42",
    "tag.tags": ["a", "b"],
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.tool_calls.0.tool_call.id": "call_30",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "get_weather",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"city": "Paris"}',
    "output.value": json.dumps(
        {
            "id": "resp_031",
            "model": "gpt-5-mini-2025-08-07",
            "output": [{"type": "function_call", "call_id": "call_30"}],
        }
    ),
}


def test_an_llm_span():
    event = Event("First Token Stream Event", START + 42)
    facts = read(span("response", RESPONSE, events=(event,)))
    assert (facts.role, facts.convention) == (Role.LLM, "openinference")
    assert facts.usage == TokenUsage(101, 37, 64, 0, 8, (("audio_tokens", 5),))
    assert (facts.model, facts.served_model) == ("gpt-5-mini-2025-08-07", "gpt-5-mini-2025-08-07")
    assert (facts.provider_name, facts.stop_reason) == ("openai", "stop")
    assert facts.request_id == "resp_031"  # on no attribute of its own
    assert facts.asked_call_ids == ("call_30",)
    assert (facts.conversation_id, facts.tags) == ("conv-42", ("a", "b"))
    assert facts.first_token_ns == START + 42


def test_a_failed_request_has_its_model_among_the_parameters_only():
    parameters = '{"model": "gpt-4o-mini", "base_url": "http://127.0.0.1/v1"}'
    facts = read(span("ChatCompletion", {"openinference.span.kind": "LLM", "llm.invocation_parameters": parameters}))
    assert (facts.model, facts.served_model, facts.model_endpoint) == ("gpt-4o-mini", None, "http://127.0.0.1/v1")


def test_langchains_response_id_and_agent_are_read_out_of_json():
    message = {"kwargs": {"response_metadata": {"id": "chatcmpl-2", "model_name": "gpt-4o-mini-2024-07-18"}}}
    facts = read(
        span(
            "ChatOpenAI",
            {
                "openinference.span.kind": "LLM",
                "metadata": '{"lc_agent_name": "math-agent", "langgraph_node": "model"}',
                "output.value": json.dumps({"generations": [[{"message": message}]]}),
            },
        )
    )
    assert (facts.request_id, facts.served_model, facts.agent_name) == (
        "chatcmpl-2",
        "gpt-4o-mini-2024-07-18",
        "math-agent",
    )


@pytest.mark.parametrize("kind", ["CHAIN", "EMBEDDING", "RETRIEVER", "RERANKER", "GUARDRAIL", "EVALUATOR", "PROMPT"])
def test_other_kinds(kind):
    assert read(span("x", {"openinference.span.kind": kind})).role is Role.OTHER


@pytest.mark.parametrize(
    ("name", "scope", "role"),
    [
        ("turn", "openinference.instrumentation.openai_agents", Role.STEP),
        ("turn", "my.app", Role.OTHER),
        ("Step 12", "openinference.instrumentation.smolagents", Role.STEP),
        ("weather-crew.kickoff", "openinference.instrumentation.crewai", Role.WORKFLOW),
        ("LangGraph", "openinference.instrumentation.langchain", Role.WORKFLOW),
        ("FunctionAgent.run", "openinference.instrumentation.llama_index", Role.AGENT),
        ("AgentWorkflow.run", "openinference.instrumentation.llama_index", Role.WORKFLOW),
        ("FunctionAgent.run", "openinference.instrumentation.haystack", Role.OTHER),
    ],
)
def test_chains_that_are_more(name, scope, role):
    assert read(span(name, {"openinference.span.kind": "CHAIN"}, scope=Scope(scope))).role is role


def test_agents_and_their_names():
    kind = {"openinference.span.kind": "AGENT"}
    assert read(span("weather_agent.run", kind)).agent_name == "weather_agent"
    assert read(span("x", kind | {"agent.name": "weather"})).agent_name == "weather"
    assert read(span("r.t._execute_core", kind | {"graph.node.id": "researcher"})).agent_name == "researcher"
    assert read(span("weather-agent", kind)).agent_name == "weather-agent"


def test_a_chain_that_has_langchains_agents_name_is_the_agent():
    chain = {"openinference.span.kind": "CHAIN", "metadata": '{"lc_agent_name": "researcher"}'}
    facts = read(span("researcher", chain))
    assert (facts.role, facts.agent_name) == (Role.AGENT, "researcher")
    assert read(span("model", chain)).role is Role.OTHER


@pytest.mark.parametrize("kind", ["embedding", "rerank"])
def test_openllmetrys_embeddings_are_no_requests_though_openinferences_processor_says_llm(kind):
    attributes = {"openinference.span.kind": "LLM", "llm.request.type": kind, "llm.token_count.prompt": 5}
    assert read(span("openai.embeddings", attributes)).role is Role.OTHER


@pytest.mark.parametrize(
    ("scope", "provider"),
    [
        ("openinference.instrumentation.groq", "groq"),
        ("openinference.instrumentation.mistralai", "mistral_ai"),
        ("openinference.instrumentation.langchain", None),
        ("my.app", None),
    ],
)
def test_the_provider_is_the_instrumentations_where_it_named_none(scope, provider):
    request = {"openinference.span.kind": "LLM", "llm.model_name": "m"}
    assert read(span("Completions", request, scope=Scope(scope))).provider_name == provider
    named = read(span("Completions", request | {"llm.provider": "azure"}, scope=Scope(scope)))
    assert named.provider_name == "azure.ai.openai"


def test_a_graphs_node_named_agent_is_no_agent():
    # LangChain's instrumentation calls every run with "agent" in its name an AGENT
    node = {"openinference.span.kind": "AGENT", "metadata": '{"langgraph_node": "agent"}'}
    assert read(span("agent", node)).role is Role.OTHER
    inner = {"openinference.span.kind": "AGENT", "metadata": '{"langgraph_node": "tools", "lc_agent_name": "math"}'}
    assert read(span("math", inner)).role is Role.AGENT


def test_the_root_of_an_openai_agents_trace_is_a_workflow_and_a_handoff_no_tool():
    scope = Scope("openinference.instrumentation.openai_agents")
    assert read(span("weather-flow", {"openinference.span.kind": "AGENT"}, scope=scope)).role is Role.WORKFLOW
    handoff = read(span("handoff to math-agent", {"openinference.span.kind": "TOOL"}, scope=scope))
    assert handoff.role is Role.OTHER


def test_llamaindex_says_by_an_event_that_it_was_cancelled():
    facts = read(
        span("FunctionAgent.run", {"openinference.span.kind": "AGENT"}, events=(Event("span.cancelled", START),))
    )
    assert (facts.agent_name, facts.cancelled, facts.error_type) == ("FunctionAgent", True, "CancelledError")


def test_an_agent_without_llm_spans_has_its_numbers_itself():
    agent = {"openinference.span.kind": "AGENT", "llm.finish_reason": "end_turn", "llm.token_count.prompt": 7}
    facts = read(span("ClaudeAgentSDK.query", agent | {"llm.model_name": "claude-sonnet-4-5"}))
    assert (facts.stop_reason, facts.model, facts.usage) == ("end_turn", "claude-sonnet-4-5", TokenUsage(7))


def test_llamaindex_puts_a_request_together_before_it_asks():
    scope = Scope("openinference.instrumentation.llama_index")
    kind = {"openinference.span.kind": "LLM"}
    assert read(span("OpenAI._prepare_chat_with_tools", kind, scope=scope)).role is Role.OTHER
    assert read(span("OpenAI.achat", kind, scope=scope)).role is Role.LLM


def test_agno_counts_claudes_cache_apart():
    counts = {"prompt": 101, "completion": 37, "prompt_details.cache_read": 64, "prompt_details.cache_write": 16}
    attributes = {"openinference.span.kind": "LLM", **{f"llm.token_count.{key}": n for key, n in counts.items()}}
    scope = Scope("openinference.instrumentation.agno")
    assert read(span("Claude.invoke", attributes, scope=scope)).usage == TokenUsage(181, 37, 64, 16)
    assert read(span("OpenAIChat.invoke", attributes, scope=scope)).usage == TokenUsage(101, 37, 64, 16)


def test_beeais_cached_tokens_are_among_its_metadata():
    attributes = {"openinference.span.kind": "LLM", "llm.token_count.prompt": 101, "llm.token_count.completion": 37}
    metadata = {"metadata.usage.cached_prompt_tokens": "64", "metadata.usage.cached_creation_tokens": "0"}
    assert read(span("OpenAIChatModel", attributes | metadata)).usage == TokenUsage(101, 37, 64, 0)


def test_a_gemini_request():
    attributes = {
        "openinference.span.kind": "LLM",
        "llm.finish_reason": "FinishReason.STOP",
        "output.value": '{"candidates": [{"finish_reason": "STOP"}], "response_id": "r-1"}',
    }
    facts = read(span("GenerateContentStream", attributes))
    assert (facts.request_id, facts.stop_reason) == ("r-1", "STOP")


def test_strands_has_its_stop_reason_in_the_message():
    attributes = {"openinference.span.kind": "LLM", "llm.output_messages.0.message.finish_reason": "end_turn"}
    assert read(span("chat", attributes)).stop_reason == "end_turn"


def test_a_tool_span():
    facts = read(
        span("get_weather.run", {"openinference.span.kind": "TOOL", "tool.name": "get_weather", "tool_call.id": "c1"})
    )
    assert (facts.role, facts.tool_name, facts.call_id) == (Role.TOOL, "get_weather", "c1")


def test_beside_genai_attributes_both_are_read_once():
    facts = read(
        span(
            "chat gpt-4o-mini",
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.usage.input_tokens": 101,
                "gen_ai.usage.output_tokens": 37,
                "llm.token_count.prompt": 101,
                "llm.token_count.completion": 37,
                "openinference.span.kind": "LLM",
                "llm.provider": "openai",
            },
        )
    )
    assert (facts.convention, facts.provider_name, facts.usage) == ("genai", "openai", TokenUsage(101, 37))
