"""Langfuse's SDK since version 3 (Python and JavaScript): its decorator, its OpenAI client and its LangChain callback.

Metadata are JSON text, strings in their quotes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import mapping, moment_ns, text, texts, unquoted
from step_exporter.conventions.providers import provider
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"langfuse.observation.type"})

_OBSERVATION = "langfuse.observation."
_METADATA = _OBSERVATION + "metadata."
_TYPES = {"agent": Role.AGENT, "generation": Role.LLM, "tool": Role.TOOL}


def role(raw: RawSpan) -> Role | None:
    """By the observation's type; the other ones (span, chain, retriever, embedding, guardrail, …) are none of ours."""
    get = raw.attributes.get
    kind = text(get("langfuse.observation.type"))
    if kind is None:
        return None
    found = _TYPES.get(kind.lower(), Role.OTHER)
    if kind.lower() == "chain":
        if _agent_of_langchain(raw) == raw.name:
            return Role.AGENT  # without "agent" in its name
        if raw.name == "LangGraph":  # a compiled graph without a name
            return Role.WORKFLOW
    # the LangChain callback says agent wherever a run's name has "agent" in it, a graph's node too
    if found is Role.AGENT and unquoted(get(_METADATA + "langgraph_node")) == raw.name != _agent_of_langchain(raw):
        return Role.OTHER
    return found


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what Langfuse's attributes say."""
    get = raw.attributes.get
    draft.conversation_id = draft.conversation_id or text(get("session.id")) or unquoted(get(_METADATA + "thread_id"))
    draft.tags = draft.tags or texts(get("langfuse.trace.tags"))
    draft.agent_name = draft.agent_name or _agent_of_langchain(raw)
    if get("langfuse.observation.level") == "ERROR":
        draft.failed = True
        draft.error_message = draft.error_message or text(get("langfuse.observation.status_message"))
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or raw.name or None
        draft.call_id = draft.call_id or unquoted(get(_METADATA + "tool_call_id"))
        return
    if draft.role is Role.AGENT:
        draft.agent_name = draft.agent_name or raw.name or None
    draft.model = draft.model or text(get("langfuse.observation.model.name"))
    draft.provider_name = draft.provider_name or provider(unquoted(get(_METADATA + "ls_provider")))
    draft.stop_reason = draft.stop_reason or unquoted(get(_METADATA + "finish_reason"))
    if draft.first_token_ns is None:
        draft.first_token_ns = moment_ns(unquoted(get("langfuse.observation.completion_start_time")))
    usage = mapping(get("langfuse.observation.usage_details"))
    if "input" in usage or "output" in usage:
        _fill_usage(draft, usage)
    elif usage:
        answers.usage(draft.tokens, usage)  # as the provider gave it


def _agent_of_langchain(raw: RawSpan) -> str | None:
    return unquoted(raw.attributes.get("langfuse.observation.metadata.lc_agent_name"))


def _fill_usage(draft: Draft, usage: Mapping[str, Any]) -> None:
    """Langfuse's own form: ``input``, ``output``, and parts that have one of the two in their names.

    The total tells whether the parts are left out of the two, as the LangChain callback leaves them; where none is
    given, Langfuse takes the sum of all for it.
    """
    tokens = draft.tokens
    if tokens.prompt is not None or tokens.completion is not None:
        return
    counts = {key: found for key, value in usage.items() if (found := tokens.count(value)) is not None}
    prompt, completion, total = counts.get("input"), counts.get("output"), counts.get("total")
    given = sum(n for key, n in counts.items() if "input" in key and key != "input")
    made = sum(n for key, n in counts.items() if "output" in key and key != "output")
    get = counts.get
    tokens.cached = tokens.first(get("input_cache_read"), get("input_cached_tokens"), get("cache_read_input_tokens"))
    tokens.cache_write = tokens.first(get("input_cache_creation"), get("cache_creation_input_tokens"))
    tokens.reasoning = tokens.first(get("output_reasoning"), get("output_reasoning_tokens"))
    tokens.detail("prompt", "audio_tokens", get("input_audio"))
    tokens.detail("completion", "audio_tokens", get("output_audio"))
    if (given or made) and total in (None, (prompt or 0) + (completion or 0) + given + made):
        prompt, completion = (prompt or 0) + given, (completion or 0) + made
        draft.flag("normalised")
    tokens.prompt, tokens.completion, tokens.total = prompt, completion, total
