"""LangSmith's OpenTelemetry exporter (``LANGSMITH_OTEL_ENABLED``)."""

from __future__ import annotations

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import mapping, text
from step_exporter.conventions.failures import last_exception
from step_exporter.conventions.providers import provider
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"langsmith.span.kind"})

_METADATA = "langsmith.metadata."


def role(raw: RawSpan) -> Role | None:
    """By the run type, which beats ``gen_ai.operation.name``: a prompt template's run says ``chat`` there
    (langsmith 0.15, ``WELL_KNOWN_OPERATION_NAMES``)."""
    get = raw.attributes.get
    kind = text(get("langsmith.span.kind"))
    if kind is None:
        return None
    if kind == "llm":
        return Role.LLM
    if kind == "tool":
        return Role.TOOL
    if kind == "chain":
        name = text(get("langsmith.trace.name")) or raw.name
        if name == text(get(_METADATA + "lc_agent_name")) or name == "AgentExecutor":
            return Role.AGENT
        if name == "LangGraph":  # a compiled graph without a name
            return Role.WORKFLOW
    return Role.OTHER


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what LangSmith's attributes say."""
    get = raw.attributes.get
    if draft.conversation_id is None:
        for key in ("thread_id", "session_id", "conversation_id"):
            if found := text(get(_METADATA + key)):
                draft.conversation_id = found
                break
    draft.agent_name = draft.agent_name or text(get(_METADATA + "lc_agent_name"))
    if draft.role is Role.AGENT:
        draft.agent_name = draft.agent_name or raw.name or None
    if not draft.tags:
        tags = text(get("langsmith.span.tags"))  # joined by ", "; LangGraph adds the places of its nodes
        if tags:
            draft.tags = tuple(t for t in tags.split(", ") if not t.startswith(("seq:step:", "graph:step:")))
    if any(event.name == "exception" for event in raw.events):
        # Recorded only from a run's error. The status would be ERROR, but the SDK ignores that
        # on a span that was set OK when the run began (langsmith 0.15, _otel_exporter.py).
        draft.failed = True
        message = text(last_exception(raw).get("exception.message"))
        if message:  # repr(error), an empty line, the traceback
            draft.error_message = message.partition("Traceback (most recent call last)")[0].strip() or None
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("gen_ai.tool.name")) or raw.name or None
        return
    if draft.role is not Role.LLM:
        return
    draft.provider_name = draft.provider_name or provider(get(_METADATA + "ls_provider"))
    found = answers.answer(get("gen_ai.completion"))
    answers.fill(draft, found._replace(usage={}))
    draft.model = draft.model or text(get(_METADATA + "ls_model_name"))
    usage = mapping(get(_METADATA + "usage_metadata")) or found.usage
    if usage:
        answers.usage(draft.tokens, usage)
