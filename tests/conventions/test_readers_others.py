"""Spans of OpenLLMetry, the Vercel AI SDK, MLflow, LangSmith, Logfire, pydantic-ai and litellm."""

import json

import pytest
from msgspec.structs import replace

from step_exporter.conventions import logfire, read
from step_exporter.facts import Event, RawSpan, Role, Scope, TokenUsage

START = 1_795_369_000_000_000_000


def span(name, attributes=None, **fields):
    fields.setdefault("start_ns", START)
    return RawSpan("a" * 32, "b" * 16, None, name, attributes=attributes or {}, **fields)


# OpenLLMetry


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        ("workflow", Role.WORKFLOW),
        ("agent", Role.AGENT),
        ("tool", Role.TOOL),
        ("task", Role.OTHER),
        ("handoff", Role.OTHER),
    ],
)
def test_openllmetry_kinds(kind, role):
    assert read(span("x", {"traceloop.span.kind": kind})).role is role


def test_openllmetrys_workflow_is_the_outermost_and_names_no_agent():
    properties = "traceloop.association.properties."
    facts = read(
        span(
            "ChatOpenAI.chat",
            {
                "gen_ai.operation.name": "chat",
                "traceloop.workflow.name": "boss-agent",
                properties + "lc_agent_name": "math-agent",
                properties + "session_id": "conv-9",
                "gen_ai.openai.api_base": "http://127.0.0.1/v1/",
            },
            events=(Event("gen_ai.content.completion.chunk", START + 5),),
        )
    )
    assert (facts.agent_name, facts.conversation_id) == ("math-agent", "conv-9")
    assert (facts.model_endpoint, facts.first_token_ns) == ("http://127.0.0.1/v1/", START + 5)
    assert read(span("x", {"gen_ai.operation.name": "chat", "traceloop.workflow.name": "boss"})).agent_name is None


def test_openllmetrys_tool_and_agent_are_named_by_their_entity():
    tool = read(span("get_weather.tool", {"traceloop.span.kind": "tool", "traceloop.entity.name": "get_weather"}))
    assert tool.tool_name == "get_weather"
    assert read(span("weather-agent.agent", {"traceloop.span.kind": "agent"})).agent_name == "weather-agent"


def test_openllmetrys_llamaindex_agents_and_tools_are_told_by_their_classes():
    scope = Scope("opentelemetry.instrumentation.llamaindex")
    given = '{"tool_name": "get_weather", "raw_output": "broke", "is_error": true}'
    tool = read(
        span("FunctionTool.task", {"traceloop.span.kind": "task", "traceloop.entity.output": given}, scope=scope)
    )
    assert (tool.role, tool.tool_name, tool.failed) == (Role.TOOL, "get_weather", True)
    given = '{"result": {"current_agent_name": "weather-agent"}}'
    attributes = {"traceloop.span.kind": "workflow", "traceloop.entity.output": given}
    agent = read(span("FunctionAgent.workflow", attributes, scope=scope))
    assert (agent.role, agent.agent_name) == (Role.AGENT, "weather-agent")
    nested = attributes | {"traceloop.span.kind": "task"}
    assert read(span("run.task", nested, scope=scope)).agent_name == "weather-agent"
    streamed = {"traceloop.span.kind": "workflow", "traceloop.entity.name": "FunctionAgent.workflow"}
    assert read(span("FunctionAgent.workflow", streamed, scope=scope)).agent_name == "FunctionAgent"
    assert read(span("run.task", {"traceloop.span.kind": "task"}, scope=scope)).role is Role.OTHER


def test_an_item_id_of_the_responses_api_is_no_call_id():
    messages = json.dumps([{"role": "assistant", "parts": [{"type": "tool_call", "name": "t", "id": "fc_025"}]}])
    facts = read(span("openai.response", {"gen_ai.operation.name": "chat", "gen_ai.output.messages": messages}))
    assert facts.asked_call_ids == ()


