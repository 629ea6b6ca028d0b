"""OpenLLMetry (Traceloop). Its LLM spans follow the GenAI conventions; here are its own attributes."""

from __future__ import annotations

from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import first_text, mapping, text
from step_exporter.facts import RawSpan, Role

_LLAMA_INDEX = "opentelemetry.instrumentation.llamaindex"
_LANGCHAIN_JS = "@traceloop/instrumentation-langchain"
_AGENT_NAME = '"current_agent_name"'
_PROPERTY = "traceloop.association.properties."

MARKERS = frozenset(
    {
        "llm.headers",
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
        if raw.scope.name == _LLAMA_INDEX:  # by the class of what ran, whose kind is a task's or a workflow's
            if raw.name.endswith("Tool.task"):
                return Role.TOOL
            if raw.name.endswith("Agent.workflow") or (raw.name == "run.task" and _AGENT_NAME in _given(raw)):
                return Role.AGENT  # the latter inside of another workflow, which hides the class
        found = _KINDS.get((text(kind) or "").lower(), Role.OTHER)
        # in JavaScript every runnable of LangChain is a workflow, and beside what it runs rather than around it
        return Role.OTHER if found is Role.WORKFLOW and raw.scope.name == _LANGCHAIN_JS else found
    found = _REQUESTS.get(text(attributes.get("llm.request.type")) or "")
    if found is None and raw.name == "openai.response" and "gen_ai.operation.name" not in attributes:
        return Role.LLM  # OpenAI's Responses API, before version 0.5x named operations
    return found


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
    if raw.scope.name == _LLAMA_INDEX and (draft.role is Role.TOOL or draft.role is Role.AGENT):
        _fill_llama_index(raw, draft)
        entity = _without(entity or raw.name, ".workflow", ".task")
    if draft.role is Role.AGENT:
        draft.agent_name = draft.agent_name or agent or entity or _without(raw.name, ".agent", ".workflow")
    elif draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or entity or _without(raw.name, ".tool")
    elif draft.role is Role.LLM and draft.stop_reason is None:
        draft.stop_reason = first_text(get("llm.response.finish_reason")) or first_text(
            get("gen_ai.completion.0.finish_reason")
        )


def _given(raw: RawSpan) -> str:
    return text(raw.attributes.get("traceloop.entity.output")) or ""


def _fill_llama_index(raw: RawSpan, draft: Draft) -> None:
    """What LlamaIndex's tools and agents gave names them; the entity's name is their class's."""
    given = mapping(_given(raw))
    if draft.role is Role.AGENT:
        draft.agent_name = draft.agent_name or text(mapping(given.get("result")).get("current_agent_name"))
        return
    draft.tool_name = draft.tool_name or text(given.get("tool_name"))
    if given.get("is_error") is True:  # handed to the model, so no exception of the span
        draft.failed = True
        draft.error_message = draft.error_message or text(given.get("raw_output"))


def _without(name: str, *suffixes: str) -> str | None:
    for suffix in suffixes:
        if name.endswith(suffix):
            return name[: -len(suffix)] or None
    return name or None
