"""Letta's server (its own tracing, read, not run): one span stands for a whole step.

``agent_step`` carries ``step_id`` and is never current, so its LLM and tool spans are not its children;
its events say when the request and the tools ran.
"""

from __future__ import annotations

from step_exporter.attributes import STEP_ID
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import number, text
from step_exporter.facts import MAX_NS, RawSpan, Role

NAME = "agent_step"
MARKERS = frozenset({"llm_config.model", "llm_config.model_endpoint"})


def role(raw: RawSpan) -> Role | None:
    """Only the span of that name: ``step_id`` and ``run_id`` are Dagster's, Argo's and MLflow's too. One that has an id
    by our own attributes is not Letta's."""
    return Role.STEP if raw.name == NAME and STEP_ID not in raw.attributes else None


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in what Letta's attributes and the times of its events say."""
    get = raw.attributes.get
    draft.model = draft.model or text(get("llm_config.model"))
    draft.model_endpoint = draft.model_endpoint or text(get("llm_config.model_endpoint"))
    if raw.name != NAME:
        return
    draft.step_id = draft.step_id or text(get("step_id"))
    draft.run_id = draft.run_id or text(get("run_id"))
    draft.agent_id = draft.agent_id or text(get("agent_id"))
    if raw.events:
        _fill_times(raw, draft)


def _fill_times(raw: RawSpan, draft: Draft) -> None:
    asked = answered = took = None
    tools: list[tuple[int, int]] = []
    begun: list[int] = []
    calls = 0
    for event in raw.events:
        moment = event.time_ns
        if type(moment) is not int or not 0 <= moment <= MAX_NS:
            continue
        if event.name == "request_start_to_provider_request_start_ns":
            asked = moment if asked is None else asked
        elif event.name == "llm_request_ms":
            answered, took = moment, _duration(event.attributes.get("duration_ms"))
        elif event.name == "tool_execution_started":
            begun.append(moment)
        elif event.name == "tool_execution_completed":
            calls += 1
            took_tool = _duration(event.attributes.get("duration_ms"))
            if begun:
                tools.append((begun.pop(0), moment))
            elif took_tool is not None:
                tools.append((moment - took_tool, moment))
    if answered is not None and asked is None and took is not None:
        asked = max(answered - took, 0)
    if asked is not None:
        draft.llm_start_ns = asked
        if answered is not None and answered >= asked:
            draft.llm_ns = answered - asked
    calls += len(begun)
    if calls:
        draft.tool_call_count = calls
        draft.tool_ns = _union(tools) if tools else None


def _duration(milliseconds: object) -> int | None:
    found = number(milliseconds)
    return None if found is None else int(min(found * 1e6, MAX_NS))


def _union(intervals: list[tuple[int, int]]) -> int:
    total, reach = 0, 0
    for start, end in sorted(intervals):
        total += max(end - max(start, reach), 0)
        reach = max(reach, end)
    return total
