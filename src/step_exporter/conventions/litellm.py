"""litellm's OpenTelemetry callback (SDK and proxy).

Its own span is ``litellm_request``; below it ``raw_gen_ai_request`` holds the provider's request and
response, each value as ``str()`` of a Python object. Inside another span litellm makes no
``litellm_request``, but writes the attributes of the (first) call onto that span: the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import items, literal, mapping, text
from step_exporter.conventions.genai import OPERATIONS
from step_exporter.conventions.providers import provider
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"litellm.call_id"})
SCOPE = "litellm"
_CALLS: dict[str, Role] = dict.fromkeys(
    ("acompletion", "anthropic_messages", "aresponses", "atext_completion", "agenerate_content", "responses"), Role.LLM
)
"""litellm's own names of calls, beside those of the conventions."""
_GIVEN = ("choices", "output", "content", "candidates", "messages", "prompt", "contents")
"""What only requests and answers of a language model have."""


def role(raw: RawSpan) -> Role | None:
    """LLM for litellm's two request spans; the proxy's other spans are none of ours. A caller's span that
    says by its name what it is keeps that, whatever operation litellm wrote onto it."""
    get = raw.attributes.get
    if raw.name == "raw_gen_ai_request":
        return Role.OTHER if _is_embedding(raw) else Role.LLM
    if raw.scope.name == SCOPE:
        # ``litellm_request``; ``chat {model}`` where OTEL_SEMCONV_STABILITY_OPT_IN or LITELLM_OTEL_V2 asks for it
        operation = text(get("gen_ai.operation.name"))
        if operation is None:
            return Role.LLM if raw.name == "litellm_request" else Role.OTHER
        return OPERATIONS.get(operation) or _CALLS.get(operation, Role.OTHER)
    word, _, rest = raw.name.partition(" ")
    found = OPERATIONS.get(word)
    return found if rest else None


def _is_embedding(raw: RawSpan) -> bool:
    """Whether a raw request is none of a language model: it was given texts, or tokens, and nothing that answers."""
    given: Any = None
    for key, value in raw.attributes.items():
        if key.startswith("llm."):
            field = key[4:].partition(".")[2]
            if field in _GIVEN:
                return False
            if field == "input":
                given = value
    values = items(literal(given))
    return bool(values) and not any(isinstance(value, dict) for value in values)


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what litellm alone says."""
    get = raw.attributes.get
    draft.organization_id = draft.organization_id or text(get("metadata.user_api_key_org_id"))
    draft.organization_name = draft.organization_name or text(get("metadata.user_api_key_org_alias"))
    draft.project_id = draft.project_id or text(get("metadata.user_api_key_project_id"))
    if draft.role is not Role.LLM:
        return
    if raw.name == "raw_gen_ai_request":
        _fill_raw(raw, draft)
        return
    hidden = get("hidden_params")
    if draft.model_endpoint is None and type(hidden) is str and '"api_base"' in hidden:
        draft.model_endpoint = text(mapping(hidden).get("api_base"))
    usage = _literal_mapping(get("metadata.usage_object"))
    if usage:
        answers.usage(draft.tokens, usage)


def _fill_raw(raw: RawSpan, draft: Draft) -> None:
    body: dict[str, Any] = {}
    for key, value in raw.attributes.items():
        if key.startswith("llm."):  # llm.<provider>.<field of the request or the response>
            name, _, field = key[4:].partition(".")
            if field:
                body[field] = value
                draft.provider_name = draft.provider_name or provider(name)
    choices = items(literal(body.get("choices")))
    usage = _literal_mapping(body.get("usage")) or _literal_mapping(body.get("usageMetadata"))
    response: dict[str, Any] = {"id": body.get("id"), "model": body.get("model"), "usage": usage}
    if choices:
        response["choices"] = choices
    elif "stop_reason" in body:
        response["stop_reason"] = body["stop_reason"]
        response["content"] = literal(body.get("content"))
    answers.fill(draft, answers.answer(response))


def _literal_mapping(value: Any) -> Mapping[str, Any]:
    found = literal(value) if type(value) is str and value[:1] == "{" else None
    return cast(Mapping[str, Any], found) if isinstance(found, dict) else {}
