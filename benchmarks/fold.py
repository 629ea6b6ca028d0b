"""Steps folded naively: what somebody would write in an hour. One pass over the spans of a batch, by trace.

The rows of ``raw sqlite3, spans + steps`` (where it runs before anything is timed) and of ``raw sqlite3, folding``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

STEP_COLUMNS = [
    "trace_id",
    "id",
    "span_id",
    "run_id",
    "agent_id",
    "agent_name",
    "provider_name",
    "model",
    "model_handle",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_input_tokens",
    "reasoning_tokens",
    "stop_reason",
    "request_id",
    "error_type",
    "error_data",
    "status",
    "service_name",
    "convention",
    "created_at",
    "updated_at",
]
METRICS_COLUMNS = [
    "trace_id",
    "id",
    "run_id",
    "agent_id",
    "step_start_ns",
    "llm_request_start_ns",
    "llm_request_ns",
    "tool_execution_ns",
    "step_ns",
    "ttft_ns",
    "llm_request_count",
    "tool_call_count",
]


class Rows(NamedTuple):
    """Rows for the two tables, in the order of their columns."""

    steps: list[tuple[Any, ...]]
    metrics: list[tuple[Any, ...]]


def fold(spans: Sequence[ReadableSpan]) -> Rows:
    """The steps of the traces in these spans: one for each LLM span, with the tools that began after it."""
    traces: dict[int, list[tuple[ReadableSpan, dict[str, Any]]]] = {}
    for span in spans:
        traces.setdefault(span.context.trace_id, []).append((span, span.attributes.copy()))  # pyright: ignore
    rows = Rows([], [])
    now = datetime.now(UTC).isoformat(" ")
    for number, members in traces.items():
        trace_id = f"{number:032x}"
        members.sort(key=lambda member: member[0].start_time or 0)
        agent_id = agent_name = None
        open_step: tuple[ReadableSpan, dict[str, Any], list[ReadableSpan]] | None = None
        steps: list[tuple[ReadableSpan, dict[str, Any], list[ReadableSpan]]] = []
        for span, attributes in members:
            operation = attributes.get("gen_ai.operation.name")
            if operation == "invoke_agent":
                agent_id, agent_name = attributes.get("gen_ai.agent.id"), attributes.get("gen_ai.agent.name")
            elif operation == "chat":
                open_step = (span, attributes, [])
                steps.append(open_step)
            elif operation == "execute_tool" and open_step is not None:
                open_step[2].append(span)
        for span, attributes, tools in steps:
            get = attributes.get
            span_id = f"{span.context.span_id:016x}"  # pyright: ignore
            step_id, run_id = f"step-{trace_id[:20]}{span_id}", f"run-{trace_id}"
            start, end = span.start_time or 0, span.end_time or 0
            prompt, completion = get("gen_ai.usage.input_tokens") or 0, get("gen_ai.usage.output_tokens") or 0
            reasons = get("gen_ai.response.finish_reasons")
            failed = span.status.status_code.value == 2
            rows.steps.append(
                (
                    trace_id,
                    step_id,
                    span_id,
                    run_id,
                    agent_id,
                    agent_name,
                    get("gen_ai.provider.name"),
                    get("gen_ai.response.model"),
                    get("gen_ai.request.model"),
                    prompt,
                    completion,
                    prompt + completion,
                    get("gen_ai.usage.cache_read.input_tokens"),
                    get("gen_ai.usage.reasoning.output_tokens"),
                    reasons[0] if reasons else None,
                    get("gen_ai.response.id"),
                    get("error.type"),
                    span.status.description,
                    "failed" if failed else "success",
                    span.resource.attributes.get("service.name"),
                    "genai",
                    datetime.fromtimestamp(start / 1e9, UTC).isoformat(" "),
                    now,
                )
            )
            rows.metrics.append(
                (
                    trace_id,
                    step_id,
                    run_id,
                    agent_id,
                    start,
                    start,
                    end - start,
                    sum((tool.end_time or 0) - (tool.start_time or 0) for tool in tools),
                    max([end, *(tool.end_time or 0 for tool in tools)]) - start,
                    None,
                    1,
                    len(tools),
                )
            )
    return rows
