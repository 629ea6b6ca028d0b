"""Spans of AgentOps, Laminar, LangWatch, Genkit, Claude Code, Spring AI, any-agent, Mastra, workflows, Pipecat, LiveKit
and Quarkus."""

import pytest

from step_exporter.conventions import read
from step_exporter.facts import Event, RawSpan, Role, Scope, TokenUsage, ToolCall

START = 1_795_369_000_000_000_000


def span(name, attributes=None, **fields):
    fields.setdefault("start_ns", START)
    return RawSpan("a" * 32, "b" * 16, None, name, attributes=attributes or {}, **fields)


def spoken(messages):
    return [(message.role, message.text, *(call.name for call in message.tool_calls)) for message in messages]


# AgentOps 0.4.21

AGENTOPS_CHAT = {
    "gen_ai.request.type": "chat",
    "gen_ai.system": "OpenAI",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.request.streaming": True,
    "gen_ai.prompt.0.role": "system",
    "gen_ai.prompt.0.content": "You help.",
    "gen_ai.prompt.1.role": "user",
    "gen_ai.prompt.1.content": "Weather?",
    "gen_ai.response.id": "chatcmpl-0001x",
    "gen_ai.response.model": "gpt-4o-mini",
    "gen_ai.streaming.time_to_first_token": 0.25,
    "gen_ai.completion.0.content": "It is sunny.",
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.finish_reason": "stop",
    "gen_ai.usage.prompt_tokens": 201,
    "gen_ai.usage.completion_tokens": 47,
    "gen_ai.usage.total_tokens": 248,
}


def test_a_request_of_agentops():
    facts = read(span("openai.chat.completion", AGENTOPS_CHAT, scope=Scope("openai")))
    assert (facts.role, facts.convention) == (Role.LLM, "agentops")
    assert (facts.provider_name, facts.model, facts.request_id) == ("openai", "gpt-4o-mini", "chatcmpl-0001x")
    assert (facts.usage, facts.stop_reason) == (TokenUsage(201, 47), "stop")
    assert facts.first_token_ns == START + 250_000_000
    assert spoken(facts.input_messages) == [("system", "You help."), ("user", "Weather?")]
    assert spoken(facts.output_messages) == [("assistant", "It is sunny.")]


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        ("session", Role.WORKFLOW),
        ("workflow", Role.WORKFLOW),
        ("agent", Role.AGENT),
        ("tool", Role.TOOL),
        ("llm", Role.LLM),
        ("task", Role.OTHER),
        ("operation", Role.OTHER),
        ("AgentOpsSpanKindValues.TOOL", Role.OTHER),
    ],
)
def test_agentops_kinds(kind, role):
    assert read(span("x", {"agentops.span.kind": kind})).role is role


def test_agentops_names_what_it_decorates():
    agent = read(span("weather-agent.agent", {"agentops.span.kind": "agent", "operation.name": "weather-agent"}))
    tool = read(span("get_weather.tool", {"agentops.span.kind": "tool", "operation.name": "get_weather"}))
    assert (agent.agent_name, tool.tool_name) == ("weather-agent", "get_weather")
    assert read(span("get_weather.tool", {"agentops.span.kind": "tool"})).tool_name == "get_weather"
    assert read(span("my-session.session", {"agentops.span.kind": "session", "agentops.tags": ("t1",)})).tags == ("t1",)


# Laminar, lmnr 0.8.2

LAMINAR_CHAT = {
    "lmnr.span.type": "LLM",
    "lmnr.span.path": ("weather-agent", "openai.chat"),
    "lmnr.association.properties.session_id": "conv-1",
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.request.base_url": "http://127.0.0.1:42573/v1/",
    "gen_ai.input.messages": '[{"role":"system","content":"You help."},{"role":"user","content":"Weather?"}]',
    "gen_ai.response.model": "gpt-4o-mini",
    "gen_ai.response.id": "chatcmpl-0000x",
    "llm.usage.total_tokens": 138,
    "gen_ai.usage.output_tokens": 37,
    "gen_ai.usage.input_tokens": 101,
    "gen_ai.usage.cache_read_input_tokens": 64,
    "gen_ai.usage.reasoning_tokens": 8,
    "gen_ai.output.messages": '[{"finish_reason":"tool_calls","index":0,"logprobs":null,"message":{"content":null,'
    '"refusal":null,"role":"assistant","annotations":null,"audio":null,"function_call":null,"tool_calls":[{'
    '"id":"call_0_0","function":{"arguments":"{\\"city\\": \\"Paris\\"}","name":"get_weather"},"type":"function"}]}}]',
}


