"""Logfire and pydantic-ai, as far as they go beyond the GenAI conventions."""

from __future__ import annotations

import re

from msgspec.structs import replace

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import mapping, text, texts
from step_exporter.conventions.providers import of_scope
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"logfire.msg_template", "logfire.span_type"})
SCOPE = "pydantic-ai"

# pydantic-ai before it named operations, and Logfire's integration of the OpenAI Agents SDK
_NAMES = {
    "agent run": Role.AGENT,
    "running tool": Role.TOOL,
    "Agent run: {name!r}": Role.AGENT,
    "Function: {name}": Role.TOOL,
    "OpenAI Agents trace: {name}": Role.WORKFLOW,
}
_REQUESTS = (
    "Chat Completion with {",
    "Chat completion with {",
    "Completion with {",
    "Message with {",
    "Responses API with {",
    "streaming response from {",
)
"""How the messages of a client's requests begin, which named their operation in version 4 first."""
_OF_CLIENTS = "logfire."
"""The scopes of Logfire's own instrumentations: ``logfire.openai``, ``logfire.anthropic``, and so on."""
_NO_SPAN = "0000000000000000"
_SPAN_ID = re.compile(r"[0-9a-f]{16}")


def role(raw: RawSpan) -> Role | None:
    """By name; a bare span by its message: ``running tool: …``, or one that names its own ``agent_name``."""
    attributes = raw.attributes
    if is_pending(raw):
        return Role.OTHER
    template = text(attributes.get("logfire.msg_template")) or raw.name
    found = _NAMES.get(raw.name) or _NAMES.get(template)
    if found:
        return found
    if text(attributes.get("sdk_span_type")) == "turn":  # of the OpenAI Agents SDK
        return Role.STEP
    if raw.scope.name.startswith(_OF_CLIENTS) and template.startswith(_REQUESTS):
        return Role.LLM
    if "gen_ai.operation.name" in attributes or text(attributes.get("logfire.span_type")) == "log":
        return None
    if template.startswith("running tool: "):
        return Role.TOOL
    agent = text(attributes.get("agent_name"))
    if agent and "tool_name" not in attributes:
        message = text(attributes.get("logfire.msg")) or raw.name
        if message in (agent, f"{agent} run"):
            return Role.AGENT
    return None


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what Logfire alone says."""
    attributes = raw.attributes
    get = attributes.get
    if is_pending(raw):
        draft.flag("pending_span")
    draft.agent_name = draft.agent_name or text(get("agent_name"))
    if draft.role is Role.AGENT and draft.agent_name is None:
        draft.agent_name = text(get("name")) or text(get("gen_ai.agent.name"))
    if not draft.tags:
        draft.tags = tuple(tag for tag in texts(get("logfire.tags")) if tag != "LLM")  # set by Logfire itself
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("tool_name")) or text(get("name"))
        if draft.tool_name is None:
            message = text(get("logfire.msg")) or raw.name
            draft.tool_name = text(message.removeprefix("running tool: "))
        return
    if draft.role is Role.AGENT or draft.role is Role.LLM:
        draft.model = draft.model or text(get("model_name"))
    if draft.role is not Role.LLM:
        return
    if "gen_ai.usage.raw" in attributes:
        answers.usage(draft.tokens, mapping(get("gen_ai.usage.raw")))
    elif raw.scope.name.startswith(_OF_CLIENTS):
        draft.provider_name = draft.provider_name or of_scope(raw.scope.name)
        if draft.model is None:
            draft.model = text(mapping(get("request_data")).get("model"))
        said = mapping(get("response_data"))
        usage = mapping(said.get("usage")) or mapping(get("usage"))
        if usage:
            answers.usage(draft.tokens, usage)
        draft.stop_reason = draft.stop_reason or text(said.get("finish_reason"))


def is_pending(raw: RawSpan) -> bool:
    """Whether the span is a marker that another span has begun."""
    return text(raw.attributes.get("logfire.span_type")) == "pending_span"


def pending(raw: RawSpan) -> RawSpan | None:
    """The open span that a ``pending_span`` marker announces; None if the span is no marker.

    Logfire exports a marker when a span begins: a span of no length whose parent is the span that has
    begun and whose ``logfire.pending_parent_id`` is that span's parent (zeros for a root).
    """
    attributes = raw.attributes
    if not is_pending(raw) or raw.parent_span_id is None:
        return None
    parent = text(attributes.get("logfire.pending_parent_id")) or _NO_SPAN
    known = parent != _NO_SPAN and _SPAN_ID.fullmatch(parent) is not None
    return replace(
        raw,
        span_id=raw.parent_span_id,
        parent_span_id=parent if known else None,
        name=raw.name.removesuffix(" (pending)"),
        end_ns=None,
        ended=False,
        attributes={
            **{key: value for key, value in attributes.items() if key != "logfire.pending_parent_id"},
            "logfire.span_type": "span",
        },
    )
