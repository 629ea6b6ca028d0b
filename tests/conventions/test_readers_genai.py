"""Spans in OpenTelemetry's GenAI conventions, as its own and other instrumentations emit them."""

import pytest

from step_exporter.conventions import read
from step_exporter.facts import Event, RawSpan, Resource, Role, Scope, TokenUsage

START = 1_795_369_000_000_000_000


def span(name, attributes=None, **fields):
    fields.setdefault("start_ns", START)
    fields.setdefault("end_ns", START + 500_000_000)
    return RawSpan("a" * 32, "b" * 16, None, name, attributes=attributes or {}, **fields)


CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5-mini",
    "server.address": "127.0.0.1",
    "server.port": 8123,
    "gen_ai.response.finish_reasons": ("tool_calls",),
    "gen_ai.response.model": "gpt-5-mini-2025-08-07",
    "gen_ai.response.id": "resp_031",
    "gen_ai.usage.input_tokens": 101,
    "gen_ai.usage.output_tokens": 37,
    "gen_ai.usage.cache_read.input_tokens": 64,
    "gen_ai.usage.reasoning.output_tokens": 8,
    "gen_ai.response.time_to_first_chunk": 0.25,
    "gen_ai.conversation.id": "conv-42",
}


def test_a_chat_span_is_an_llm_request():
    resource = Resource({"service.name": "weather", "step.project_id": "p-1"})
    facts = read(span("chat gpt-5-mini", CHAT, resource=resource, scope=Scope("opentelemetry.x")))
    assert (facts.role, facts.convention) == (Role.LLM, "genai")
    assert (facts.model, facts.served_model) == ("gpt-5-mini-2025-08-07", "gpt-5-mini-2025-08-07")
    assert facts.provider_name == "openai"
    assert facts.model_endpoint == "127.0.0.1:8123"
    assert facts.request_id == "resp_031"
    assert facts.stop_reason == "tool_calls"
    assert facts.usage == TokenUsage(101, 37, 64, None, 8)
    assert facts.first_token_ns == START + 250_000_000
    assert facts.conversation_id == "conv-42"
    assert (facts.service_name, facts.project_id, facts.scope_name) == ("weather", "p-1", "opentelemetry.x")
    assert not facts.failed
    assert facts.flags == ()


def test_a_served_model_that_repeats_the_request_tells_no_requests_apart():
    facts = read(span("chat", CHAT | {"gen_ai.response.model": "gpt-5-mini"}))
    assert (facts.model, facts.served_model) == ("gpt-5-mini", None)


@pytest.mark.parametrize(
    ("operation", "role"),
    [
        ("generate_content", Role.LLM),
        ("text_completion", Role.LLM),
        ("chat.completions", Role.LLM),
        ("chat.streaming_completions", Role.LLM),
        ("text.completions", Role.LLM),
        ("text.streaming_completions", Role.LLM),
        ("chat_streaming", Role.LLM),
        ("embeddings", Role.OTHER),
        ("retrieval", Role.OTHER),
        ("execute_tool", Role.TOOL),
        ("invoke_agent", Role.AGENT),
        ("create_agent", Role.OTHER),
        ("invoke_workflow", Role.WORKFLOW),
        ("execute_task", Role.OTHER),
        ("execute_event_loop_cycle", Role.STEP),
        ("agent_step", Role.STEP),
        ("run_step", Role.STEP),
        ("react", Role.STEP),
    ],
)
def test_the_operation_is_the_role(operation, role):
    assert read(span("x", {"gen_ai.operation.name": operation})).role is role


def test_loongsuite_names_a_step_by_its_span_kind():
    assert read(span("react step", {"gen_ai.span.kind": "STEP", "gen_ai.react.round": 1})).role is Role.STEP


def test_an_evicted_operation_is_found_in_the_span_name():
    # beyond 128 attributes the SDK drops the oldest, which is the operation
    assert read(span("chat gpt-4o", {"gen_ai.request.model": "gpt-4o"})).role is Role.LLM
    assert read(span("chat with us", {"gen_ai.request.model": "gpt-4o"})).role is Role.OTHER


def test_usage_alone_makes_no_request():
    assert read(span("sum", {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 5})).role is Role.OTHER


def test_the_old_names_are_read_too():
    facts = read(
        span(
            "chat",
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.system": "xai",
                "gen_ai.usage.prompt_tokens": 181,
                "gen_ai.usage.completion_tokens": 37,
                "gen_ai.usage.cache_read_input_tokens": 64,
                "gen_ai.usage.cache_creation.input_tokens": 16,
                "gen_ai.usage.reasoning_tokens": 8,
                "gen_ai.response.finish_reasons": '["stop"]',
            },
        )
    )
    assert facts.usage == TokenUsage(181, 37, 64, 16, 8)
    assert (facts.provider_name, facts.stop_reason) == ("x_ai", "stop")


