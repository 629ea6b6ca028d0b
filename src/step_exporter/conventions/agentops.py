"""AgentOps (0.4): its decorators' spans, and those of its instrumentations, which name no GenAI operation."""

from __future__ import annotations

from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import first_text, text, texts
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"agentops.span.kind", "gen_ai.request.type"})

_KINDS = {
    "agent": Role.AGENT,
    "llm": Role.LLM,
    "session": Role.WORKFLOW,
    "tool": Role.TOOL,
    "workflow": Role.WORKFLOW,
}
_REQUESTS = {"chat": Role.LLM, "completion": Role.LLM, "embedding": Role.OTHER, "rerank": Role.OTHER}


def role(raw: RawSpan) -> Role | None:
    """By the span kind; LLM spans by the type of the request.

    ``AgentOpsSpanKindValues.TOOL``, the enum's member and not its value, is on spans below an LLM span: the model
    asked for a tool, none ran (``instrumentation/providers/openai/wrappers/chat.py``).
    """
    attributes = raw.attributes
    kind = text(attributes.get("agentops.span.kind"))
    if kind is not None:
        return _KINDS.get(kind, Role.OTHER)
    if "gen_ai.operation.name" in attributes:
        return None
    return _REQUESTS.get(text(attributes.get("gen_ai.request.type")) or "")


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in names and tags, and of a request how it ended and when its first token came."""
    get = raw.attributes.get
    draft.tags = draft.tags or texts(get("agentops.tags"))
    if draft.role is Role.AGENT:
        draft.agent_id = draft.agent_id or text(get("agent.id"))
        draft.agent_name = draft.agent_name or text(get("agent.name")) or _entity(raw, ".agent")
    elif draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("tool.name")) or _entity(raw, ".tool")
        draft.call_id = draft.call_id or text(get("tool.call.id"))
    elif draft.role is Role.LLM:
        draft.stop_reason = draft.stop_reason or first_text(get("gen_ai.completion.0.finish_reason"))
        draft.first_token_after(raw, get("gen_ai.streaming.time_to_first_token"), 1e9)


def _entity(raw: RawSpan, suffix: str) -> str | None:
    return text(raw.attributes.get("operation.name")) or raw.name.removesuffix(suffix) or None
