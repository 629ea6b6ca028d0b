"""Genkit (1.42, JavaScript). A span's input and output are the action's, as JSON text."""

from __future__ import annotations

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import mapping, text
from step_exporter.conventions.providers import provider
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"genkit:type"})

_SUBTYPES = {
    "agent": Role.AGENT,
    "flow": Role.WORKFLOW,
    "model": Role.LLM,
    "tool": Role.TOOL,
    "tool.v2": Role.TOOL,
}
_PLUGINS = {"googleai": "gcp.gemini"}
"""Plugins that are not named as the provider is."""


def role(raw: RawSpan) -> Role | None:
    """By the kind of the action. ``generate``, a ``util``, is the loop around a model and its tools, and begins anew
    inside itself after every round of tools."""
    get = raw.attributes.get
    if text(get("genkit:type")) is None:
        return None
    return _SUBTYPES.get(text(get("genkit:metadata:subtype")) or "", Role.OTHER)


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in names, and of a request what the response says: the provider's own first, in ``raw``."""
    get = raw.attributes.get
    name = text(get("genkit:name")) or raw.name or None
    draft.conversation_id = draft.conversation_id or text(get("genkit:sessionId"))
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or name
    elif draft.role is Role.AGENT:
        draft.agent_name = draft.agent_name or name
    elif draft.role is Role.LLM:
        plugin, slash, model = (name or "").partition("/")
        if slash:
            draft.provider_name = draft.provider_name or provider(_PLUGINS.get(plugin, plugin))
        response = mapping(get("genkit:output"))
        answers.fill(draft, answers.answer(response.get("raw") or response.get("custom")))
        draft.model = draft.model or model or name
        draft.stop_reason = draft.stop_reason or text(response.get("finishReason"))
        usage, tokens = mapping(response.get("usage")), draft.tokens
        if usage and tokens.prompt is None and tokens.completion is None:
            tokens.take(
                usage,
                prompt="inputTokens",
                completion="outputTokens",
                total="totalTokens",
                cached="cachedContentTokens",
                reasoning="thoughtsTokens",
            )
