"""The attributes that step_exporter itself defines (``step_exporter.attributes``)."""

from __future__ import annotations

from step_exporter import attributes as names
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import count, text, texts
from step_exporter.facts import RawSpan

_PHOENIX_PROJECT = "openinference.project.name"
OF_RESOURCE = frozenset(
    {names.STEP_ORGANIZATION_ID, names.STEP_ORGANIZATION_NAME, names.STEP_PROJECT_ID, _PHOENIX_PROJECT}
)
MARKERS = frozenset(value for name, value in vars(names).items() if name.startswith("STEP_"))


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what people said themselves; asked first, so it beats every vocabulary."""
    get = raw.attributes.get
    draft.step_id = text(get(names.STEP_ID))
    draft.run_id = text(get(names.STEP_RUN_ID))
    draft.origin = text(get(names.STEP_ORIGIN))
    draft.organization_id = text(get(names.STEP_ORGANIZATION_ID))
    draft.organization_name = text(get(names.STEP_ORGANIZATION_NAME))
    draft.project_id = text(get(names.STEP_PROJECT_ID))
    draft.agent_id = text(get(names.STEP_AGENT_ID))
    draft.agent_name = text(get(names.STEP_AGENT_NAME))
    draft.provider_id = text(get(names.STEP_PROVIDER_ID))
    draft.provider_category = text(get(names.STEP_PROVIDER_CATEGORY))
    draft.model_handle = text(get(names.STEP_MODEL_HANDLE))
    draft.model_endpoint = text(get(names.STEP_MODEL_ENDPOINT))
    draft.stop_reason = text(get(names.STEP_STOP_REASON))
    draft.transaction_id = text(get(names.STEP_TRANSACTION_ID))
    draft.template_id = text(get(names.STEP_TEMPLATE_ID))
    draft.base_template_id = text(get(names.STEP_BASE_TEMPLATE_ID))
    limit = get(names.STEP_CONTEXT_WINDOW_LIMIT)
    draft.context_window_limit = count(limit)
    if limit is not None and draft.context_window_limit is None:
        draft.flag("bad_number")
    feedback = text(get(names.STEP_FEEDBACK))
    if feedback in ("positive", "negative"):
        draft.feedback = feedback
    draft.tags = texts(get(names.STEP_TAGS))


def fill_from_resource(raw: RawSpan, draft: Draft) -> None:
    """Fill in who the process works for, where spans do not say; Phoenix's project name is one too."""
    if OF_RESOURCE.isdisjoint(raw.resource.attributes):
        return
    get = raw.resource.attributes.get
    draft.organization_id = draft.organization_id or text(get(names.STEP_ORGANIZATION_ID))
    draft.organization_name = draft.organization_name or text(get(names.STEP_ORGANIZATION_NAME))
    draft.project_id = draft.project_id or text(get(names.STEP_PROJECT_ID)) or text(get(_PHOENIX_PROJECT))