def test_openllmetry_before_the_genai_conventions():
    attributes = {"llm.request.type": "chat", "gen_ai.system": "OpenAI", "llm.usage.total_tokens": 138}
    facts = read(
        span("openai.chat", attributes | {"gen_ai.usage.prompt_tokens": 101, "gen_ai.usage.completion_tokens": 37})
    )
    assert (facts.role, facts.provider_name, facts.usage) == (Role.LLM, "openai", TokenUsage(101, 37))


def test_langchains_runnables_in_javascript_are_no_workflows():
    attributes = {"gen_ai.operation.name": "workflow", "traceloop.span.kind": "workflow"}
    javascript = Scope("@traceloop/instrumentation-langchain")
    assert read(span("workflow RunnableSequence", attributes, scope=javascript)).role is Role.OTHER


def test_openllmetrys_responses_api_before_it_named_operations():
    attributes = {
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "llm.headers": "None",
        "gen_ai.response.id": "resp_0000",
        "gen_ai.usage.input_tokens": 101,
        "gen_ai.usage.output_tokens": 37,
    }
    facts = read(span("openai.response", attributes, scope=Scope("opentelemetry.instrumentation.openai.v1")))
    assert (facts.role, facts.convention) == (Role.LLM, "openllmetry")
    assert (facts.request_id, facts.usage) == ("resp_0000", TokenUsage(101, 37))


def test_a_request_to_bedrock_is_one_of_amazons_whoever_made_the_model():
    attributes = {"gen_ai.system": "anthropic", "llm.request.type": "chat"}
    scope = Scope("opentelemetry.instrumentation.bedrock")
    assert read(span("bedrock.completion", attributes, scope=scope)).provider_name == "aws.bedrock"


# Vercel AI SDK

VERCEL = {
    "ai.operationId": "ai.generateText.doGenerate",
    "ai.telemetry.functionId": "weather-agent",
    "ai.model.provider": "openai.chat",
    "ai.model.id": "gpt-4o-mini",
    "ai.telemetry.metadata.sessionId": "conv-42",
    "gen_ai.system": "openai.chat",
    "ai.response.finishReason": "tool-calls",
    "ai.response.toolCalls": '[{"toolCallId":"call_14","toolName":"get_weather","input":"{}"}]',
    "ai.response.id": "chatcmpl-015",
    "ai.response.model": "gpt-4o-mini-2024-07-18",
    "ai.usage.inputTokens": 101,
    "ai.usage.outputTokens": 37,
    "ai.usage.totalTokens": 138,
    "ai.usage.reasoningTokens": 8,
    "ai.usage.cachedInputTokens": 64,
    "ai.response.msToFirstChunk": 150.5,
}


def test_a_vercel_request():
    facts = read(span("ai.generateText.doGenerate", VERCEL))
    assert (facts.role, facts.convention, facts.agent_name) == (Role.LLM, "vercel", "weather-agent")
    assert (facts.provider_name, facts.model, facts.request_id) == ("openai", "gpt-4o-mini-2024-07-18", "chatcmpl-015")
    assert facts.usage == TokenUsage(101, 37, 64, None, 8)
    assert (facts.stop_reason, facts.asked_call_ids) == ("tool-calls", ("call_14",))
    assert (facts.conversation_id, facts.first_token_ns) == ("conv-42", START + 150_500_000)


@pytest.mark.parametrize(
    ("operation", "role"),
    [
        ("ai.streamText", Role.AGENT),
        ("ai.streamText.doStream", Role.LLM),
        ("ai.generateObject", Role.AGENT),
        ("ai.toolCall", Role.TOOL),
        ("ai.embed", Role.OTHER),
        ("ai.embed.doEmbed", Role.OTHER),
    ],
)
def test_vercel_operations(operation, role):
    assert read(span(operation, {"ai.operationId": operation})).role is role


