"""Names of the span attributes that step_exporter defines, for people who emit steps themselves.

    with tracer.start_as_current_span("agent_step", attributes={STEP_ID: "step-1", STEP_RUN_ID: "run-1"}):
        ...

Everything that OpenTelemetry's GenAI conventions already name (model, provider, token counts, tool
names, agent names) is read from there; these names add only what they lack.
"""

from __future__ import annotations

STEP_ID = "step.id"
"""The id of the step. Spans of one trace that carry the same id are one step."""
STEP_RUN_ID = "step.run_id"
"""The id of the run that the step belongs to."""
STEP_ORIGIN = "step.origin"
"""The surface that the step was started from, such as ``api`` or ``cli``."""
STEP_ORGANIZATION_ID = "step.organization_id"
STEP_ORGANIZATION_NAME = "step.organization_name"
STEP_PROJECT_ID = "step.project_id"
STEP_AGENT_ID = "step.agent_id"
STEP_AGENT_NAME = "step.agent_name"
STEP_PROVIDER_ID = "step.provider_id"
STEP_PROVIDER_CATEGORY = "step.provider_category"
"""Such as ``base`` or ``byok`` (bring your own key)."""
STEP_MODEL_HANDLE = "step.model_handle"
"""The name that the app knows the model by, such as ``openai/gpt-4o``."""
STEP_MODEL_ENDPOINT = "step.model_endpoint"
STEP_CONTEXT_WINDOW_LIMIT = "step.context_window_limit"
"""Tokens that fit into the model's context (int)."""
STEP_STOP_REASON = "step.stop_reason"
STEP_TAGS = "step.tags"
"""A sequence of strings."""
STEP_TRANSACTION_ID = "step.tid"
STEP_FEEDBACK = "step.feedback"
"""``positive`` or ``negative``."""
STEP_TEMPLATE_ID = "step.template_id"
STEP_BASE_TEMPLATE_ID = "step.base_template_id"