def test_the_anthropic_sdk_names_its_own_stop_reason():
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.cache_write.input_tokens": 16,
        "gen_ai.usage.input_tokens": 181,
        "anthropic.message.stop_reason": "tool_use",
    }
    facts = read(span("anthropic.messages.create", attributes, scope=Scope("com.anthropic.sdk.python")))
    assert (facts.stop_reason, facts.usage) == ("tool_use", TokenUsage(181, None, None, 16))


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("vertex_ai", "gcp.vertex_ai"),
        ("az.ai.inference", "azure.ai.inference"),
        ("openai.chat", "openai"),
        ("anthropic.messages", "anthropic"),
        ("google.generative-ai", "gcp.gemini"),
        ("aws.bedrock", "aws.bedrock"),
        ("OpenAI", "openai"),
        ("Ollama", "ollama"),
        ("gcp.vertex", "gcp.vertex_ai"),
        ("open_ai", "openai"),
        ("azure_open_ai", "azure.ai.openai"),
        ("google_ai_gemini", "gcp.gemini"),
        ("google_vertex_ai_anthropic", "gcp.vertex_ai"),
        ("api.openai.com", "openai"),
        ("generativelanguage.googleapis.com", "gcp.gemini"),
        ("llm.my-company.example", "llm.my-company.example"),
        ("strands-agents", None),
        ("langchain", None),
        ("None", None),
        ("127.0.0.1", None),
        ("127.0.0.1:43011", None),
        ("localhost:11434", None),
    ],
)
def test_providers_get_their_newest_names_and_frameworks_are_none(system, name):
    assert read(span("chat", {"gen_ai.operation.name": "chat", "gen_ai.system": system})).provider_name == name


def test_a_strands_request_takes_its_stop_reason_from_the_choice_and_milliseconds_to_the_first_token():
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "strands-agents",
        "session.id": "conv-42",
        "tag.tags": ("a",),
        "gen_ai.server.time_to_first_token": 791,
        "gen_ai.usage.input_tokens": 101,
        "gen_ai.usage.output_tokens": 37,
        "gen_ai.usage.total_tokens": 138,
    }
    message = '[{"toolUse": {"toolUseId": "call_01", "name": "get_weather", "input": {}}}]'
    event = Event("gen_ai.choice", START + 9, {"finish_reason": "tool_use", "message": message})
    facts = read(span("chat", attributes, events=(event,), scope=Scope("strands.telemetry.tracer")))
    assert facts.stop_reason == "tool_use"
    assert facts.first_token_ns == START + 791_000_000
    assert (facts.conversation_id, facts.tags) == ("conv-42", ("a",))
    assert facts.asked_call_ids == ("call_01",)


def test_seconds_to_the_first_token_of_everybody_else():
    openlit = {"gen_ai.operation.name": "chat", "gen_ai.server.time_to_first_token": 0.25}
    assert read(span("chat m", openlit)).first_token_ns == START + 250_000_000


def test_strands_1_62_has_its_stop_reason_in_the_messages_of_an_event():
    said = '[{"role": "assistant", "parts": [], "finish_reason": "tool_use"}]'
    event = Event("gen_ai.client.inference.operation.details", START + 9, {"gen_ai.output.messages": said})
    assert read(span("chat", {"gen_ai.operation.name": "chat"}, events=(event,))).stop_reason == "tool_use"


def test_semantic_kernels_enums_and_classes_are_named():
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.response.finish_reason": "FinishReason.TOOL_CALLS"}
    facts = read(span("chat m", attributes | {"error.type": "<class 'semantic_kernel.x.ServiceResponseException'>"}))
    assert (facts.stop_reason, facts.error_type) == ("tool_calls", "ServiceResponseException")


@pytest.mark.parametrize("scope", ["openlit.instrumentation.anthropic", "opentelemetry.instrumentation.bedrock"])
def test_cached_tokens_are_part_of_the_prompt_whoever_counts(scope):
    usage = {"input_tokens": 101, "output_tokens": 37, "cache_read.input_tokens": 64, "cache_write.input_tokens": 16}
    attributes = {"gen_ai.operation.name": "chat", **{f"gen_ai.usage.{key}": count for key, count in usage.items()}}
    facts = read(span("chat m", attributes, scope=Scope(scope)))
    assert (facts.usage, facts.flags) == (TokenUsage(181, 37, 64, 16), ("normalised",))
    assert read(span("chat m", attributes)).usage == TokenUsage(101, 37, 64, 16)


