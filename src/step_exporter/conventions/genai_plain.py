"""A span that speaks OpenTelemetry's GenAI conventions and nothing else, as most do, read in one pass.

``read`` gives the facts that the readers in turn give, in half their time; None where a span says anything that is not
looked at here, which is then theirs.
"""

from __future__ import annotations

from typing import Any, cast

from step_exporter.conventions import agent_framework, content, genai, messages, native
from step_exporter.conventions._draft import UNKNOWN, head
from step_exporter.conventions._values import first_text, text
from step_exporter.conventions.content import Contents
from step_exporter.conventions.providers import provider
from step_exporter.facts import MAX_NS, RawSpan, Role, SpanFacts, TokenUsage

_LLM, _TOOL, _AGENT = Role.LLM, Role.TOOL, Role.AGENT
_ELSEWHERE = frozenset(
    {
        *genai.LESS_USUAL,
        "error.type",
        "gen_ai.system",
        "gen_ai.span.kind",
        "gen_ai.step.name",
        "litellm.call_id",
        "strands.cancellation.type",
    }
)
"""What changes the meaning of a span and is left to the readers in turn."""


_READ_OTHERWISE = genai.CACHE_APART | {agent_framework.SCOPE}
_NO_USAGE = [None] * len(genai.USAGE)
_COUNTS = frozenset({int, type(None)})


def _at(name: str) -> int:
    return SpanFacts.__struct_fields__.index(name)


_AGENT_ID, _AGENT_NAME, _CONVERSATION = map(_at, ("agent_id", "agent_name", "conversation_id"))
_PROVIDER, _MODEL, _SERVED, _ENDPOINT = map(_at, ("provider_name", "model", "served_model", "model_endpoint"))
_REQUEST, _STOP, _USAGE, _ASKED = map(_at, ("request_id", "stop_reason", "usage", "asked_call_ids"))
_TOOL_NAME, _CALL, _INPUT, _OUTPUT = map(_at, ("tool_name", "call_id", "input_messages", "output_messages"))


def read(raw: RawSpan, contents: Contents | None) -> SpanFacts | None:
    """The facts of a span whose attributes name no other vocabulary; None where it is none for this reader."""
    attributes, flags = raw.attributes, raw.flags
    start, end = raw.start_ns, raw.end_ns
    if (
        flags
        or raw.status_code == "error"
        or start is None
        or (end is not None and end < start)
        or not _ELSEWHERE.isdisjoint(attributes)
        or not native.OF_RESOURCE.isdisjoint(raw.resource.attributes)
        or raw.scope.name in _READ_OTHERWISE
    ):
        return None
    get = attributes.get
    role = genai.OPERATIONS.get(operation) if type(operation := get("gen_ai.operation.name")) is str else None
    values: list[Any] = [*head(raw, role, "genai"), *UNKNOWN]
    if role is _TOOL:
        if raw.name == "execute_tool (merged)":
            return None  # Google ADK's
        values[_TOOL_NAME] = text(get("gen_ai.tool.name")) or (
            raw.name[13:] or None if raw.name.startswith("execute_tool ") else None
        )
        values[_CALL] = text(get("gen_ai.tool.call.id"))
        agent_name = text(get("gen_ai.agent.name"))
    elif role is _LLM or role is _AGENT:
        usage = [get(key) for key in genai.USAGE]
        if usage != _NO_USAGE:
            prompt, completion, cached, cache_write, reasoning = [0 if count is None else count for count in usage]
            if (
                usage[0] is None
                or usage[1] is None
                or not {*map(type, usage)} <= _COUNTS
                or not (0 <= cached <= prompt <= MAX_NS and 0 <= reasoning <= completion <= MAX_NS)
                or not 0 <= cache_write <= MAX_NS
                or not (prompt or completion)
            ):
                return None  # doubtful
            values[_USAGE] = TokenUsage(*cast(list[Any], usage))
        asked, served = text(get("gen_ai.request.model")), text(get("gen_ai.response.model"))
        values[_MODEL] = served or asked
        if served != asked:
            values[_SERVED] = served
        values[_PROVIDER] = provider(get("gen_ai.provider.name"))
        values[_REQUEST] = text(get("gen_ai.response.id"))
        address = get("server.address")
        if address is not None:
            host, port = text(address), text(get("server.port"))
            values[_ENDPOINT] = f"{host}:{port}" if host and port else host
        reason = get("gen_ai.response.finish_reasons")
        if reason is not None:
            values[_STOP] = first_text(reason)
        agent_name = text(get("gen_ai.agent.name"))
        if role is _LLM and agent_name is not None and raw.name == "invoke_agent " + agent_name:
            return None  # Google ADK's
        if agent_name is None and role is _AGENT and raw.name.startswith("invoke_agent "):
            agent_name = raw.name[13:] or None
        if contents is None:
            contents = content.take_apart(raw)
        if contents.attributes or contents.events:
            values[_INPUT], values[_OUTPUT] = messages.read_messages(raw, contents)
            if role is _LLM:
                values[_ASKED] = messages.asked_call_ids(values[_OUTPUT])
        if raw.events and (values[_STOP] is None or raw.events[0].name in genai.CHUNKS):
            return None  # one of them may tell
    else:
        return None
    values[_AGENT_NAME] = agent_name
    values[_AGENT_ID] = text(get("gen_ai.agent.id"))
    values[_CONVERSATION] = text(get("gen_ai.conversation.id"))
    return SpanFacts(*values)
