"""The rows that the derivation makes: one class a table, fields in the order of the columns.

Rows are compared by value to find what changed, so every field is a plain immutable value: JSON
columns are canonical JSON text already. ``created_ns`` becomes the column ``created_at``.
"""

from __future__ import annotations

from typing import NamedTuple

from step_exporter.facts import Value


class StepRow(Value, frozen=True):
    """A row of ``steps`` (``updated_at`` is set by the store)."""

    trace_id: str
    id: str
    span_id: str
    parent_step_id: str | None
    origin: str | None
    organization_id: str | None
    provider_id: str | None
    run_id: str | None
    agent_id: str | None
    agent_name: str | None
    project_id: str | None
    provider_name: str | None
    provider_category: str | None
    model: str | None
    model_handle: str | None
    model_endpoint: str | None
    context_window_limit: int | None
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    completion_tokens_details: str | None
    prompt_tokens_details: str | None
    stop_reason: str | None
    tags: str | None
    tid: str | None
    request_id: str | None
    feedback: str | None
    error_type: str | None
    error_data: str | None
    status: str
    flags: str | None
    service_name: str | None
    convention: str | None
    created_ns: int


class StepMetricsRow(Value, frozen=True):
    """A row of ``step_metrics``."""

    trace_id: str
    id: str
    run_id: str | None
    agent_id: str | None
    organization_id: str | None
    provider_id: str | None
    project_id: str | None
    step_start_ns: int | None
    llm_request_start_ns: int | None
    llm_request_ns: int | None
    tool_execution_ns: int | None
    step_ns: int | None
    ttft_ns: int | None
    llm_request_count: int
    tool_call_count: int
    base_template_id: str | None
    template_id: str | None


class RunRow(Value, frozen=True):
    """A row of ``runs`` (``updated_at`` is set by the store)."""

    trace_id: str
    id: str
    span_id: str | None
    parent_run_id: str | None
    agent_id: str | None
    agent_name: str | None
    conversation_id: str | None
    organization_id: str | None
    project_id: str | None
    status: str
    stop_reason: str | None
    start_ns: int | None
    total_duration_ns: int | None
    ttft_ns: int | None
    step_count: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    error_type: str | None
    service_name: str | None
    created_ns: int


class MessageRow(Value, frozen=True):
    """A row of ``messages``."""

    trace_id: str
    id: str
    parent_id: str | None
    role: str
    content_hash: str | None
    name: str | None
    tool_calls: str | None
    tool_call_id: str | None
    step_id: str | None
    run_id: str | None
    position: int


class Changes(NamedTuple):
    """What a derivation wants written. Keys of deletes are ids; the trace is the derivation's own."""

    steps: tuple[StepRow, ...] = ()
    step_metrics: tuple[StepMetricsRow, ...] = ()
    runs: tuple[RunRow, ...] = ()
    messages: tuple[MessageRow, ...] = ()
    deleted_steps: tuple[str, ...] = ()
    deleted_runs: tuple[str, ...] = ()
    deleted_messages: tuple[str, ...] = ()
    organizations: tuple[tuple[str, str], ...] = ()
    """(id, name) of each organization that the written steps name."""
    providers: tuple[tuple[str, str], ...] = ()
