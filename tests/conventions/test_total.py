"""``read`` gives facts of the right types, whatever a span carries."""

import enum
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple

import step_exporter.conventions as conventions
from step_exporter import attributes as names
from step_exporter.conventions import read
from step_exporter.facts import MAX_NS, Event, RawSpan, Resource, Role, Scope, SpanFacts, TokenUsage

pytestmark = pytest.mark.once


def known_names():
    """Every attribute name that stands in a reader's source."""
    found = {value for name, value in vars(names).items() if name.startswith("STEP_")}
    for path in Path(conventions.__file__).parent.glob("*.py"):
        found.update(re.findall(r'"([a-z_]+[.:][A-Za-z_.:0-9]+|[a-z]+_[a-z_]+)"', path.read_text()))
    return sorted(found)


class Number(enum.IntEnum):
    ONE = 1
    MINUS = -1


class Word(str, enum.Enum):  # noqa: UP042 - StrEnum would not show what str() does to this one
    CHAT = "chat"


WORDS = [
    *("chat", "execute_tool", "invoke_agent", "run_step", "LLM", "AGENT", "TOOL", "CHAIN", "tool", "workflow", "llm"),
    *("chain", '"AGENT"', '"CHAT_MODEL"', "ai.generateText", "ai.streamText.doStream", "pending_span", "log", "span"),
    *("12", "12k", "-1", "1e400", "[", "{", '{"id": 1}', '{"choices": [1]}', '{"choices": {"a": 1}}', "[[[", "{'a':"),
    *('{"generations": [[{"message": 3}]]}', '{"candidates": [3], "usageMetadata": {"promptTokenCount": -1}}'),
    *(
        '{"usage": {"input_tokens": true}}',
        '{"output": 7}',
        '{"langgraph_node": [], "lc_agent_name": {}}',
        "\ud800",
        "\0",
    ),
    *("[" * 3000, "{'a': " * 300, "9" * 5000, "", "openai.chat", ".", "anthropic.x", "'", '["stop"]', "[1, null]"),
]


def one_of(options):
    """Like sampled_from, but Hypothesis never prints the options: some are long."""
    return st.integers(0, len(options) - 1).map(lambda index: options[index])


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**62, 2**70),
    st.floats(),
    one_of(WORDS),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from([Number.ONE, Number.MINUS, Word.CHAT]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(
            st.one_of(st.sampled_from(["id", "parts", "role", "usage", "type"]), st.text(max_size=3)), inner
        ),
    ),
    max_leaves=3,
)
keys = st.one_of(one_of(known_names()), st.text(max_size=5))
carried = st.dictionaries(keys, values, max_size=14)
times = st.one_of(st.none(), st.integers(0, MAX_NS))
EVENTS = [
    *("exception", "gen_ai.choice", "gen_ai.user.message", "First Token Stream Event", "mlflow.chunk.item.0"),
    *("gen_ai.content.completion.chunk", "llm_request_ms", "request_start_to_provider_request_start_ns"),
    *("tool_execution_started", "tool_execution_completed"),
]
NAMES = [
    *("chat gpt", "execute_tool x", "agent_step", "turn", "Step 1", "x.kickoff", "handoff to y", "call_llm"),
    *("agent run", "running tool", "raw_gen_ai_request", "litellm_request", "haystack.agent.run", "", "LangGraph"),
    *("claude_code.llm_request", "claude_code.tool", "workflow.run", "RoundRobinGroupChat.run_stream"),
]
SPOKEN = [  # what makes a reader read on
    {},
    {"gen_ai.operation.name": "chat"},
    {"gen_ai.operation.name": "execute_tool"},
    {"gen_ai.operation.name": "invoke_agent"},
    {"openinference.span.kind": "LLM"},
    {"openinference.span.kind": "AGENT"},
    {"traceloop.span.kind": "agent"},
    {"llm.request.type": "chat"},
    {"ai.operationId": "ai.streamText.doStream", "ai.model.provider": "anthropic.messages"},
    {"mlflow.spanType": '"LLM"'},
    {"langsmith.span.kind": "llm"},
    {"litellm.call_id": "1", "gen_ai.operation.name": "chat"},
    {"logfire.span_type": "span", "gen_ai.operation.name": "chat"},
    {"step.id": "1"},
    {"agentops.span.kind": "agent"},
    {"gen_ai.request.type": "chat"},
    {"genkit:type": "action", "genkit:metadata:subtype": "model"},
    {"lmnr.span.type": "LLM"},
    {"langwatch.span.type": "llm"},
    {"spring.ai.kind": "tool_call"},
    {"workflow.id": "1"},
]
SCOPES = [
    *("", "litellm", "pydantic-ai", "gcp.vertex.agent", "openinference.x.openai_agents", "agent_framework"),
    "com.anthropic.claude_code.tracing",
]


@st.composite
def spans(draw):
    return RawSpan(
        "a" * 32,
        "b" * 16,
        draw(st.sampled_from([None, "c" * 16])),
        draw(st.sampled_from(NAMES)),
        start_ns=draw(times),
        end_ns=draw(times),
        status_code=draw(st.sampled_from(["unset", "ok", "error"])),
        status_message=draw(st.one_of(st.none(), st.text(max_size=10))),
        attributes=draw(one_of(SPOKEN)) | draw(carried),
        events=tuple(Event(name, draw(times), draw(carried)) for name in draw(st.lists(one_of(EVENTS), max_size=3))),
        resource=Resource(draw(carried)),
        scope=Scope(draw(st.sampled_from(SCOPES))),
    )


TEXTS = [
    *("convention", "error_type", "error_message", "error_traceback", "step_id", "run_id", "agent_id", "agent_name"),
    *("conversation_id", "organization_id", "organization_name", "project_id", "origin", "template_id"),
    *("base_template_id", "provider_id", "provider_name", "provider_category", "model", "served_model", "model_handle"),
    *("model_endpoint", "request_id", "stop_reason", "tool_name", "call_id", "feedback", "transaction_id"),
    "service_name",
]
COUNTS = ["context_window_limit", "first_token_ns", "llm_start_ns", "llm_ns", "tool_ns", "tool_call_count"]


def is_count(value):
    return value is None or (type(value) is int and 0 <= value <= MAX_NS)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spans())
def test_read_is_total_and_its_facts_are_of_plain_types(raw):
    facts = read(raw)
    assert type(facts) is SpanFacts
    assert type(facts.role) is Role
    for name in TEXTS:
        value = getattr(facts, name)
        assert value is None or type(value) is str, name
    for name in COUNTS:
        assert is_count(getattr(facts, name)), name
    assert type(facts.failed) is bool
    assert type(facts.cancelled) is bool
    assert facts.failed or not facts.cancelled
    for name in ("tags", "asked_call_ids", "flags"):
        value = getattr(facts, name)
        assert type(value) is tuple, name
        assert all(type(item) is str for item in value), name
    assert list(facts.flags) == sorted(set(facts.flags))
    if facts.usage is not None:
        assert type(facts.usage) is TokenUsage
        assert all(is_count(value) for value in astuple(facts.usage)[:5])
        for details in astuple(facts.usage)[5:]:
            assert all(type(name) is str and is_count(value) for name, value in details)
    assert read(raw) == facts
    hash(facts)
