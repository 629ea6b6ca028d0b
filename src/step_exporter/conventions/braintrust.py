"""Braintrust's SDKs for Go, Ruby, Java and .NET, which speak OpenTelemetry. Every attribute's value is JSON text."""

from __future__ import annotations

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import mapping, parsed, text
from step_exporter.conventions.providers import provider
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"braintrust.span_attributes"})

_TYPES = {"llm": Role.LLM, "tool": Role.TOOL}
_NO_REQUESTS = ("embed", "rerank", "moderation")


def role(raw: RawSpan) -> Role | None:
    """By the type; embeddings are of type ``llm`` too, and told by their endpoint or the span's name. ``task`` is
    anything that was wrapped, and of evaluations nothing is ours."""
    get = raw.attributes.get
    kind = text(mapping(get("braintrust.span_attributes")).get("type"))
    if kind is None or (kind == "task" and "gen_ai.operation.name" in raw.attributes):
        return None
    found = _TYPES.get(kind, Role.OTHER)
    if found is Role.LLM:
        called = (text(mapping(get("braintrust.metadata")).get("endpoint")) or raw.name).lower()
        if any(word in called for word in _NO_REQUESTS):
            return Role.OTHER
    return found


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what the request was and what it cost; a tool's name."""
    get = raw.attributes.get
    metadata = mapping(get("braintrust.metadata"))
    if draft.role is Role.TOOL:
        name = text(get("gen_ai.tool.name")) or text(get("tool.name")) or raw.name.removeprefix("tool: ")
        draft.tool_name = draft.tool_name or name.removeprefix("tool [").removesuffix("]") or None
        return
    if draft.role is not Role.LLM:
        return
    draft.model = draft.model or text(metadata.get("model"))
    draft.provider_name = draft.provider_name or provider(metadata.get("provider"))
    draft.request_id = draft.request_id or text(metadata.get("id"))
    draft.stop_reason = draft.stop_reason or text(metadata.get("stop_reason"))
    said = get("braintrust.output_json")
    if draft.stop_reason is None and type(said) is str and '"finish_reason"' in said:
        draft.stop_reason = answers.answer({"choices": parsed(said)}).stop_reason  # OpenAI's choices, as they came
    metrics, tokens = mapping(get("braintrust.metrics")), draft.tokens
    if metrics and tokens.prompt is None and tokens.completion is None:
        tokens.take(
            metrics,
            prompt="prompt_tokens",
            completion="completion_tokens",
            total="tokens",
            cached="prompt_cached_tokens",
            cache_write="prompt_cache_creation_tokens",
            reasoning="completion_reasoning_tokens",
        )
    draft.first_token_after(raw, metrics.get("time_to_first_token") or None, 1e9)