def test_a_request_of_laminar():
    facts = read(span("openai.chat", LAMINAR_CHAT, scope=Scope("lmnr.tracer")))
    assert (facts.role, facts.convention, facts.conversation_id) == (Role.LLM, "laminar", "conv-1")
    assert (facts.provider_name, facts.model, facts.request_id) == ("openai", "gpt-4o-mini", "chatcmpl-0000x")
    assert (facts.usage, facts.stop_reason) == (TokenUsage(101, 37, 64, None, 8), "tool_calls")
    assert facts.model_endpoint == "http://127.0.0.1:42573/v1/"
    assert spoken(facts.input_messages) == [("system", "You help."), ("user", "Weather?")]
    assert facts.output_messages[0].tool_calls == (ToolCall("call_0_0", "get_weather", '{"city":"Paris"}'),)
    assert facts.asked_call_ids == ("call_0_0",)


def test_a_tool_and_another_span_of_laminar():
    tool = read(span("get_weather", {"lmnr.span.type": "TOOL", "lmnr.span.input": '{"city":"Paris"}'}))
    assert (tool.role, tool.tool_name) == (Role.TOOL, "get_weather")
    default = {"lmnr.span.type": "DEFAULT", "lmnr.association.properties.tags": ("t1",)}
    assert (read(span("weather-agent", default)).role, read(span("x", default)).tags) == (Role.OTHER, ("t1",))


@pytest.mark.parametrize("type_", [{"lmnr.span.type": "DEFAULT"}, {"langwatch.span.type": "span"}])
@pytest.mark.parametrize(
    "said",
    [
        {"gen_ai.operation.name": "invoke_agent"},
        {"openinference.span.kind": "AGENT"},
        {"traceloop.span.kind": "agent"},
    ],
)
def test_an_agent_of_another_instrumentation_stays_one_where_laminar_or_langwatch_has_no_type_for_it(type_, said):
    assert read(span("weather-agent", type_ | said)).role is Role.AGENT


# LangWatch 1.4

LANGWATCH_LLM = {
    "langwatch.span.type": "llm",
    "langwatch.input": '{"type": "chat_messages", "value": [{"role": "system", "content": "You help."}, '
    '{"role": "user", "content": "Weather?"}]}',
    "langwatch.timestamps": "{}",
    "gen_ai.request.model": "openai/gpt-4o-mini",
    "langwatch.output": '{"type": "chat_messages", "value": [{"role": "assistant", "tool_calls": [{"id": "call_0_0", '
    '"function": {"arguments": "{\\"city\\": \\"Paris\\"}", "name": "get_weather"}, "type": "function"}]}]}',
    "langwatch.metrics": '{"prompt_tokens": 101, "completion_tokens": 37}',
}


def test_a_request_of_langwatch():
    facts = read(span("call-llm", LANGWATCH_LLM, scope=Scope("langwatch")))
    assert (facts.role, facts.convention, facts.usage) == (Role.LLM, "langwatch", TokenUsage(101, 37))
    assert (facts.provider_name, facts.model) == ("openai", "gpt-4o-mini")
    assert spoken(facts.input_messages) == [("system", "You help."), ("user", "Weather?")]
    assert spoken(facts.output_messages) == [("assistant", "", "get_weather")]
    assert facts.asked_call_ids == ("call_0_0",)


def test_langwatchs_model_with_a_slash_that_no_provider_stands_before():
    facts = read(span("call-llm", LANGWATCH_LLM | {"gen_ai.request.model": "qwen/qwen3-8b"}))
    assert (facts.provider_name, facts.model) == (None, "qwen/qwen3-8b")


