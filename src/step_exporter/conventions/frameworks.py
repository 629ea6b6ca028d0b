"""Frameworks whose own spans carry no attribute that says what they are: by scope and name.

Google ADK before it followed the GenAI conventions (1.x), and Haystack.
"""

from __future__ import annotations

from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import text
from step_exporter.facts import RawSpan, Role

ADK = "gcp.vertex.agent"

_ADK = {"call_llm": Role.LLM, "invocation": Role.WORKFLOW}
_HAYSTACK = {
    "haystack.agent.run": Role.AGENT,
    "haystack.agent.step": Role.STEP,
    "haystack.agent.step.llm": Role.LLM,
    "haystack.agent.step.tool": Role.TOOL,
    "haystack.pipeline.run": Role.WORKFLOW,
    "haystack.async_pipeline.run": Role.WORKFLOW,
}


def known(raw: RawSpan) -> bool:
    """Whether the span is one of these frameworks'."""
    return raw.scope.name == ADK or raw.name.startswith("haystack.")


def role(raw: RawSpan) -> Role | None:
    """By name."""
    if raw.scope.name == ADK:
        return Role.AGENT if raw.name.startswith("agent_run [") else _ADK.get(raw.name)
    return _HAYSTACK.get(raw.name)


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in names and sessions."""
    get = raw.attributes.get
    if raw.scope.name == ADK:
        draft.conversation_id = draft.conversation_id or text(get("gcp.vertex.agent.session_id"))
        if draft.role is Role.AGENT and raw.name.startswith("agent_run ["):
            draft.agent_name = draft.agent_name or text(raw.name[11:].removesuffix("]"))
        return
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("haystack.tool.name"))
