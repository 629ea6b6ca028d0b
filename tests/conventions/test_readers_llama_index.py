"""LlamaIndex's own spans: llama-index-observability-otel 0.6."""

import pytest

from step_exporter.conventions import read, without_content
from step_exporter.facts import Event, RawSpan, Role, Scope, TokenUsage

START = 1_796_068_172_000_000_000


def span(name, attributes=None, events=()):
    scope = Scope("llamaindex.opentelemetry.tracer")
    return RawSpan(
        "a" * 32, "b" * 16, None, name, start_ns=START, attributes=attributes or {}, events=events, scope=scope
    )


ASKED = Event(
    "LLMCompletionStartEvent",
    START,
    {
        "class_name": "LLMCompletionStartEvent",
        "id_": "dbdda872",
        "prompt": "SECRET",
        "additional_kwargs.tools": "SECRET",
        "model_dict.system_prompt": "SECRET",
        "model_dict.model_name": "gpt-4o-mini",
        "model_dict.class_name": "openai_llm",
    },
)
ANSWERED = Event(
    "LLMCompletionEndEvent",
    START + 40,
    {
        "prompt": "SECRET",
        "response.text": "SECRET",
        "response.raw.id": "chatcmpl-0000x",
        "response.raw.model": "gpt-4o-mini-2024-07-18",
        "response.raw.choices": '[{"finish_reason": "stop", "message": {"role": "assistant", "content": "SECRET"}}]',
        "response.raw.service_tier": "null",
        "response.raw.usage.prompt_tokens": 101,
        "response.raw.usage.completion_tokens": 37,
        "response.raw.usage.total_tokens": 138,
        "response.raw.usage.prompt_tokens_details.cached_tokens": 64,
    },
)


def test_a_request_of_llamaindex_is_told_by_its_events():
    facts = read(span("OpenAI.complete", events=(ASKED, ANSWERED)))
    assert (facts.role, facts.convention, facts.provider_name) == (Role.LLM, "llama_index", "openai")
    assert (facts.model, facts.request_id, facts.stop_reason) == ("gpt-4o-mini-2024-07-18", "chatcmpl-0000x", "stop")
    assert facts.usage == TokenUsage(101, 37, 64)


def test_a_streamed_request_of_llamaindex_has_its_model_and_its_first_token():
    delta = Event("LLMCompletionInProgressEvent", START + 7, {"response.delta": "SECRET"})
    facts = read(span("OpenAI.astream_complete", events=(ASKED, delta, delta)))
    assert (facts.role, facts.model, facts.first_token_ns) == (Role.LLM, "gpt-4o-mini", START + 7)


def test_a_class_that_names_no_known_provider_gives_none():
    asked = Event("LLMChatStartEvent", START, {"model_dict.class_name": "my_llm", "model_dict.model": "m"})
    facts = read(span("MyLLM.chat", events=(asked,)))
    assert (facts.provider_name, facts.model) == (None, "m")


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("FunctionTool.acall", Role.TOOL),
        ("QueryEngineTool.call", Role.TOOL),
        ("AgentWorkflow.run", Role.WORKFLOW),
        ("FunctionAgent.run", Role.AGENT),
        ("BaseWorkflowAgent.call_tool", Role.OTHER),
        ("OpenAI._prepare_chat_with_tools", Role.OTHER),
    ],
)
def test_llamaindexs_spans_are_told_by_the_class_whose_method_ran(name, role):
    assert read(span(name)).role is role


def test_a_tool_of_llamaindex_has_its_name_and_the_id_of_its_call():
    said = "ToolCall(tool_name='get_weather', tool_kwargs={'city': 'Paris'}, tool_id='call_0_0')"
    facts = read(span("FunctionTool.acall", {"llamaindex.step.input_summary": said}))
    assert (facts.role, facts.tool_name, facts.call_id) == (Role.TOOL, "get_weather", "call_0_0")


def test_an_agent_of_llamaindex_is_named_as_it_calls_itself_or_by_its_class():
    said = "StopEvent(result=AgentOutput(response=ChatMessage(), current_agent_name='weather-agent'))"
    output = Event("workflow.output", START, {"output": said})
    assert read(span("FunctionAgent.run", events=(output,))).agent_name == "weather-agent"
    assert read(span("FunctionAgent.run")).agent_name == "FunctionAgent"


def test_nothing_that_was_said_is_left_of_llamaindexs_spans_where_content_is_off():
    failed = Event("exception", START, {"exception.type": "ValueError", "exception.message": "SECRET"})
    raw = span("OpenAI.complete", {"llamaindex.step.input_summary": "SECRET"}, (ASKED, ANSWERED, failed))
    bare = without_content(raw)
    assert "SECRET" not in repr(bare)
    assert bare.events[2].attributes == {"exception.type": "ValueError"}
    assert read(bare) == read(raw)