def test_langwatch_says_when_the_first_token_came():
    first = '{"started_at": 1795369000000, "first_token_at": 1795369000250, "finished_at": 1795369000900}'
    assert read(span("llm", LANGWATCH_LLM | {"langwatch.timestamps": first})).first_token_ns == START + 250_000_000


@pytest.mark.parametrize(
    ("attributes", "role"),
    [
        ({"langwatch.span.type": "agent"}, Role.AGENT),
        ({"langwatch.span.type": "workflow"}, Role.WORKFLOW),
        ({"langwatch.span.type": "tool"}, Role.TOOL),
        ({"langwatch.span.type": "rag"}, Role.OTHER),
        ({"langwatch.span.type": "span"}, Role.OTHER),
        ({"langwatch.span.type": "span", "langwatch.origin": "application"}, Role.WORKFLOW),
    ],
)
def test_langwatch_types(attributes, role):
    assert read(span("weather", attributes)).role is role


def test_langwatchs_thread_is_the_conversation():
    trace = {"metadata": '{"thread_id": "conv-1", "labels": ["t1"]}', "langwatch.span.type": "span"}
    facts = read(span("my-trace", trace))
    assert (facts.conversation_id, facts.tags) == ("conv-1", ("t1",))
    assert read(span("x", {"langwatch.span.type": "span", "langwatch.thread.id": "conv-2"})).conversation_id == "conv-2"


# Genkit 1.42

GENKIT_MODEL = {
    "genkit:type": "action",
    "genkit:metadata:subtype": "model",
    "genkit:name": "fake/gpt-4o-mini",
    "genkit:input": '{"messages":[{"role":"system","content":[{"text":"You help."}]},{"role":"user","content":'
    '[{"text":"Weather?"}]},{"role":"model","content":[{"toolRequest":{"name":"get_weather","ref":"call_0_0","input":'
    '{"city":"Paris"}}}]},{"role":"tool","content":[{"toolResponse":{"name":"get_weather","ref":"call_0_0","output":'
    '"sunny in Paris"}}]}],"config":{},"output":{}}',
    "genkit:output": '{"finishReason":"stop","message":{"role":"model","content":[{"text":"It is sunny."}]},"usage":'
    '{"inputTokens":201,"outputTokens":47,"totalTokens":248},"raw":{"id":"chatcmpl-0001x","created":1796058940,'
    '"model":"gpt-4o-mini","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":'
    '"It is sunny.","refusal":null},"finish_reason":"stop","logprobs":null}],"usage":{"prompt_tokens":201,'
    '"completion_tokens":47,"total_tokens":248,"prompt_tokens_details":{"cached_tokens":65},'
    '"completion_tokens_details":{"reasoning_tokens":9}}},"latencyMs":23.580876999999987}',
    "genkit:state": "success",
}


def test_a_request_of_genkit():
    facts = read(span("fake/gpt-4o-mini", GENKIT_MODEL, scope=Scope("genkit-tracer")))
    assert (facts.role, facts.convention) == (Role.LLM, "genkit")
    assert (facts.provider_name, facts.model, facts.request_id) == ("fake", "gpt-4o-mini", "chatcmpl-0001x")
    assert (facts.usage, facts.stop_reason) == (TokenUsage(201, 47, 65, None, 9), "stop")
    assert spoken(facts.input_messages) == [
        ("system", "You help."),
        ("user", "Weather?"),
        ("assistant", "", "get_weather"),
        ("tool", "sunny in Paris"),
    ]
    asked, answered = facts.input_messages[2:]
    assert asked.tool_calls == (ToolCall("call_0_0", "get_weather", '{"city":"Paris"}'),)
    assert (answered.tool_call_id, answered.name) == ("call_0_0", "get_weather")
    assert spoken(facts.output_messages) == [("assistant", "It is sunny.")]


def test_a_request_of_genkit_without_the_providers_own_response():
    output = (
        '{"finishReason":"stop","message":{"role":"model","content":[{"toolRequest":{"name":"get_weather","ref":'
        '"call_0_0","input":{}}}]},"usage":{"inputTokens":101,"outputTokens":37,"totalTokens":138}}'
    )
    facts = read(span("x", GENKIT_MODEL | {"genkit:name": "googleai/gemini-2.5-flash", "genkit:output": output}))
    assert (facts.provider_name, facts.model) == ("gcp.gemini", "gemini-2.5-flash")
    assert (facts.usage, facts.stop_reason, facts.asked_call_ids) == (TokenUsage(101, 37), "stop", ("call_0_0",))


