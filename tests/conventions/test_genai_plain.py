"""The one pass over a plain GenAI span reads what the readers in turn read."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recordings import all_recordings
from step_exporter import conventions
from step_exporter.conventions import genai, genai_plain
from step_exporter.facts import Event, RawSpan, Resource, Role, Scope, SpanFacts

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MESSAGES = '[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]'
REPLY = '[{"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": {}}]}]'


def in_turn(raw: RawSpan) -> SpanFacts:
    with mock.patch.object(genai_plain, "read", return_value=None):
        return conventions.read(raw)


odd = st.sampled_from(["", "x", 3, -1, 2.5, True, None, b"x", ("stop",), ("",), (), '["stop"]', "12", 2**70, {"a": 1}])
operations = st.sampled_from(["chat", "execute_tool", "invoke_agent", *genai.OPERATIONS])
counts = st.sampled_from([0, 3, 5, 10])
usual = st.fixed_dictionaries(
    {},
    optional={
        "gen_ai.operation.name": operations,
        "gen_ai.provider.name": st.sampled_from(["openai", "anthropic", "langchain", "openai.chat"]),
        "gen_ai.request.model": st.sampled_from(["m", "n"]),
        "gen_ai.response.model": st.sampled_from(["m", "n"]),
        "gen_ai.response.id": st.just("r"),
        "gen_ai.response.finish_reasons": st.sampled_from([("stop",), '["stop"]']),
        "gen_ai.conversation.id": st.just("talk"),
        "gen_ai.agent.name": st.just("a"),
        "gen_ai.agent.id": st.just("7"),
        "gen_ai.tool.name": st.just("f"),
        "gen_ai.tool.call.id": st.just("c"),
        "gen_ai.input.messages": st.just(MESSAGES),
        "gen_ai.output.messages": st.just(REPLY),
        "server.address": st.just("h"),
        "server.port": st.just(443),
        **dict.fromkeys(genai.USAGE, counts),
    },
)
rare = st.dictionaries(
    st.sampled_from(
        sorted(genai.LESS_USUAL | genai.MARKERS | {"error.type", "litellm.call_id", "strands.cancellation.type"})
    ),
    odd,
    max_size=2,
)
spans = st.builds(
    lambda attributes, more, name, code, start, end, flags, events, resource, scope: RawSpan(
        TRACE,
        SPAN,
        None,
        name,
        start_ns=start,
        end_ns=end,
        status_code=code,
        attributes={**attributes, **more},
        flags=flags,
        events=events,
        resource=Resource(resource),
        scope=Scope(scope),
    ),
    usual,
    st.one_of(st.just({}), st.dictionaries(st.sampled_from(sorted(genai.MARKERS)), odd, max_size=1), rare),
    st.sampled_from(["chat m", "execute_tool f", "invoke_agent a", "execute_tool (merged)", "execute_tool "]),
    st.sampled_from(["unset", "unset", "ok", "error"]),
    st.sampled_from([1, 1, 5, None]),
    st.sampled_from([3, 3, None]),
    st.sampled_from([(), (), ("truncated",)]),
    st.sampled_from(
        [
            (),
            (),
            (Event("gen_ai.choice", 2, {"finish_reason": "length"}),),
            (Event("gen_ai.content.completion.chunk", 2),),
        ]
    ),
    st.sampled_from([{}, {"service.name": "s"}, {"service.name": ""}, {"step.project_id": "p"}]),
    st.sampled_from(["", "", "agent_framework", "opentelemetry.instrumentation.bedrock"]),
)


@settings(max_examples=1000, deadline=None)
@given(spans)
def test_what_is_plain_is_read_as_in_turn(raw: RawSpan) -> None:
    found = genai_plain.read(raw, None)
    if found is not None:
        assert found == in_turn(raw)
    assert conventions.read(raw) == in_turn(raw)


def test_recorded_spans_are_read_as_in_turn() -> None:
    plain = 0
    for recording in all_recordings():
        for raw in recording.raws():
            plain += genai_plain.read(raw, None) is not None
            assert conventions.read(raw) == in_turn(raw)
    assert plain > 200


@pytest.mark.parametrize(
    ("name", "attributes", "role"),
    [
        ("chat m", {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}, Role.LLM),
        ("execute_tool f", {"gen_ai.operation.name": "execute_tool"}, Role.TOOL),
        ("invoke_agent a", {"gen_ai.operation.name": "invoke_agent"}, Role.AGENT),
    ],
)
def test_requests_tools_and_agents_are_plain(name: str, attributes: dict[str, Any], role: Role) -> None:
    raw = RawSpan(TRACE, SPAN, None, name, start_ns=1, end_ns=2, attributes=attributes)
    found = genai_plain.read(raw, None)
    assert found is not None
    assert found.role is role
