"""LangWatch's SDKs (Python 1.4, TypeScript). A value is wrapped with its kind: ``{"type": "json", "value": …}``."""

from __future__ import annotations

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import SAYS_MORE, count, mapping, text, texts
from step_exporter.conventions.providers import is_known, provider
from step_exporter.facts import MAX_NS, RawSpan, Role

MARKERS = frozenset({"langwatch.span.type"})

_TYPES = {"agent": Role.AGENT, "llm": Role.LLM, "tool": Role.TOOL, "workflow": Role.WORKFLOW}
_OF_TRACE = frozenset({"langwatch.origin", "metadata"})


def role(raw: RawSpan) -> Role | None:
    """By the span type; ``span`` is what has none, and leaves it to other vocabularies. Of these, the one of a
    ``langwatch.trace`` is the whole turn, and alone has an origin and the trace's metadata."""
    attributes = raw.attributes
    kind = text(attributes.get("langwatch.span.type"))
    if kind is None or (kind == "span" and not SAYS_MORE.isdisjoint(attributes)):
        return None
    if kind == "span" and not _OF_TRACE.isdisjoint(attributes):
        return Role.WORKFLOW
    return _TYPES.get(kind, Role.OTHER)


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in the thread, names, and of a request its model, counts and first token."""
    get = raw.attributes.get
    metadata = mapping(get("metadata"))
    if draft.conversation_id is None:
        draft.conversation_id = text(get("langwatch.thread.id")) or text(metadata.get("thread_id"))
    draft.tags = draft.tags or texts(get("langwatch.labels")) or texts(metadata.get("labels"))
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("gen_ai.tool.name")) or raw.name or None
    elif draft.role is Role.AGENT:
        draft.agent_name = draft.agent_name or text(get("gen_ai.agent.name")) or raw.name or None
    elif draft.role is Role.LLM:
        vendor, slash, model = (text(get("gen_ai.request.model")) or "").partition("/")
        if slash and model and is_known(vendor):  # LangWatch's own spelling of a model
            draft.provider_name = draft.provider_name or provider(vendor)
            draft.model = draft.model or text(get("gen_ai.response.model")) or model
        metrics = mapping(get("langwatch.metrics"))
        metrics = mapping(metrics.get("value")) or metrics  # TypeScript wraps them too
        tokens = draft.tokens
        answers.usage(tokens, metrics)
        tokens.prompt = tokens.first(tokens.prompt, metrics.get("promptTokens"))
        tokens.completion = tokens.first(tokens.completion, metrics.get("completionTokens"))
        if tokens.reasoning is None:
            tokens.reasoning = tokens.count(metrics.get("reasoning_tokens"))
        draft.first_token_after(raw, metrics.get("first_token_ms"), 1e6)
        at = count(mapping(get("langwatch.timestamps")).get("first_token_at"))  # milliseconds, too
        if draft.first_token_ns is None and at and at * 1_000_000 <= MAX_NS:
            draft.first_token_ns = at * 1_000_000
