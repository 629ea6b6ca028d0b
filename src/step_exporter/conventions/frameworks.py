"""Frameworks whose own spans carry no attribute that says what they are: by scope and name.

Google ADK before it followed the GenAI conventions (1.x), Haystack, and Pipecat's turns.
"""

from __future__ import annotations

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import items, mapping, moment_ns, text
from step_exporter.conventions.answers import Answer
from step_exporter.facts import RawSpan, Role

ADK = "gcp.vertex.agent"
PIPECAT_TURN = "turn"

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
    return raw.scope.name == ADK or raw.name.startswith("haystack.") or _is_pipecat_turn(raw)


def _is_pipecat_turn(raw: RawSpan) -> bool:
    return raw.name == PIPECAT_TURN and "turn.number" in raw.attributes


def role(raw: RawSpan) -> Role | None:
    """By name."""
    if raw.scope.name == ADK:
        return Role.AGENT if raw.name.startswith("agent_run [") else _ADK.get(raw.name)
    if raw.name == "haystack.component.run":  # of a pipeline, with an agent or without
        kind = text(raw.attributes.get("haystack.component.type")) or ""
        return Role.LLM if kind.endswith("Generator") and not kind.endswith("ImageGenerator") else Role.OTHER
    if _is_pipecat_turn(raw):
        return Role.WORKFLOW  # what one speaks and what is answered; a conversation, around them, may take hours
    return _HAYSTACK.get(raw.name)


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in names and sessions."""
    get = raw.attributes.get
    if raw.scope.name == ADK:
        draft.conversation_id = draft.conversation_id or text(get("gcp.vertex.agent.session_id"))
        if draft.role is Role.AGENT and raw.name.startswith("agent_run ["):
            draft.agent_name = draft.agent_name or text(raw.name[11:].removesuffix("]"))
        return
    if _is_pipecat_turn(raw):
        draft.conversation_id = draft.conversation_id or text(get("conversation.id"))
        return
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("haystack.tool.name"))
        if get("haystack.tool.error") is True:  # handed to the model, so no exception of the span
            draft.failed = True
            said = mapping(get("haystack.agent.step.tool.output")).get("error")
            draft.error_message = draft.error_message or text(said)
    elif draft.role is Role.LLM:
        _fill_reply(raw, draft)


def _fill_reply(raw: RawSpan, draft: Draft) -> None:
    """What Haystack says of a request is all in the ``meta`` of its replies; generators that do not chat list these
    beside the replies."""
    get = raw.attributes.get
    said = mapping(get("haystack.agent.step.llm.output") or get("haystack.component.output"))
    for holder in (*items(said.get("replies")), {"meta": next(iter(items(said.get("meta"))), None)}):
        meta = mapping(mapping(holder).get("meta"))
        if meta:
            usage = mapping(meta.get("usage"))
            answers.fill(draft, Answer(None, text(meta.get("model")), text(meta.get("finish_reason")), (), usage))
            draft.first_token_ns = draft.first_token_ns or moment_ns(meta.get("completion_start_time"))
            return