@pytest.mark.parametrize(("provider", "prompt"), [("anthropic", 181), ("openai", 101)])
def test_microsofts_agent_framework_leaves_the_cache_out_of_anthropics_prompt_alone(provider, prompt):
    usage = {"input_tokens": 101, "output_tokens": 37, "cache_read.input_tokens": 64, "cache_creation.input_tokens": 16}
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        **{f"gen_ai.usage.{key}": count for key, count in usage.items()},
    }
    facts = read(span("chat m", attributes, scope=Scope("agent_framework")))
    assert facts.usage == TokenUsage(prompt, 37, 64, 16)


def test_openrouters_names_of_token_counts():
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 5021,
        "gen_ai.usage.input_tokens.cached": 4248,
        "gen_ai.usage.input_tokens.cache_write": 16,
        "gen_ai.usage.output_tokens": 263,
        "gen_ai.usage.output_tokens.reasoning": 37,
    }
    assert read(span("LLM Generation", attributes)).usage == TokenUsage(5021, 263, 4248, 16, 37)


def test_vercel_7_names_reasoning_its_own_way():
    usage = {"gen_ai.usage.input_tokens": 101, "gen_ai.usage.output_tokens": 37}
    attributes = {"gen_ai.operation.name": "chat", **usage, "ai.usage.outputTokenDetails.reasoningTokens": 8}
    assert read(span("chat m", attributes, scope=Scope("gen_ai"))).usage == TokenUsage(101, 37, reasoning=8)


def test_a_request_of_awss_sdk_for_javascript_is_told_by_the_end_of_its_answer():
    attributes = {
        "rpc.method": "InvokeModel",
        "gen_ai.system": "aws.bedrock",
        "gen_ai.request.model": "anthropic.claude-3-5-sonnet-20240620-v1:0",
        "gen_ai.usage.input_tokens": 101,
        "gen_ai.usage.output_tokens": 37,
        "gen_ai.response.finish_reasons": ("end_turn",),
    }
    facts = read(span("BedrockRuntime.InvokeModel", attributes, kind="client"))
    assert (facts.role, facts.usage, facts.stop_reason) == (Role.LLM, TokenUsage(101, 37), "end_turn")
    assert read(span("my-app", attributes)).role is Role.OTHER
    del attributes["gen_ai.response.finish_reasons"]
    assert read(span("BedrockRuntime.InvokeModel", attributes, kind="client")).role is Role.OTHER


@pytest.mark.parametrize("event", ["gen_ai.content.completion.chunk", "llm.content.completion.chunk"])
def test_the_first_token_came_with_the_first_part_of_a_streamed_answer(event):
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.response.finish_reasons": ("stop",)}
    chunks = (Event(event, START + 7), Event(event, START + 9))
    assert read(span("chat m", attributes, events=chunks)).first_token_ns == START + 7


def test_the_address_that_openllmetry_names_is_the_endpoint():
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.openai.api_base": "http://127.0.0.1/v1/"}
    assert read(span("chat m", attributes)).model_endpoint == "http://127.0.0.1/v1/"


def test_an_agents_span_is_an_agent_whatever_was_written_onto_it():
    # OpenInference onto Google ADK's
    attributes = {"gen_ai.operation.name": "generate_content", "gen_ai.agent.name": "a_one"}
    facts = read(span("invoke_agent a_one", attributes | {"openinference.span.kind": "LLM"}))
    assert (facts.role, facts.agent_name) == (Role.AGENT, "a_one")
    assert read(span("invoke_agent a_one", attributes)).role is Role.AGENT
    assert read(span("generate_content m", attributes)).role is Role.LLM


def test_a_cancelled_strands_agent_has_an_unset_status():
    attributes = {"gen_ai.operation.name": "invoke_agent", "strands.cancellation.type": "CancelledError"}
    facts = read(span("invoke_agent weather-agent", attributes))
    assert (facts.cancelled, facts.error_type, facts.agent_name) == (True, "CancelledError", "weather-agent")


def test_a_tool_span():
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call_01"}
    facts = read(span("execute_tool get_weather", attributes))
    assert (facts.tool_name, facts.call_id, facts.usage) == ("get_weather", "call_01", None)


def test_google_adks_summary_of_parallel_tools_is_no_tool():
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "(merged tools)"}
    assert read(span("execute_tool (merged)", attributes, scope=Scope("gcp.vertex.agent"))).role is Role.OTHER


