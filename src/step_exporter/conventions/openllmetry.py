"""OpenLLMetry (Traceloop). Its LLM spans follow the GenAI conventions; here are its own attributes."""

from __future__ import annotations

from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import first_text, text
from step_exporter.facts import RawSpan, Role

_PROPERTY = "traceloop.association.properties."

MARKERS = frozenset(
    {
        "llm.request.type",
        "traceloop.association.properties.lc_agent_name",
        "traceloop.association.properties.session_id",
        "traceloop.association.properties.thread_id",
        "traceloop.entity.name",
        "traceloop.span.kind",
        "traceloop.workflow.name",
    }
)

_KINDS = {
    "agent": Role.AGENT,
    "handoff": Role.OTHER,
    "task": Role.OTHER,
    "tool": Role.TOOL,
    "workflow": Role.WORKFLOW,
}

_REQUESTS = {"chat": Role.LLM, "completion": Role.LLM, "embedding": Role.OTHER, "rerank": Role.OTHER}


def role(raw: RawSpan) -> Role | None:
    """By the span kind; LLM spans of before the GenAI conventions by ``llm.request.type``."""
    attributes = raw.attributes
    kind = attributes.get("traceloop.span.kind")
    if kind is not None:
        return _KINDS.get((text(kind) or "").lower(), Role.OTHER)
    return _REQUESTS.get(text(attributes.get("llm.request.type")) or "")


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what OpenLLMetry's own attributes say.

    ``traceloop.workflow.name`` is the outermost workflow's, so it never names the agent of a span.
    """
    get = raw.attributes.get
    draft.conversation_id = (
        draft.conversation_id or text(get(_PROPERTY + "session_id")) or text(get(_PROPERTY + "thread_id"))
    )
    agent = text(get(_PROPERTY + "lc_agent_name"))  # LangChain's own, right where nested agents are
    if agent and draft.role is not Role.AGENT:
        draft.agent_name = agent
    entity = text(get("traceloop.entity.name"))
    if draft.role is Role.AGENT:
        draft.agent_name = draft.agent_name or agent or entity or _without(raw.name, ".agent", ".workflow")
    elif draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or entity or _without(raw.name, ".tool")
    elif draft.role is Role.LLM:
        draft.model_endpoint = draft.model_endpoint or text(get("gen_ai.openai.api_base"))
        if draft.stop_reason is None:
            draft.stop_reason = first_text(get("llm.response.finish_reason")) or first_text(
                get("gen_ai.completion.0.finish_reason")
            )
        if draft.first_token_ns is None and raw.start_ns is not None:
            for event in raw.events:
                if event.name in ("gen_ai.content.completion.chunk", "llm.content.completion.chunk"):
                    if type(event.time_ns) is int:
                        draft.after_start(raw, event.time_ns - raw.start_ns)
                    break


def _without(name: str, *suffixes: str) -> str | None:
    for suffix in suffixes:
        if name.endswith(suffix):
            return name[: -len(suffix)] or None
    return name or None
