"""MLflow tracing. Every attribute's value is JSON text, strings in their quotes."""

from __future__ import annotations

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import mapping, text, unquoted
from step_exporter.conventions.providers import provider
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"mlflow.spanType"})

_TYPES = {
    "AGENT": Role.AGENT,
    "CHAT_MODEL": Role.LLM,
    "LLM": Role.LLM,
    "TOOL": Role.TOOL,
    "WORKFLOW": Role.WORKFLOW,
}


def role(raw: RawSpan) -> Role | None:
    """By the span type; the other ones (CHAIN, RETRIEVER, PARSER, …) are none of ours."""
    kind = unquoted(raw.attributes.get("mlflow.spanType"))
    if kind == "CHAIN" and raw.name == _agent_of_langchain(raw):
        return Role.AGENT
    return _TYPES.get(kind.upper(), Role.OTHER) if kind else None


def _agent_of_langchain(raw: RawSpan) -> str | None:
    """The agent that LangChain's run metadata name, which MLflow's autologging keeps."""
    value = raw.attributes.get("metadata")
    return text(mapping(value).get("lc_agent_name")) if type(value) is str and '"lc_agent_name"' in value else None


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what the MLflow attributes say. What the response alone says is read out of the span's outputs."""
    get = raw.attributes.get
    draft.conversation_id = draft.conversation_id or unquoted(get("mlflow.trace.session"))
    draft.agent_name = draft.agent_name or _agent_of_langchain(raw)
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or raw.name or None
        return
    if draft.role is Role.AGENT:
        draft.agent_name = draft.agent_name or raw.name or None
    draft.provider_name = draft.provider_name or provider(unquoted(get("mlflow.llm.provider")))
    draft.model = draft.model or unquoted(get("mlflow.llm.model")) or unquoted(get("model"))
    usage = mapping(get("mlflow.chat.tokenUsage"))
    if usage:
        draft.tokens.take(
            usage,
            prompt="input_tokens",
            completion="output_tokens",
            total="total_tokens",
            cached="cache_read_input_tokens",
            cache_write="cache_creation_input_tokens",
        )
    if draft.role is Role.LLM:
        answers.fill(draft, answers.answer(get("mlflow.spanOutputs")))
        if draft.first_token_ns is None and raw.start_ns is not None:
            for event in raw.events:
                if event.name == "mlflow.chunk.item.0" and type(event.time_ns) is int:
                    draft.after_start(raw, event.time_ns - raw.start_ns)
                    break
