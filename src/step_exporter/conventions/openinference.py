"""OpenInference (Arize Phoenix): LangChain, LlamaIndex, CrewAI, smolagents, OpenAI Agents, DSPy, Agno and others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import mapping, member, text, texts
from step_exporter.conventions.providers import of_scope, provider
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"llm.model_name", "llm.token_count.prompt", "openinference.span.kind", "session.id", "tag.tags"})

_KINDS = {
    "AGENT": Role.AGENT,
    "CHAIN": Role.OTHER,
    "DECISION": Role.OTHER,
    "EMBEDDING": Role.OTHER,
    "EVALUATOR": Role.OTHER,
    "GUARDRAIL": Role.OTHER,
    "LLM": Role.LLM,
    "PROMPT": Role.OTHER,
    "RERANKER": Role.OTHER,
    "RETRIEVER": Role.OTHER,
    "TOOL": Role.TOOL,
}

_ANSWER_IDS = ('"id"', '"response_id"', '"responseId"')
"""One of them is in every provider's answer; the last two are Gemini's."""
_SMOLAGENTS_STEP = re.compile(r"Step \d+")


def role(raw: RawSpan) -> Role | None:
    """By the span kind, and by name where a kind stands for several things."""
    kind = raw.attributes.get("openinference.span.kind")
    if kind is None:
        return None
    found = _KINDS.get((text(kind) or "").upper())
    name = raw.name
    if found is Role.LLM:
        if raw.attributes.get("llm.request.type") in ("embedding", "rerank"):
            return Role.OTHER  # OpenLLMetry's, which OpenInference's processor takes for a request
        # LlamaIndex: the arguments of a request are put together, which is a request of its own after it
        return Role.OTHER if name.endswith("._prepare_chat_with_tools") and _is_llama_index(raw) else found
    if found is Role.AGENT:
        return _agent(raw)
    if found is Role.TOOL:
        # OpenAI Agents: the model asked for another agent; no tool ran
        return Role.OTHER if name.startswith("handoff to ") and "tool.name" not in raw.attributes else found
    if kind == "CHAIN":
        if _SMOLAGENTS_STEP.fullmatch(name) or (name == "turn" and raw.scope.name.endswith("openai_agents")):
            return Role.STEP
        if name.endswith(".kickoff") or name == "LangGraph":  # CrewAI's crews and flows; a compiled graph
            return Role.WORKFLOW
        if name.endswith(".run_stream") and raw.scope.name.endswith("autogen_agentchat"):  # a team of agents
            return Role.WORKFLOW
        metadata = _metadata(raw)
        if metadata and metadata.get("lc_agent_name") == name:  # without "agent" in it, or in JavaScript
            return Role.AGENT
        if name.endswith(("Agent.run", "AgentWorkflow.run")) and _is_llama_index(raw):  # by their classes
            return Role.AGENT if name.endswith("Agent.run") else Role.WORKFLOW
    return found


def _is_llama_index(raw: RawSpan) -> bool:
    return "llama_index" in raw.scope.name


def _agent(raw: RawSpan) -> Role:
    attributes = raw.attributes
    if (
        raw.scope.name.endswith("openai_agents")
        and "agent.name" not in attributes
        and ("graph.node.id" not in attributes)
    ):
        return Role.WORKFLOW  # the trace's root, named by RunConfig.workflow_name
    # LangChain's instrumentation says AGENT wherever a run's name has "agent" in it, a graph's node too
    metadata = _metadata(raw)
    if metadata and metadata.get("langgraph_node") == raw.name != metadata.get("lc_agent_name"):
        return Role.OTHER
    return Role.AGENT


def _metadata(raw: RawSpan) -> Mapping[str, Any] | None:
    """LangChain's run metadata; other emitters' ``metadata`` is their users' own."""
    value = raw.attributes.get("metadata")
    if type(value) is str and ('"lc_agent_name"' in value or '"langgraph_node"' in value):
        return mapping(value)
    return None


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what the OpenInference attributes say."""
    get = raw.attributes.get
    draft.conversation_id = draft.conversation_id or text(get("session.id"))
    draft.tags = draft.tags or texts(get("tag.tags"))
    if any(event.name == "span.cancelled" for event in raw.events):  # LlamaIndex; the status stays as it was
        draft.failed = draft.cancelled = True
        draft.error_type = "CancelledError"
    if draft.agent_name is None:
        draft.agent_name = _agent_name(raw, draft.role)
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("tool.name")) or raw.name or None
        draft.call_id = draft.call_id or text(get("tool_call.id")) or text(get("tool.id"))
        return
    asked = text(get("llm.request.model_name"))
    served = text(get("llm.response.model_name"))
    draft.served_model = draft.served_model or served
    draft.model = draft.model or served or text(get("llm.model_name")) or asked
    draft.provider_name = draft.provider_name or provider(get("llm.provider")) or provider(get("llm.system"))
    if draft.provider_name is None and draft.role is Role.LLM:
        draft.provider_name = of_scope(raw.scope.name)  # instrumentations before they named it
    _fill_usage(raw, draft)
    # agents without LLM spans, as Claude's Agent SDK has them, carry the reason too
    draft.stop_reason = draft.stop_reason or member(get("llm.finish_reason"))  # google-genai writes the enum's member
    if draft.stop_reason is None:
        draft.stop_reason = text(get("llm.output_messages.0.message.finish_reason"))  # Strands
    if draft.role is not Role.LLM:
        return
    if draft.request_id is None:  # on no attribute of its own
        body = get("output.value")
        if type(body) is str and body[:1] == "{" and any(key in body for key in _ANSWER_IDS):
            answers.fill(draft, answers.answer(body))
    if draft.model is None or draft.model_endpoint is None:
        parameters = get("llm.invocation_parameters")
        if type(parameters) is str and ('"model"' in parameters or '"base_url"' in parameters):
            asked_for = mapping(parameters)
            draft.model = draft.model or text(asked_for.get("model"))  # all that a failed request has
            draft.model_endpoint = draft.model_endpoint or text(asked_for.get("base_url"))
    for event in raw.events:
        if event.name == "First Token Stream Event":
            if draft.first_token_ns is None and raw.start_ns is not None and type(event.time_ns) is int:
                draft.after_start(raw, event.time_ns - raw.start_ns)
            break


def _agent_name(raw: RawSpan, role: Role | None) -> str | None:
    get = raw.attributes.get
    metadata = _metadata(raw)
    named = text(get("agent.name")) or (text(metadata.get("lc_agent_name")) if metadata else None)
    if named or role is not Role.AGENT:
        return named
    named = text(get("graph.node.id")) or text(get("graph.node.name"))
    if named:
        return named
    name = raw.name
    for suffix in (".run", ".arun", ".kickoff", ".execute", ".on_messages_stream"):  # smolagents, Agno, CrewAI, AutoGen
        if name.endswith(suffix):
            return name[: -len(suffix)] or None
    for prefix in ("invoke_agent ", "agent_run "):  # Google ADK
        if name.startswith(prefix):
            return name[len(prefix) :].strip("[]") or None
    return name or None


def _fill_usage(raw: RawSpan, draft: Draft) -> None:
    get = raw.attributes.get
    tokens = draft.tokens
    if tokens.prompt is None:
        tokens.prompt = tokens.count(get("llm.token_count.prompt"))
        # Agno counts as Claude's API does: without what was read from the cache or written to it
        if raw.name.startswith("Claude.") and raw.scope.name.endswith(".agno"):
            tokens.cache_apart = True
    if tokens.completion is None:
        tokens.completion = tokens.count(get("llm.token_count.completion"))
    if tokens.prompt is None and tokens.completion is None:
        return
    if tokens.total is None:
        tokens.total = tokens.count(get("llm.token_count.total"))
    if tokens.cached is None:
        tokens.cached = tokens.first(
            get("llm.token_count.prompt_details.cache_read"),
            get("llm.token_count.prompt_details.cache_input"),
            get("metadata.usage.cached_prompt_tokens"),  # BeeAI, here and below
        )
    if tokens.cache_write is None:
        tokens.cache_write = tokens.first(
            get("llm.token_count.prompt_details.cache_write"), get("metadata.usage.cached_creation_tokens")
        )
    if tokens.reasoning is None:
        tokens.reasoning = tokens.count(get("llm.token_count.completion_details.reasoning"))
    tokens.detail("prompt", "audio_tokens", get("llm.token_count.prompt_details.audio"))
    tokens.detail("completion", "audio_tokens", get("llm.token_count.completion_details.audio"))