def test_vercel_5_leaves_anthropics_cache_out_of_the_prompt_and_6_does_not():
    usage = {"ai.usage.inputTokens": 101, "ai.usage.outputTokens": 37, "ai.usage.cachedInputTokens": 64}
    old = VERCEL | usage | {"ai.model.provider": "anthropic.messages", "ai.usage.totalTokens": 138}
    old |= {"ai.response.providerMetadata": '{"anthropic": {"cacheCreationInputTokens": 16}}'}
    facts = read(span("ai.generateText.doGenerate", old))
    assert facts.usage is not None
    assert (facts.usage.prompt, facts.usage.cache_write, facts.flags) == (181, 16, ("normalised",))
    new = old | {
        "ai.usage.inputTokens": 181,
        "ai.usage.inputTokenDetails.noCacheTokens": 101,
        "ai.usage.totalTokens": 218,
    }
    facts = read(span("ai.generateText.doGenerate", new))
    assert facts.usage is not None
    assert (facts.usage.prompt, facts.flags) == (181, ())


def test_a_vercel_tool_and_an_abort():
    tool = read(span("ai.toolCall", {"ai.operationId": "ai.toolCall", "ai.toolCall.name": "t", "ai.toolCall.id": "c"}))
    assert (tool.tool_name, tool.call_id) == ("t", "c")
    event = Event("exception", START, {"exception.type": "AbortError"})
    aborted = read(span("ai.generateText", {"ai.operationId": "ai.generateText"}, status_code="error", events=(event,)))
    assert aborted.cancelled


# MLflow


def test_mlflow_keeps_json_in_every_attribute():
    outputs = {
        "id": "chatcmpl-018",
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"finish_reason": "tool_calls", "message": {"tool_calls": [{"id": "call_01"}]}}],
        "usage": {"prompt_tokens": 101, "completion_tokens": 37, "completion_tokens_details": {"reasoning_tokens": 8}},
    }
    facts = read(
        span(
            "Completions",
            {
                "mlflow.spanType": '"CHAT_MODEL"',
                "model": '"gpt-4o-mini"',
                "mlflow.chat.tokenUsage": json.dumps(
                    {"input_tokens": 101, "output_tokens": 37, "total_tokens": 138, "cache_read_input_tokens": 64}
                ),
                "mlflow.spanOutputs": json.dumps(outputs),
            },
            events=(Event("mlflow.chunk.item.0", START + 7),),
        )
    )
    assert (facts.role, facts.model, facts.served_model) == (Role.LLM, "gpt-4o-mini", "gpt-4o-mini-2024-07-18")
    assert facts.usage == TokenUsage(101, 37, 64, None, 8)
    assert (facts.request_id, facts.stop_reason, facts.asked_call_ids) == ("chatcmpl-018", "tool_calls", ("call_01",))
    assert facts.first_token_ns == START + 7


def test_an_mlflow_chain_that_has_langchains_agents_name_is_the_agent():
    metadata = '{"lc_agent_name": "inner-agent", "langgraph_node": "tools"}'
    facts = read(span("inner-agent", {"mlflow.spanType": '"CHAIN"', "metadata": metadata}))
    assert (facts.role, facts.agent_name) == (Role.AGENT, "inner-agent")
    assert read(span("model", {"mlflow.spanType": '"CHAIN"', "metadata": metadata})).role is Role.OTHER
    facts = read(span("ChatOpenAI", {"mlflow.spanType": '"CHAT_MODEL"', "metadata": metadata}))
    assert (facts.role, facts.agent_name) == (Role.LLM, "inner-agent")


def test_mlflow_agents_and_tools_are_named_by_their_spans():
    assert read(span("weather-agent", {"mlflow.spanType": '"AGENT"'})).agent_name == "weather-agent"
    assert read(span("get_weather", {"mlflow.spanType": '"TOOL"'})).tool_name == "get_weather"
    assert read(span("parse", {"mlflow.spanType": '"PARSER"'})).role is Role.OTHER


# LangSmith

LANGSMITH = {
    "langsmith.span.kind": "llm",
    "gen_ai.operation.name": "chat",
    "gen_ai.system": "openai",
    "langsmith.metadata.lc_agent_name": "weather-agent",
    "langsmith.metadata.thread_id": "conv-9",
    "langsmith.metadata.usage_metadata": json.dumps(
        {
            "input_tokens": 101,
            "output_tokens": 37,
            "total_tokens": 138,
            "input_token_details": {"cache_read": 64},
            "output_token_details": {"reasoning": 8},
        }
    ),
    "langsmith.span.tags": "graph:step:1, mine",
    "gen_ai.usage.input_tokens": 101,
    "gen_ai.usage.output_tokens": 37,
}