@pytest.mark.parametrize(
    ("attributes", "role"),
    [
        ({"genkit:type": "action", "genkit:metadata:subtype": "flow"}, Role.WORKFLOW),
        ({"genkit:type": "action", "genkit:metadata:subtype": "agent"}, Role.AGENT),
        ({"genkit:type": "action", "genkit:metadata:subtype": "tool"}, Role.TOOL),
        ({"genkit:type": "action", "genkit:metadata:subtype": "tool.v2"}, Role.TOOL),
        ({"genkit:type": "action", "genkit:metadata:subtype": "embedder"}, Role.OTHER),
        ({"genkit:type": "util", "genkit:name": "generate"}, Role.OTHER),
    ],
)
def test_genkits_actions(attributes, role):
    assert read(span("x", attributes)).role is role


def test_genkit_names_tools():
    tool = {"genkit:type": "action", "genkit:metadata:subtype": "tool", "genkit:name": "get_weather"}
    assert read(span("get_weather", tool)).tool_name == "get_weather"


# Claude Code

CLAUDE = Scope("com.anthropic.claude_code.tracing")
CLAUDE_REQUEST = {
    "session.id": "sess-1",
    "span.type": "llm_request",
    "model": "claude-opus-5",
    "gen_ai.system": "anthropic",
    "gen_ai.request.model": "claude-opus-5",
    "input_tokens": 5,
    "output_tokens": 47,
    "cache_read_tokens": 65,
    "cache_creation_tokens": 17,
    "request_id": "req_2",
    "gen_ai.response.id": "req_2",
    "gen_ai.response.finish_reasons": ("end_turn",),
    "stop_reason": "end_turn",
    "ttft_ms": 120,
    "success": True,
    "agent_id": "ag-1",
}


def test_a_request_of_claude_code_counts_cached_tokens_in():
    facts = read(span("claude_code.llm_request", CLAUDE_REQUEST, scope=CLAUDE))
    assert (facts.role, facts.convention, facts.conversation_id) == (Role.LLM, "claude_code", "sess-1")
    assert (facts.provider_name, facts.model, facts.request_id) == ("anthropic", "claude-opus-5", "req_2")
    assert (facts.usage, facts.stop_reason) == (TokenUsage(87, 47, 65, 17), "end_turn")
    assert (facts.first_token_ns, facts.agent_id) == (START + 120_000_000, "ag-1")


def test_a_request_of_claude_code_that_failed():
    failed = {"model": "claude-opus-5", "success": False, "error": "Overloaded"}
    facts = read(span("claude_code.llm_request", failed, scope=CLAUDE))
    assert (facts.failed, facts.error_message, facts.usage) == (True, "Overloaded", None)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("claude_code.interaction", Role.AGENT),
        ("claude_code.tool", Role.TOOL),
        ("claude_code.tool.execution", Role.OTHER),
        ("claude_code.tool.blocked_on_user", Role.OTHER),
        ("claude_code.hook", Role.OTHER),
    ],
)
def test_claude_codes_spans(name, role):
    assert read(span(name, {"session.id": "sess-1"}, scope=CLAUDE)).role is role


def test_claude_codes_tool():
    attributes = {"session.id": "sess-1", "tool_name": "Bash", "tool_use_id": "toolu_1"}
    facts = read(span("claude_code.tool", attributes, scope=CLAUDE))
    assert (facts.tool_name, facts.call_id, facts.conversation_id) == ("Bash", "toolu_1", "sess-1")


# Spring AI


def test_spring_ais_tool_is_one_though_its_operation_says_framework():
    attributes = {
        "gen_ai.operation.name": "framework",
        "gen_ai.system": "spring_ai",
        "spring.ai.kind": "tool_call",
        "spring.ai.tool.definition.name": "get_weather",
        "spring.ai.tool.call.arguments": '{"city":"Paris"}',
        "spring.ai.tool.call.result": "sunny",
    }
    facts = read(span("tool_call get_weather", attributes))
    assert (facts.role, facts.convention, facts.tool_name) == (Role.TOOL, "spring_ai", "get_weather")


