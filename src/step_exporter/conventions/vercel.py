"""The Vercel AI SDK (``experimental_telemetry``), versions 4 to 6."""

from __future__ import annotations

from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import mapping, text, texts
from step_exporter.conventions.providers import provider
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"ai.operationId"})

_AGENTS = frozenset({"ai.generateText", "ai.streamText", "ai.generateObject", "ai.streamObject"})
_METADATA = "ai.telemetry.metadata."


def role(raw: RawSpan) -> Role | None:
    """``ai.generateText`` runs the loop, ``ai.generateText.doGenerate`` is one request of it."""
    operation = text(raw.attributes.get("ai.operationId"))
    if operation is None:
        return None
    if operation in _AGENTS:
        return Role.AGENT
    if operation == "ai.toolCall":
        return Role.TOOL
    if operation.endswith((".doGenerate", ".doStream")):
        return Role.LLM
    return Role.OTHER


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what the SDK's attributes say."""
    get = raw.attributes.get
    draft.agent_name = draft.agent_name or text(get("ai.telemetry.functionId"))
    if draft.conversation_id is None:
        for key in ("sessionId", "session_id", "conversationId", "threadId", "chatId"):
            if found := text(get(_METADATA + key)):
                draft.conversation_id = found
                break
    draft.tags = draft.tags or texts(get(_METADATA + "tags"))
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("ai.toolCall.name"))
        draft.call_id = draft.call_id or text(get("ai.toolCall.id"))
        return
    served = text(get("ai.response.model"))
    draft.served_model = draft.served_model or served
    draft.model = draft.model or served or text(get("ai.model.id"))
    draft.provider_name = draft.provider_name or provider(get("ai.model.provider"))
    _fill_usage(raw, draft)
    if draft.role is Role.LLM or draft.role is Role.AGENT:
        draft.stop_reason = draft.stop_reason or text(get("ai.response.finishReason")) or text(get("ai.finishReason"))
    if draft.role is Role.LLM:
        draft.request_id = draft.request_id or text(get("ai.response.id"))
        draft.first_token_after(raw, get("ai.response.msToFirstChunk"), 1e6)


def _fill_usage(raw: RawSpan, draft: Draft) -> None:
    attributes = raw.attributes
    get = attributes.get
    tokens = draft.tokens
    tokens.prompt = tokens.first(get("ai.usage.inputTokens"), get("ai.usage.promptTokens"))
    tokens.completion = tokens.first(get("ai.usage.outputTokens"), get("ai.usage.completionTokens"))
    tokens.total = tokens.first(get("ai.usage.totalTokens"), get("ai.usage.tokens"))
    tokens.cached = tokens.first(get("ai.usage.cachedInputTokens"), get("ai.usage.inputTokenDetails.cacheReadTokens"))
    tokens.cache_write = tokens.count(get("ai.usage.inputTokenDetails.cacheWriteTokens"))
    tokens.reasoning = tokens.first(get("ai.usage.reasoningTokens"), get("ai.usage.outputTokenDetails.reasoningTokens"))
    name = text(get("ai.model.provider")) or ""
    if name.startswith("anthropic") and "ai.usage.inputTokenDetails.noCacheTokens" not in attributes:
        # up to version 5 @ai-sdk/anthropic hands Anthropic's input_tokens on, which leave the cache out
        # (2.0.20, dist/index.js line 1428); version 6 adds them up and gives inputTokenDetails
        tokens.cache_apart = True
        if tokens.cache_write is None:
            metadata = mapping(mapping(get("ai.response.providerMetadata")).get("anthropic"))
            tokens.cache_write = tokens.count(metadata.get("cacheCreationInputTokens"))