def test_a_langsmith_request():
    facts = read(span("ChatOpenAI", LANGSMITH))
    assert (facts.role, facts.agent_name, facts.conversation_id) == (Role.LLM, "weather-agent", "conv-9")
    assert (facts.usage, facts.tags) == (TokenUsage(101, 37, 64, None, 8), ("mine",))


def test_a_langsmith_chain_that_has_the_agents_name_is_the_agent():
    chain = {"langsmith.span.kind": "chain", "gen_ai.operation.name": "chain"}
    agent = {"langsmith.metadata.lc_agent_name": "weather-agent"}
    assert read(span("weather-agent", chain | agent | {"langsmith.trace.name": "weather-agent"})).role is Role.AGENT
    assert read(span("model", chain | agent | {"langsmith.trace.name": "model"})).role is Role.OTHER


def test_a_langsmith_prompt_template_says_chat_and_is_none():
    assert read(span("p", {"langsmith.span.kind": "prompt", "gen_ai.operation.name": "chat"})).role is Role.OTHER


def test_langsmiths_error_hides_behind_a_status_that_was_set_ok_first():
    details = {
        "exception.type": "Exception",
        "exception.message": "CancelledError()\n\nTraceback (most recent call last):\n …",
        "exception.stacktrace": "Traceback (most recent call last):\n …\nasyncio.exceptions.CancelledError\n",
    }
    facts = read(span("ChatOpenAI", LANGSMITH, status_code="ok", events=(Event("exception", START, details),)))
    assert (facts.failed, facts.cancelled, facts.error_message) == (True, True, "CancelledError()")


# Logfire and pydantic-ai


def test_a_bare_logfire_tool_and_agent():
    tool = {
        "logfire.msg_template": "running tool: {tool_name}",
        "logfire.span_type": "span",
        "tool_name": "get_weather",
    }
    facts = read(span("running tool: {tool_name}", tool))
    assert (facts.role, facts.tool_name) == (Role.TOOL, "get_weather")
    agent = {"logfire.msg": "weather-agent", "logfire.msg_template": "weather-agent", "agent_name": "weather-agent"}
    facts = read(span("weather-agent", agent))
    assert (facts.role, facts.agent_name) == (Role.AGENT, "weather-agent")
    other = read(span("saving", agent | {"logfire.msg": "saving", "logfire.msg_template": "saving"}))
    assert (other.role, other.agent_name) == (Role.OTHER, "weather-agent")


def test_pydantic_ais_old_span_names():
    scope = Scope("pydantic-ai")
    agent = read(span("agent run", {"agent_name": "weather", "model_name": "gpt-4o"}, scope=scope))
    assert (agent.role, agent.agent_name, agent.model) == (Role.AGENT, "weather", "gpt-4o")
    tool = read(span("running tool", {"gen_ai.tool.name": "t", "gen_ai.tool.call.id": "c"}, scope=scope))
    assert (tool.role, tool.tool_name, tool.call_id) == (Role.TOOL, "t", "c")


def test_pydantic_ai_sums_an_agents_usage_under_other_names():
    usage = {"gen_ai.aggregated_usage.input_tokens": 302, "gen_ai.aggregated_usage.output_tokens": 84}
    facts = read(span("invoke_agent a", usage | {"gen_ai.operation.name": "invoke_agent"}))
    assert facts.usage == TokenUsage(302, 84)


def test_logfires_streaming_twin_has_its_usage_raw():
    raw = {"prompt_tokens": 101, "completion_tokens": 37, "prompt_tokens_details": {"cached_tokens": 64}}
    attributes = {"gen_ai.operation.name": "chat", "logfire.span_type": "log", "gen_ai.usage.raw": json.dumps(raw)}
    facts = read(span("streaming response", attributes))
    assert (facts.role, facts.usage) == (Role.LLM, TokenUsage(101, 37, 64))


