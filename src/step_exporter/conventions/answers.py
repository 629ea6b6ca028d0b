"""A model's answer as the provider's API gave it, which some emitters keep as JSON in one attribute.

Read here: OpenAI chat completions and responses, Anthropic messages, Gemini contents, LangChain results.
Only what identifies the request and its end is taken; the texts are read by ``messages``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from step_exporter.conventions._draft import Draft, Tokens
from step_exporter.conventions._values import EMPTY, items, mapping, text


class Answer(NamedTuple):
    """What a response says about itself."""

    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    call_ids: tuple[str, ...] = ()
    usage: Mapping[str, Any] = EMPTY


def answer(value: Any) -> Answer:
    """Read a response, structured or as JSON text."""
    body = mapping(value)
    if not body:
        return Answer()
    if "generations" in body:
        return _langchain(body)
    if "candidates" in body:
        return _gemini(body)
    reason, calls = None, ()
    if "choices" in body:  # OpenAI chat completions
        choice = _mapping(_first(body.get("choices")))
        reason = text(choice.get("finish_reason"))
        calls = tuple(_ids(_mapping(choice.get("message")).get("tool_calls"), "id"))
    elif "output" in body:  # OpenAI responses: call_id is the call's, id the item's
        calls = tuple(_ids(body.get("output"), "call_id"))
        reason = text(_mapping(body.get("incomplete_details")).get("reason")) or text(body.get("status"))
    elif "stop_reason" in body:  # Anthropic messages
        reason = text(body.get("stop_reason"))
        calls = tuple(_ids([b for b in items(body.get("content")) if _mapping(b).get("type") == "tool_use"], "id"))
    return Answer(text(body.get("id")), text(body.get("model")), reason, calls, _mapping(body.get("usage")))


def fill(draft: Draft, found: Answer) -> None:
    """Fill in what an answer says about the request."""
    draft.request_id = draft.request_id or found.id
    draft.served_model = draft.served_model or found.model
    draft.model = draft.model or found.model
    draft.stop_reason = draft.stop_reason or found.stop_reason
    draft.asked_call_ids = draft.asked_call_ids or found.call_ids
    if found.usage:
        usage(draft.tokens, found.usage)


def usage(tokens: Tokens, body: Mapping[str, Any]) -> None:
    """Fill in the counts of a provider's ``usage`` object (OpenAI, Anthropic, LangChain, Gemini)."""
    get = body.get
    if "promptTokenCount" in body or "prompt_token_count" in body:  # Gemini counts thoughts apart
        if tokens.prompt is None:
            tokens.prompt = tokens.first(get("promptTokenCount"), get("prompt_token_count"))
        if tokens.completion is None:
            tokens.completion = tokens.first(get("candidatesTokenCount"), get("candidates_token_count"))
            tokens.reasoning_apart = True
        if tokens.cached is None:
            tokens.cached = tokens.first(get("cachedContentTokenCount"), get("cached_content_token_count"))
        if tokens.reasoning is None:
            tokens.reasoning = tokens.first(get("thoughtsTokenCount"), get("thoughts_token_count"))
        return
    given = mapping(get("prompt_tokens_details") or get("input_tokens_details") or get("input_token_details"))
    made = mapping(get("completion_tokens_details") or get("output_tokens_details") or get("output_token_details"))
    if tokens.cached is None:
        tokens.cached = tokens.first(
            given.get("cached_tokens"), given.get("cache_read"), get("cache_read_input_tokens")
        )
    if tokens.cache_write is None:
        tokens.cache_write = tokens.first(
            given.get("cache_write_tokens"), given.get("cache_creation"), get("cache_creation_input_tokens")
        )
    if tokens.reasoning is None:
        tokens.reasoning = tokens.first(made.get("reasoning_tokens"), made.get("reasoning"))
    if tokens.prompt is None:
        tokens.prompt = tokens.first(get("prompt_tokens"), get("input_tokens"))
        # Anthropic's API: input_tokens are those that were neither read from the cache nor written to it
        # (docs.anthropic.com, prompt caching). OpenAI-like bodies that carry its names too have details.
        if "input_tokens" in body and "cache_read_input_tokens" in body and not given:
            tokens.cache_apart = True
    elif not given and "cache_read_input_tokens" in body and tokens.prompt == tokens.first(get("input_tokens")):
        tokens.cache_apart = True  # the emitter handed on what the API counts
    if tokens.completion is None:
        tokens.completion = tokens.first(get("completion_tokens"), get("output_tokens"))
    for name in ("audio_tokens", "audio"):
        tokens.detail("prompt", "audio_tokens", given.get(name))
        tokens.detail("completion", "audio_tokens", made.get(name))
    for name in ("accepted_prediction_tokens", "rejected_prediction_tokens"):
        tokens.detail("completion", name, made.get(name))


def _langchain(body: Mapping[str, Any]) -> Answer:
    generation = _mapping(_first(_first(body.get("generations"))))
    message = _mapping(_mapping(generation.get("message")).get("kwargs")) or _mapping(generation.get("message"))
    meta = _mapping(message.get("response_metadata"))
    info = _mapping(generation.get("generation_info"))
    identity = text(meta.get("id")) or text(_mapping(body.get("llm_output")).get("id"))
    if identity is None and (own := text(message.get("id"))) and not own.startswith(("lc_run-", "run-")):
        identity = own
    return Answer(
        identity,
        text(meta.get("model_name")) or text(meta.get("model")) or text(info.get("model_name")),
        text(info.get("finish_reason")) or text(meta.get("finish_reason")) or text(meta.get("stop_reason")),
        tuple(_ids(message.get("tool_calls"), "id")),
        _mapping(message.get("usage_metadata")),
    )


def _gemini(body: Mapping[str, Any]) -> Answer:
    get = body.get
    candidate = _mapping(_first(get("candidates")))
    return Answer(
        text(get("responseId")) or text(get("response_id")),
        text(get("modelVersion")) or text(get("model_version")),
        text(candidate.get("finishReason")) or text(candidate.get("finish_reason")),
        (),
        _mapping(get("usageMetadata") or get("usage_metadata")),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else EMPTY  # pyright: ignore[reportUnknownVariableType]


def _first(value: Any) -> Any:
    found = items(value)
    return found[0] if found else None


def _ids(value: Any, key: str) -> Iterator[str]:
    for item in items(value):
        if found := text(_mapping(item).get(key)):
            yield found
