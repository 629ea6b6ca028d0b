"""One run's row, from the span that opens it and the sums of its steps. Pure."""

from __future__ import annotations

from step_exporter.facts import Role, SpanFacts, Value

from .rows import RunRow, StepRow
from .steps import counted, intervals

UNHAPPY = ("failed", "cancelled")
"""How a step or a run may have ended that did not end well."""


class RunParts(Value, frozen=True):
    """What makes up one run."""

    trace_id: str
    id: str
    opener: SpanFacts | None
    """The agent or workflow span that opens it; None for the run of the trace, and where only steps name the run."""
    parent_run_id: str | None
    first: StepRow | None
    last: StepRow | None
    start_ns: int | None
    """When its first step began."""
    end_ns: int | None
    """When the last of its steps ended; None where that of none is known."""
    first_token_ns: int | None
    """The first token of the first step that has one."""
    conversation_id: str | None
    """Of the first step that has one."""
    step_count: int
    prompt_tokens: int
    completion_tokens: int
    open_steps: int
    agents_failed: bool = False
    """Whether its opener is a workflow and each agent directly below it failed or was cancelled. Some instrumentations
    never say of a workflow that it raised."""


def run_status(parts: RunParts) -> str:
    """created, running, completed, failed or cancelled."""
    opener = parts.opener
    if opener is not None:
        if not opener.ended:
            if opener.abandoned_ns is not None:
                return "failed"
            return "running" if parts.step_count else "created"
        if opener.cancelled or opener.failed:
            return "cancelled" if opener.cancelled else "failed"
        if parts.agents_failed and parts.last is not None and parts.last.status in UNHAPPY:
            return parts.last.status
        return "completed"
    if parts.open_steps:
        return "running"
    status = parts.last.status if parts.last is not None else "success"
    return {"cancelled": "cancelled", "failed": "failed", "abandoned": "failed"}.get(status, "completed")


def build_run(parts: RunParts) -> RunRow:
    """Make a run's row."""
    opener, first, last = parts.opener, parts.first, parts.last
    status = run_status(parts)
    start, duration = parts.start_ns, None
    if opener is not None:
        start = opener.start_ns if opener.start_ns is not None else start
        duration = next((end - begun for begun, end in intervals((opener,))), None)
    elif start is not None and parts.end_ns is not None and not parts.open_steps:
        duration = parts.end_ns - start
    ttft = parts.first_token_ns - start if parts.first_token_ns is not None and start is not None else None
    error_type = None
    if opener is not None and status in UNHAPPY:
        error_type = opener.error_type or ("abandoned" if not opener.ended else None)
    if error_type is None and status in UNHAPPY and last is not None:
        error_type = last.error_type
    agent_name = first.agent_name if first is not None else None
    if opener is not None:
        agent_name = opener.agent_name or (opener.name if opener.role is Role.AGENT else agent_name or opener.name)
    return RunRow(
        trace_id=parts.trace_id,
        id=parts.id,
        span_id=opener.span_id if opener is not None else None,
        parent_run_id=parts.parent_run_id,
        agent_id=(opener.agent_id if opener is not None else None) or (first.agent_id if first is not None else None),
        agent_name=agent_name,
        conversation_id=(opener.conversation_id if opener is not None else None) or parts.conversation_id,
        organization_id=(opener.organization_id if opener is not None else None)
        or (first.organization_id if first is not None else None),
        project_id=(opener.project_id if opener is not None else None)
        or (first.project_id if first is not None else None),
        status=status,
        stop_reason=last.stop_reason if last is not None else None,
        start_ns=start,
        total_duration_ns=duration,
        ttft_ns=ttft if ttft is None or ttft >= 0 else None,
        step_count=parts.step_count,
        prompt_tokens=counted(parts.prompt_tokens),
        completion_tokens=counted(parts.completion_tokens),
        total_tokens=counted(parts.prompt_tokens + parts.completion_tokens),
        error_type=error_type,
        service_name=opener.service_name if opener is not None else (first.service_name if first is not None else None),
        created_ns=start or 0,
    )
