"""Laminar (lmnr 0.8). Its LLM spans carry GenAI attributes without the operation."""

from __future__ import annotations

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import SAYS_MORE, parsed, text, texts
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"lmnr.span.type"})

_TYPES = {"LLM": Role.LLM, "TOOL": Role.TOOL}
_PROPERTY = "lmnr.association.properties."


def role(raw: RawSpan) -> Role | None:
    """By the span type. ``DEFAULT`` is every other span, those of other instrumentations too: what they say stands."""
    attributes = raw.attributes
    kind = text(attributes.get("lmnr.span.type"))
    if kind is None or (kind == "DEFAULT" and not SAYS_MORE.isdisjoint(attributes)):
        return None
    return _TYPES.get(kind, Role.OTHER)


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in the session, the tags, and of a request where it went and how it ended."""
    get = raw.attributes.get
    draft.conversation_id = draft.conversation_id or text(get(_PROPERTY + "session_id"))
    draft.tags = draft.tags or texts(get(_PROPERTY + "tags"))
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("gen_ai.tool.name")) or raw.name or None
    elif draft.role is Role.LLM:
        draft.model_endpoint = draft.model_endpoint or text(get("gen_ai.request.base_url"))
        said = get("gen_ai.output.messages")
        if draft.stop_reason is None and type(said) is str and '"finish_reason"' in said:
            draft.stop_reason = answers.answer({"choices": parsed(said)}).stop_reason  # OpenAI's choices, as they came