def test_a_pending_span_announces_its_parent():
    marker = RawSpan(
        "a" * 32,
        "c" * 16,
        "b" * 16,
        "chat gpt-4o (pending)",
        start_ns=START,
        end_ns=START,
        attributes={
            "logfire.span_type": "pending_span",
            "logfire.pending_parent_id": "d" * 16,
            "gen_ai.operation.name": "chat",
        },
    )
    facts = read(marker)
    assert (facts.role, facts.flags) == (Role.OTHER, ("pending_span",))
    begun = logfire.pending(marker)
    assert begun is not None
    assert (begun.span_id, begun.parent_span_id, begun.name) == ("b" * 16, "d" * 16, "chat gpt-4o")
    assert (begun.start_ns, begun.end_ns, begun.ended) == (START, None, False)
    assert read(begun).role is Role.LLM
    root = replace(marker, attributes={"logfire.span_type": "pending_span", "logfire.pending_parent_id": "0" * 16})
    announced = logfire.pending(root)
    assert announced is not None
    assert announced.parent_span_id is None
    assert logfire.pending(begun) is None


# litellm


def test_litellms_raw_request_holds_python_reprs():
    facts = read(
        span(
            "raw_gen_ai_request",
            {
                "llm.openai.id": "chatcmpl-018",
                "llm.openai.model": "gpt-4o-mini-2024-07-18",
                "llm.openai.choices": str(
                    [{"finish_reason": "tool_calls", "message": {"tool_calls": [{"id": "call_1"}]}}]
                ),
                "llm.openai.usage": str(
                    {"completion_tokens": 37, "prompt_tokens": 101, "prompt_tokens_details": {"cached_tokens": 64}}
                ),
            },
            scope=Scope("litellm"),
        )
    )
    assert (facts.role, facts.provider_name, facts.request_id) == (Role.LLM, "openai", "chatcmpl-018")
    assert (facts.stop_reason, facts.asked_call_ids, facts.usage) == (
        "tool_calls",
        ("call_1",),
        TokenUsage(101, 37, 64),
    )


def test_litellms_own_span():
    attributes = {
        "litellm.call_id": "u-1",
        "gen_ai.operation.name": "chat",
        "gen_ai.response.id": "u-1",
        "hidden_params": '{"api_base": "http://127.0.0.1/v1"}',
        "metadata.user_api_key_org_id": "org-1",
        "metadata.usage_object": "{'completion_tokens': 37, 'prompt_tokens': 101}",
    }
    facts = read(span("litellm_request", attributes, scope=Scope("litellm")))
    assert (facts.role, facts.convention, facts.usage) == (Role.LLM, "litellm", TokenUsage(101, 37))
    assert (facts.model_endpoint, facts.organization_id) == ("http://127.0.0.1/v1", "org-1")
    assert facts.request_id is None  # it saw no response, so it gave the id of its own call


@pytest.mark.parametrize(
    ("name", "operation", "role"),
    [
        ("chat gpt-4o-mini", "chat", Role.LLM),
        ("aresponses gpt-4o-mini", "aresponses", Role.LLM),
        ("anthropic_messages claude", "anthropic_messages", Role.LLM),
        ("embeddings text-embedding-3-small", "embeddings", Role.OTHER),
        ("litellm_request", "embedding", Role.OTHER),
        ("litellm_request", None, Role.LLM),
    ],
)
def test_litellms_spans_are_told_by_their_operation_in_the_conventions_names_too(name, operation, role):
    said = {} if operation is None else {"gen_ai.operation.name": operation}
    facts = read(span(name, {"litellm.call_id": "u-1", **said}, scope=Scope("litellm")))
    assert (facts.role, facts.convention) == (role, "litellm")


@pytest.mark.parametrize(
    ("fields", "role"),
    [
        ({"None.input": "['Weather?']"}, Role.OTHER),
        ({"openai.input": "[[9906, 1917]]"}, Role.OTHER),
        ({"openai.input": "[{'role': 'user', 'content': 'Weather?'}]"}, Role.LLM),
        ({"openai.input": "['Weather?']", "openai.output": "[]"}, Role.LLM),
        ({"openai.messages": "[{'role': 'user', 'content': 'Weather?'}]"}, Role.LLM),
    ],
)
def test_a_raw_request_of_litellm_for_embeddings_is_none_of_a_language_model(fields, role):
    attributes = {f"llm.{key}": value for key, value in fields.items()}
    assert read(span("raw_gen_ai_request", attributes, scope=Scope("litellm"))).role is role