def test_spring_ais_client_is_the_turn_and_knows_the_conversation():
    attributes = {
        "gen_ai.operation.name": "framework",
        "gen_ai.system": "spring_ai",
        "spring.ai.kind": "chat_client",
        "spring.ai.chat.client.conversation.id": "conv-1",
    }
    facts = read(span("spring_ai chat_client", attributes))
    assert (facts.role, facts.conversation_id) == (Role.WORKFLOW, "conv-1")
    assert read(span("call", attributes | {"spring.ai.kind": "advisor"})).role is Role.OTHER
    server = attributes | {"spring.ai.kind": "mcp_server_tool_call", "gen_ai.operation.name": "execute_tool"}
    assert read(span("call", server)).role is Role.TOOL


# any-agent 1.18


def test_a_request_of_any_agent():
    attributes = {
        "gen_ai.operation.name": "call_llm",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": 101,
        "gen_ai.usage.output_tokens": 37,
        "gen_ai.input.messages": '[{"role":"user","content":"Weather?"}]',
        "gen_ai.output": '[{"tool.name":"get_weather","tool.args":"{}"}]',
        "gen_ai.output.type": "json",
    }
    facts = read(span("call_llm gpt-4o-mini", attributes, scope=Scope("any_agent")))
    assert (facts.role, facts.model, facts.usage) == (Role.LLM, "gpt-4o-mini", TokenUsage(101, 37))
    assert spoken(facts.input_messages) == [("user", "Weather?")]
    assert facts.output_messages[0].tool_calls == (ToolCall(None, "get_weather", "{}"),)
    said = read(span("call_llm gpt-4o-mini", attributes | {"gen_ai.output": "It is sunny."}))
    assert spoken(said.output_messages) == [("assistant", "It is sunny.")]


# Mastra 1.4


def test_mastra_says_when_the_first_token_came_but_repeats_it_on_later_requests():
    request = {
        "gen_ai.operation.name": "chat",
        "mastra.span.type": "model_inference",
        "gen_ai.output.messages": '[{"role":"assistant","parts":[{"type":"text","content":"It is sunny."}]}]',
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": 101,
        "gen_ai.usage.output_tokens": 37,
        "mastra.completion_start_time": "2026-11-22T17:00:00.026Z",
    }
    facts = read(span("chat gpt-4o-mini", request, start_ns=1_795_366_800_000_000_000))
    assert (facts.role, facts.convention, facts.usage) == (Role.LLM, "genai", TokenUsage(101, 37))
    assert facts.first_token_ns == 1_795_366_800_026_000_000
    assert read(span("chat gpt-4o-mini", request, start_ns=1_795_366_801_000_000_000)).first_token_ns is None


def test_mastras_step_has_the_prompt_the_calls_and_the_requests_id():
    attributes = {
        "gen_ai.operation.name": "agent_step",
        "mastra.span.type": "model_step",
        "mastra.model_step.input": '[{"role":"system","content":"You help."},{"role":"user","content":"Weather?"}]',
        "mastra.model_step.output": '{"text":"","toolCalls":[{"toolCallId":"call_0_0","toolName":"get_weather","args":'
        '{"city":"Paris"}}]}',
        "mastra.metadata.body": '{"id":"chatcmpl-0000x","created":1796058897,"model":"gpt-4o-mini"}',
    }
    facts = read(span("agent_step weather-agent", attributes))
    assert (facts.role, facts.request_id) == (Role.STEP, "chatcmpl-0000x")
    assert spoken(facts.input_messages) == [("system", "You help."), ("user", "Weather?")]
    assert facts.output_messages[0].tool_calls == (ToolCall("call_0_0", "get_weather", '{"city":"Paris"}'),)
    said = read(span("agent_step", attributes | {"mastra.model_step.output": '{"text":"It is sunny.","toolCalls":[]}'}))
    assert spoken(said.output_messages) == [("assistant", "It is sunny.")]


# Workflows, one of which is one turn


