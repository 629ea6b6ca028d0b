"""Spring AI (1.1), as far as it goes beyond GenAI: tools and clients, whose operation is ``framework``."""

from __future__ import annotations

from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import text
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"spring.ai.kind"})

_KINDS = {"chat_client": Role.WORKFLOW, "tool_call": Role.TOOL}


def role(raw: RawSpan) -> Role | None:
    """By the kind; ``chat_client`` is one turn, with all its requests and tools below it. Of other kinds the operation
    says what they are: ``execute_tool`` of version 2's MCP server, mostly ``framework``."""
    return _KINDS.get(text(raw.attributes.get("spring.ai.kind")) or "")


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in the conversation and the tool's name."""
    get = raw.attributes.get
    draft.conversation_id = draft.conversation_id or text(get("spring.ai.chat.client.conversation.id"))
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("spring.ai.tool.definition.name"))
        draft.call_id = draft.call_id or text(get("spring.ai.tool.call.id"))