def test_google_adk_1_named_its_spans_only():
    scope = Scope("gcp.vertex.agent")
    agent = read(span("agent_run [weather_agent]", scope=scope))
    assert (agent.role, agent.agent_name) == (Role.AGENT, "weather_agent")
    request = read(span("call_llm", {"gen_ai.system": "gcp.vertex.agent", "gen_ai.request.model": "g"}, scope=scope))
    assert (request.role, request.provider_name, request.model) == (Role.LLM, None, "g")


def test_haystack_names_its_spans_only():
    assert read(span("haystack.agent.step")).role is Role.STEP
    tool = read(span("haystack.agent.step.tool", {"haystack.tool.name": "search"}))
    assert (tool.role, tool.tool_name) == (Role.TOOL, "search")


def test_a_number_that_is_none_is_flagged():
    facts = read(span("chat", CHAT | {"gen_ai.usage.input_tokens": "12k", "gen_ai.usage.output_tokens": "12"}))
    assert facts.usage is not None
    assert (facts.usage.prompt, facts.usage.completion) == (None, 12)
    assert facts.flags == ("bad_number",)


@pytest.mark.parametrize("value", [True, -5, 3.7, float("nan"), [], 2**63, "1" * 30])
def test_what_is_no_count(value):
    facts = read(span("chat", CHAT | {"gen_ai.usage.input_tokens": value}))
    assert facts.usage is not None
    assert facts.usage.prompt is None
    assert "bad_number" in facts.flags


def test_counts_that_do_not_fit_are_kept_and_flagged():
    facts = read(span("chat", CHAT | {"gen_ai.usage.cache_read.input_tokens": 500}))
    assert facts.usage is not None
    assert (facts.usage.cached, facts.flags) == (500, ("tokens_inconsistent",))
    assert read(span("chat", CHAT | {"gen_ai.usage.total_tokens": 139})).flags == ("tokens_inconsistent",)


def test_parts_that_only_the_total_includes_are_added():
    # Bedrock leaves the cache out of inputTokens, Gemini leaves thoughts out of candidates; their totals do not
    cached = read(span("chat", CHAT | {"gen_ai.usage.total_tokens": 101 + 37 + 64}))
    assert cached.usage is not None
    assert (cached.usage.prompt, cached.usage.completion, cached.flags) == (165, 37, ("normalised",))
    thought = read(span("chat", CHAT | {"gen_ai.usage.total_tokens": 101 + 37 + 8}))
    assert thought.usage is not None
    assert (thought.usage.prompt, thought.usage.completion, thought.flags) == (101, 45, ("normalised",))


def test_zero_tokens_are_unknown():
    facts = read(span("chat", {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 0}))
    assert facts.usage is None


def test_an_error_by_type_alone_and_by_event():
    typed = read(
        span("chat", CHAT | {"error.type": "openai.RateLimitError"}, status_code="error", status_message="429")
    )
    assert (typed.failed, typed.error_type, typed.error_message) == (True, "openai.RateLimitError", "429")
    details = {"exception.type": "ValueError", "exception.message": "no", "exception.stacktrace": "Traceback"}
    events = (Event("exception", START, {"exception.type": "KeyError"}), Event("exception", START, details))
    failed = read(span("execute_tool x", {"gen_ai.operation.name": "execute_tool"}, status_code="error", events=events))
    assert (failed.error_type, failed.error_message, failed.error_traceback) == ("ValueError", "no", "Traceback")
    handled = read(span("execute_tool x", {"gen_ai.operation.name": "execute_tool"}, events=events))
    assert not handled.failed
    nameless = read(span("invoke_agent x", {"gen_ai.operation.name": "invoke_agent"}, status_code="error"))
    assert nameless.error_type == "_OTHER"


@pytest.mark.parametrize(
    ("error_type", "cancelled"),
    [
        ("asyncio.exceptions.CancelledError", True),
        ("AbortError", True),
        ("trio.Cancelled", True),
        ("TimeoutError", False),
    ],
)
def test_cancellations(error_type, cancelled):
    facts = read(span("chat", CHAT | {"error.type": error_type}, status_code="error"))
    assert (facts.failed, facts.cancelled) == (True, cancelled)


def test_a_span_of_nobody():
    facts = read(span("GET /", {"http.method": "GET"}, resource=Resource({"service.name": "web"})))
    assert (facts.role, facts.convention, facts.service_name, facts.flags) == (Role.OTHER, None, "web", ())
    failed = read(span("GET /", {"http.method": "GET"}, status_code="error", status_message="ValueError: no"))
    assert (failed.role, failed.failed, failed.error_type) == (Role.OTHER, True, "ValueError")


def test_an_end_before_the_start_is_flagged():
    assert read(span("GET /", end_ns=START - 1)).flags == ("clock_skew",)
    assert read(span("chat", CHAT, end_ns=START - 1)).flags == ("clock_skew",)