@pytest.mark.parametrize(
    ("name", "attributes", "scope", "role"),
    [
        ("workflow.run", {"workflow.id": "4109", "workflow.name": "Sequential"}, "agent_framework", Role.WORKFLOW),
        ("workflow.build", {"workflow.id": "4109"}, "agent_framework", Role.OTHER),
        ("workflow.run", {"workflow.id": "4109"}, "my-scheduler", Role.OTHER),
        (
            "RoundRobinGroupChat.run_stream",
            {"openinference.span.kind": "CHAIN"},
            "openinference.instrumentation.autogen_agentchat",
            Role.WORKFLOW,
        ),
        ("x.run_stream", {"openinference.span.kind": "CHAIN"}, "openinference.instrumentation.agno", Role.OTHER),
        ("conversation user_proxy", {"gen_ai.operation.name": "conversation"}, "ag2", Role.WORKFLOW),
        # openlit's failed graph, which has lost its operation
        (
            "invoke_workflow weather-agent",
            {"gen_ai.workflow.name": "weather-agent", "error.type": "OpenAIInvalidRequestError"},
            "openlit.instrumentation.langgraph",
            Role.WORKFLOW,
        ),
    ],
)
def test_a_workflow_is_told_by_what_its_framework_left(name, attributes, scope, role):
    assert read(span(name, attributes, scope=Scope(scope))).role is role


# Pipecat

PIPECAT_LLM = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "input": '[{"role": "system", "content": "You help."}, {"role": "user", "content": "Weather?"}]',
    "output": "It is sunny.",
    "metrics.ttfb": 0.25,
    "gen_ai.usage.input_tokens": 101,
    "gen_ai.usage.output_tokens": 37,
}


def test_a_request_of_pipecat():
    facts = read(span("llm", PIPECAT_LLM, scope=Scope("pipecat")))
    assert (facts.role, facts.usage) == (Role.LLM, TokenUsage(101, 37))
    assert facts.first_token_ns == START + 250_000_000
    assert spoken(facts.input_messages) == [("system", "You help."), ("user", "Weather?")]
    assert spoken(facts.output_messages) == [("assistant", "It is sunny.")]


def test_a_turn_of_pipecat_is_a_run_of_its_conversation():
    facts = read(span("turn", {"turn.number": 1, "conversation.id": "conv-1"}, scope=Scope("pipecat")))
    assert (facts.role, facts.conversation_id) == (Role.WORKFLOW, "conv-1")
    assert read(span("turn")).role is Role.OTHER
    assert read(span("conversation", {"conversation.id": "conv-1"}, scope=Scope("pipecat"))).role is Role.OTHER


# LiveKit


def test_a_request_of_livekit_to_an_address_has_no_provider():
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "127.0.0.1:43011"}
    assert read(span("llm_request", attributes, scope=Scope("livekit-agents"))).provider_name is None


# Quarkus on LangChain4j

QUARKUS = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "open_ai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.content.prompt": "Weather?",
}
ANSWERED = {"gen_ai.content.completion": "It is sunny.", "gen_ai.response.finish_reasons": "STOP"}
RAISED = (Event("exception", START, {"exception.type": "RuntimeError", "exception.message": "boom"}),)


def test_a_request_of_quarkus():
    facts = read(span("completion gpt-4o-mini", QUARKUS | ANSWERED))
    assert (facts.role, facts.provider_name, facts.failed) == (Role.LLM, "openai", False)
    assert spoken(facts.input_messages) == [("user", "Weather?")]
    assert spoken(facts.output_messages) == [("assistant", "It is sunny.")]


def test_a_request_without_an_answer_that_raised_has_failed_though_its_status_is_unset():
    facts = read(span("completion gpt-4o-mini", QUARKUS, events=RAISED))
    assert (facts.failed, facts.error_type, facts.error_message) == (True, "RuntimeError", "boom")


@pytest.mark.parametrize(
    ("attributes", "status"),
    [(QUARKUS | ANSWERED, "unset"), (QUARKUS, "ok"), (QUARKUS | {"gen_ai.usage.input_tokens": 5}, "unset")],
)
def test_a_request_that_was_answered_in_spite_of_an_exception_has_not_failed(attributes, status):
    assert not read(span("completion m", attributes, status_code=status, events=RAISED)).failed
