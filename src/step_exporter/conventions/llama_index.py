"""LlamaIndex's own spans (``llama-index-observability-otel``): by the names of their methods, and by their events.

An event's fields are flattened, each as text: ``response.raw.usage.prompt_tokens``. Of a streamed answer there is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import EMPTY, parsed, text
from step_exporter.conventions.providers import is_known, provider
from step_exporter.facts import AttributeValue, RawSpan, Role

SCOPE = "llamaindex.opentelemetry.tracer"

_BEGIN = frozenset({"LLMChatStartEvent", "LLMCompletionStartEvent"})
_GO_ON = frozenset({"LLMChatInProgressEvent", "LLMCompletionInProgressEvent"})
_END = frozenset({"LLMChatEndEvent", "LLMCompletionEndEvent"})
_RAW = "response.raw."
_TOOL = re.compile(r"ToolCall\(tool_name='([^']*)'")
_CALL = re.compile(r"tool_id='([^']*)'\)$")
_AGENT = re.compile(r"current_agent_name='([^']*)'")


def role(raw: RawSpan) -> Role | None:
    """By its events that it asked a model; a workflow, an agent or a tool by the class whose method ran."""
    if any(event.name in _BEGIN for event in raw.events):
        return Role.LLM
    name = raw.name
    if name.endswith(("Tool.call", "Tool.acall")):
        return Role.TOOL
    if name.endswith("AgentWorkflow.run"):
        return Role.WORKFLOW
    return Role.AGENT if name.endswith("Agent.run") else Role.OTHER


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in names, and of a request its model and what its answer says."""
    if draft.role is Role.TOOL:
        said = text(raw.attributes.get("llamaindex.step.input_summary")) or ""
        draft.tool_name = draft.tool_name or _found(_TOOL, said)
        draft.call_id = draft.call_id or _found(_CALL, said)
    elif draft.role is Role.AGENT:
        for event in raw.events:
            draft.agent_name = draft.agent_name or _found(_AGENT, text(event.attributes.get("output")) or "")
        draft.agent_name = draft.agent_name or raw.name.removesuffix(".run") or None
    elif draft.role is Role.LLM:
        asked: Mapping[str, AttributeValue] = EMPTY
        for event in raw.events:
            if event.name in _BEGIN:
                asked = asked or event.attributes
            elif event.name in _GO_ON and type(event.time_ns) is int and raw.start_ns is not None:
                draft.after_start(raw, event.time_ns - raw.start_ns)
            elif event.name in _END:
                answers.fill(draft, answers.answer(_answer(event.attributes)))
        draft.model = draft.model or text(asked.get("model_dict.model_name")) or text(asked.get("model_dict.model"))
        maker = (text(asked.get("model_dict.class_name")) or "").lower().removesuffix("_llm")
        if draft.provider_name is None and is_known(maker):
            draft.provider_name = provider(maker)


def _answer(fields: Mapping[str, AttributeValue]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for key, value in fields.items():
        if not key.startswith(_RAW) or value == "null":
            continue
        node = answer
        *way, last = key[len(_RAW) :].split(".")
        for name in way:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                break
            node = cast("dict[str, Any]", child)
        else:
            node[last] = parsed(value) if isinstance(value, str) and value[:1] in "[{" else value
    return answer


def _found(pattern: re.Pattern[str], said: str) -> str | None:
    found = pattern.search(said)
    return text(found[1]) if found else None
