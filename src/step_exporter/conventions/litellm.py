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
_REQUESTS = frozenset({"litellm_request", "raw_gen_ai_request"})


def role(raw: RawSpan) -> Role | None:
    """LLM for litellm's two request spans; the proxy's other spans are none of ours. A caller's span that
    says by its name what it is keeps that, whatever operation litellm wrote onto it."""
    if raw.name in _REQUESTS:
        return Role.LLM
    if raw.scope.name == SCOPE:
        return Role.OTHER
    word, _, rest = raw.name.partition(" ")
    found = OPERATIONS.get(word)
    return found if rest else None


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