def test_the_callers_span_keeps_the_role_that_it_says():
    written = {"litellm.call_id": "u-1", "gen_ai.operation.name": "chat"}
    assert read(span("my-agent", written)).role is Role.LLM
    assert read(span("invoke_agent weather", written)).role is Role.AGENT
    assert read(span("weather", written | {"openinference.span.kind": "AGENT"})).role is Role.AGENT
    assert read(span("weather", written | {"traceloop.span.kind": "agent"})).role is Role.AGENT


def test_the_proxys_spans_are_none_of_ours():
    assert read(span("Received Proxy Server Request", scope=Scope("litellm"))).role is Role.OTHER


HAYSTACK = {
    "role": "assistant",
    "meta": {
        "model": "gpt-4o-mini-2024-07-18",
        "finish_reason": "tool_calls",
        "usage": {"prompt_tokens": 101, "completion_tokens": 37, "prompt_tokens_details": {"cached_tokens": 64}},
    },
    "content": [{"tool_call": {"tool_name": "get_weather", "arguments": {"city": "Paris"}, "id": "c1", "extra": None}}],
}


def test_haystack_says_everything_in_the_replies():
    result = {"result": "sunny", "origin": {"tool_name": "get_weather", "arguments": {}, "id": "c0"}, "error": False}
    prompt = [
        {"role": "user", "content": [{"text": "Weather?"}]},
        {"role": "tool", "content": [{"tool_call_result": result}]},
    ]
    attributes = {
        "haystack.agent.step.llm.input": json.dumps({"messages": prompt, "tools": []}),
        "haystack.agent.step.llm.output": json.dumps({"replies": [HAYSTACK]}),
    }
    facts = read(span("haystack.agent.step.llm", attributes))
    assert (facts.role, facts.served_model, facts.stop_reason) == (Role.LLM, "gpt-4o-mini-2024-07-18", "tool_calls")
    assert (facts.usage, facts.asked_call_ids) == (TokenUsage(101, 37, 64), ("c1",))
    said = [(m.role, m.text, m.name, m.tool_call_id) for m in facts.input_messages]
    assert said == [("user", "Weather?", None, None), ("tool", "sunny", "get_weather", "c0")]


def test_a_haystack_pipeline_may_ask_a_model_without_an_agent():
    attributes = {
        "haystack.component.type": "OpenAIChatGenerator",
        "haystack.component.input": '{"messages": [{"role": "user", "content": [{"text": "Weather?"}]}]}',
        "haystack.component.output": json.dumps({"replies": [HAYSTACK]}),
    }
    facts = read(span("haystack.component.run", attributes))
    assert (facts.role, facts.usage) == (Role.LLM, TokenUsage(101, 37, 64))
    assert [m.text for m in facts.input_messages] == ["Weather?"]
    replies = {"replies": ["hi"], "meta": [HAYSTACK["meta"]]}
    plain = attributes | {
        "haystack.component.type": "OpenAIGenerator",
        "haystack.component.output": json.dumps(replies),
    }
    facts = read(span("haystack.component.run", plain))
    assert (facts.usage, [m.text for m in facts.output_messages]) == (TokenUsage(101, 37, 64), ["hi"])
    for kind in ("Agent", "ChatPromptBuilder", "DALLEImageGenerator"):
        assert read(span("haystack.component.run", {"haystack.component.type": kind})).role is Role.OTHER


def test_a_haystack_tool_that_failed_tells_the_model():
    attributes = {
        "haystack.tool.name": "f",
        "haystack.tool.error": True,
        "haystack.agent.step.tool.output": '{"error": "broke"}',
    }
    facts = read(span("haystack.agent.step.tool", attributes))
    assert (facts.tool_name, facts.failed, facts.error_message) == ("f", True, "broke")
