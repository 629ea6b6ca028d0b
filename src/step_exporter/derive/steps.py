"""One step's rows from what belongs to it. Pure: no state, no tree, only facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from step_exporter.facts import Annotation, SpanFacts, TokenUsage

from . import ids
from .intervals import union_ns
from .rows import StepMetricsRow, StepRow

T = TypeVar("T")


class Outcome(NamedTuple):
    """How the run that a step is in ended, as far as its own span says."""

    opener: SpanFacts | None = None

    @property
    def failed(self) -> bool:
        """Whether the run ended with an error."""
        return self.opener is not None and self.opener.ended and self.opener.failed

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled."""
        return self.opener is not None and self.opener.ended and self.opener.cancelled


class StepParts(NamedTuple):
    """What belongs to one step."""

    trace_id: str
    id: str
    anchor: SpanFacts
    carriers: tuple[SpanFacts, ...]
    """The spans that say they are this step, or the agent span where there is no LLM span; else empty."""
    requests: tuple[tuple[SpanFacts, ...], ...]
    """The LLM requests in order; of each the spans that saw it, the one closest to the wire first."""
    calls: tuple[tuple[SpanFacts, ...], ...]
    """The tool calls in order; of each its spans, the outermost first."""
    run_id: str | None
    parent_step_id: str | None
    agent: SpanFacts | None
    """The innermost agent or workflow span above."""
    agent_name: str | None
    last: bool
    """Whether no later request follows in the run."""
    outcome: Outcome
    annotations: tuple[Annotation, ...] = ()
    flags: tuple[str, ...] = ()


class Built(NamedTuple):
    """A step's rows, and what its run needs to know of it."""

    step: StepRow
    metrics: StepMetricsRow
    end_ns: int | None
    first_token_ns: int | None
    conversation_id: str | None
    organization: tuple[str, str] | None
    """(id, name)"""
    provider: tuple[str, str] | None
    open: bool


def canonical_json(value: Any) -> str:
    """JSON text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def is_open(spans: Iterable[SpanFacts]) -> bool:
    """Whether any of the spans has not ended."""
    return any(not facts.ended for facts in spans)


def interval(facts: SpanFacts) -> tuple[int, int] | None:
    """The time of a span; None while it is open, and where its end is before its start."""
    start, end = facts.start_ns, facts.end_ns
    return (start, end) if facts.ended and start is not None and end is not None and end >= start else None


def intervals(spans: Iterable[SpanFacts]) -> list[tuple[int, int]]:
    """The times of those spans that have one."""
    return [found for facts in spans if (found := interval(facts)) is not None]


def known(spans: Iterable[SpanFacts], get: Callable[[SpanFacts], T | None]) -> T | None:
    """The first value that is known."""
    for facts in spans:
        value = get(facts)
        if value is not None:
            return value
    return None


def request_usage(spans: Sequence[SpanFacts]) -> TokenUsage:
    """The usage of one request, once: each count from the span closest to the wire that has it."""
    usages = [facts.usage for facts in spans if facts.usage is not None]
    if not usages:
        return TokenUsage()
    merged = usages[0]
    for usage in usages[1:]:
        merged = TokenUsage(
            prompt=usage.prompt if merged.prompt is None else merged.prompt,
            completion=usage.completion if merged.completion is None else merged.completion,
            cached=usage.cached if merged.cached is None else merged.cached,
            cache_write=usage.cache_write if merged.cache_write is None else merged.cache_write,
            reasoning=usage.reasoning if merged.reasoning is None else merged.reasoning,
            prompt_details=merged.prompt_details or usage.prompt_details,
            completion_details=merged.completion_details or usage.completion_details,
        )
    return merged


def request_failed(spans: Iterable[SpanFacts]) -> bool:
    """Whether a request ended with an error, whoever of those that saw it says so."""
    return any(facts.failed for facts in spans)


def request_cancelled(spans: Iterable[SpanFacts]) -> bool:
    """Whether a request was cancelled."""
    return any(facts.cancelled for facts in spans)


def says_nothing(spans: Iterable[SpanFacts]) -> bool:
    """Whether a request that looks like a success has no answer: what is left of one that was cut off."""
    return not any(
        facts.stop_reason
        or facts.output_messages
        or facts.asked_call_ids
        or (facts.usage is not None and facts.usage.completion)
        for facts in spans
    )


def _sum(values: Iterable[int | None]) -> int | None:
    found = [value for value in values if value is not None]
    return sum(found) if found else None


def _details(parts: Iterable[tuple[tuple[str, int], ...]], extra: dict[str, int | None]) -> str | None:
    total: dict[str, int] = {name: count for name, count in extra.items() if count is not None}
    for part in parts:
        for name, count in part:
            total[name] = total.get(name, 0) + count
    return canonical_json(total) if total else None


def status_of(parts: StepParts) -> tuple[str, SpanFacts | None]:
    """The status of a step, and the span whose error it is (DESIGN: a step fails if …)."""
    anchor, carriers, requests, calls = parts.anchor, parts.carriers, parts.requests, parts.calls
    spans = carriers or tuple(facts for group in (*requests, *calls) for facts in group)
    open_spans = [facts for facts in spans if not facts.ended]
    if open_spans:
        if all(facts.abandoned_ns is not None for facts in open_spans):
            return "abandoned", None
        begun = requests or calls if carriers else calls
        return ("running" if begun else "pending"), None
    outcome, last = parts.outcome, parts.last
    broken = next((facts for call in calls for facts in call if facts.failed), None)
    if carriers:
        if anchor.cancelled:
            return "cancelled", anchor
        if anchor.failed and (broken is None or last):  # not by a tool's error alone, while the run went on
            return "failed", anchor
    if requests:
        final = requests[-1]
        culprit = next((facts for facts in final if facts.failed and facts.error_type), None)
        culprit = culprit or next((facts for facts in final if facts.failed or facts.cancelled), None)
        if request_cancelled(final):
            return "cancelled", next((facts for facts in final if facts.cancelled), culprit)
        if request_failed(final):
            return "failed", culprit
        if last and (outcome.failed or outcome.cancelled) and not calls and says_nothing(final):
            return ("cancelled" if outcome.cancelled else "failed"), outcome.opener
    if broken is not None and last and (outcome.opener is None or outcome.failed or outcome.cancelled):
        return ("cancelled" if broken.cancelled or outcome.cancelled else "failed"), broken
    if last and calls and outcome.cancelled and any(facts.cancelled for call in calls for facts in call):
        return "cancelled", outcome.opener
    return "success", None


def build_step(parts: StepParts) -> Built:
    """Make a step's rows."""
    anchor, carriers, requests, calls = parts.anchor, parts.carriers, parts.requests, parts.calls
    status, culprit = status_of(parts)
    in_flight = status in ("pending", "running", "abandoned")
    seen = [facts for request in requests for facts in request]
    executed = [facts for call in calls for facts in call]
    flags = set(parts.flags)
    for facts in (*carriers, *seen, *executed):
        if facts.flags:
            flags.update(facts.flags)

    # The last request that ended without error speaks for the step; what it leaves out, the step span may say.
    spoken = next((request for request in reversed(requests) if not request_failed(request)), None)
    if spoken is None and requests:
        spoken = requests[-1]
    voices = (*(spoken or ()), *carriers)
    who = (*carriers, *seen, *((parts.agent,) if parts.agent is not None else ()))

    usages = [request_usage(request) for request in requests]
    if (
        all(usage.prompt is None and usage.completion is None for usage in usages)
        and anchor.usage is not None
        and carriers
    ):
        usages = [anchor.usage]
    prompt = _sum(usage.prompt for usage in usages)
    completion = _sum(usage.completion for usage in usages)
    if not in_flight:
        if prompt is None:
            flags.add("no_prompt_usage")
        if completion is None:
            flags.add("no_completion_usage")
        if not requests and anchor.llm_ns is None and carriers and anchor.role == "agent":
            flags.add("no_llm_span")
    if any(facts.failed for facts in executed):
        flags.add("tool_error")
    cached = _sum(usage.cached for usage in usages)
    written = _sum(usage.cache_write for usage in usages)
    reasoning = _sum(usage.reasoning for usage in usages)

    model = known(voices, lambda facts: facts.served_model) or known(voices, lambda facts: facts.model)
    provider_name = known(voices, lambda facts: facts.provider_name)
    provider_id = known((*carriers, *seen), lambda facts: facts.provider_id)
    if provider_id is None and provider_name is not None:
        provider_id = ids.provider_id(provider_name)
    organization_id = known(who, lambda facts: facts.organization_id)
    organization_name = known(who, lambda facts: facts.organization_name)
    if organization_id is None and organization_name is not None:
        organization_id = ids.organization_id(organization_name)
    handle = known(voices, lambda facts: facts.model_handle)
    if handle is None and provider_name is not None and model is not None:
        handle = f"{provider_name}/{model}"
    agent_id = known(who, lambda facts: facts.agent_id)
    project_id = known(who, lambda facts: facts.project_id)

    # Times
    members = (*carriers, *seen, *executed)
    times = intervals(members)
    starts = [facts.start_ns for facts in members if facts.start_ns is not None]
    step_start = min(starts) if starts else None
    step_end = max(end for _, end in times) if times and not is_open(members) else None
    step_ns = step_end - step_start if step_end is not None and step_start is not None else None
    llm_starts = [facts.start_ns for facts in seen if facts.start_ns is not None]
    llm_start = min(llm_starts) if llm_starts else known(carriers, lambda facts: facts.llm_start_ns)
    llm_times = intervals(seen)
    llm_ns = union_ns(llm_times) if llm_times else known(carriers, lambda facts: facts.llm_ns)
    tool_times = intervals(executed)
    tool_ns = union_ns(tool_times) if tool_times else known(carriers, lambda facts: facts.tool_ns)
    first_token, ttft = _first_token(parts)
    if ttft is not None and ttft < 0:
        ttft, first_token = None, None
        flags.add("clock_skew")

    feedback, tags, tid = _annotated(parts, (*carriers, *seen, *executed))
    run_id = parts.run_id
    created = step_start
    if created is None:
        created = known(members, lambda facts: facts.end_ns) or 0
    step = StepRow(
        trace_id=parts.trace_id,
        id=parts.id,
        span_id=anchor.span_id,
        parent_step_id=parts.parent_step_id,
        origin=known(who, lambda facts: facts.origin),
        organization_id=organization_id,
        provider_id=provider_id,
        run_id=run_id,
        agent_id=agent_id,
        agent_name=known((*seen, *carriers), lambda facts: facts.agent_name) or parts.agent_name,
        project_id=project_id,
        provider_name=provider_name,
        provider_category=known((*carriers, *seen), lambda facts: facts.provider_category),
        model=model,
        model_handle=handle,
        model_endpoint=known(voices, lambda facts: facts.model_endpoint),
        context_window_limit=known(voices, lambda facts: facts.context_window_limit),
        completion_tokens=completion or 0,
        prompt_tokens=prompt or 0,
        total_tokens=(prompt or 0) + (completion or 0),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        completion_tokens_details=_details(
            (usage.completion_details for usage in usages), {"reasoning_tokens": reasoning}
        ),
        prompt_tokens_details=_details(
            (usage.prompt_details for usage in usages), {"cached_tokens": cached, "cache_write_tokens": written}
        ),
        stop_reason=known(voices, lambda facts: facts.stop_reason),
        tags=tags,
        tid=tid,
        request_id=known(voices, lambda facts: facts.request_id),
        feedback=feedback,
        error_type=_error_type(status, culprit),
        error_data=_error_data(culprit),
        status=status,
        flags=canonical_json(sorted(flags)) if flags else None,
        service_name=anchor.service_name,
        convention=anchor.convention,
        created_ns=created,
    )
    metrics = StepMetricsRow(
        trace_id=parts.trace_id,
        id=parts.id,
        run_id=run_id,
        agent_id=agent_id,
        organization_id=organization_id,
        provider_id=provider_id,
        project_id=project_id,
        step_start_ns=step_start,
        llm_request_start_ns=llm_start,
        llm_request_ns=llm_ns,
        tool_execution_ns=tool_ns,
        step_ns=step_ns,
        ttft_ns=ttft,
        llm_request_count=len(requests) or (1 if llm_start is not None else 0),
        tool_call_count=_count_calls(calls) or known(carriers, lambda facts: facts.tool_call_count) or 0,
        base_template_id=known(who, lambda facts: facts.base_template_id),
        template_id=known(who, lambda facts: facts.template_id),
    )
    return Built(
        step,
        metrics,
        step_end,
        first_token,
        known(members, lambda facts: facts.conversation_id),
        (organization_id, organization_name or organization_id) if organization_id is not None else None,
        (provider_id, provider_name or provider_id) if provider_id is not None else None,
        is_open(members),
    )


def _first_token(parts: StepParts) -> tuple[int | None, int | None]:
    """When the first token of the step's first streaming answer came, and how long after its request."""
    for spans in parts.requests or (parts.carriers,):
        token = known(spans, lambda facts: facts.first_token_ns)
        if token is not None:
            starts = [facts.llm_start_ns or facts.start_ns for facts in spans]
            begun = min((start for start in starts if start is not None), default=None)
            return token, token - begun if begun is not None else None
    return None, None


def _count_calls(calls: Iterable[Sequence[SpanFacts]]) -> int:
    """Tool calls, those with one call id once (an MCP client's and its server's span)."""
    count, counted = 0, set[str]()
    for call in calls:
        call_id = known(call, lambda facts: facts.call_id)
        if call_id is None or call_id not in counted:
            count += 1
        if call_id is not None:
            counted.add(call_id)
    return count


def _annotated(parts: StepParts, spans: Sequence[SpanFacts]) -> tuple[str | None, str | None, str | None]:
    """feedback, tags (canonical JSON) and tid: what spans say, overruled by what people set last."""
    feedback = known(spans, lambda facts: facts.feedback)
    tid = known(spans, lambda facts: facts.transaction_id)
    said = {tag: None for facts in spans for tag in facts.tags}
    tags: Any = sorted(said) or None
    for note in sorted(parts.annotations, key=lambda note: (note.set_at_ns or 0, note.span_id)):
        if note.key == "feedback":
            feedback = note.value
        elif note.key == "tags":
            tags = note.value
        elif note.key == "tid":
            tid = note.value
    return feedback, canonical_json(list(tags)) if tags else None, tid


def _error_type(status: str, culprit: SpanFacts | None) -> str | None:
    if culprit is None:
        return None
    return culprit.error_type or ("cancelled" if status == "cancelled" else "error")


def _error_data(culprit: SpanFacts | None) -> str | None:
    if culprit is None:
        return None
    data: dict[str, Any] = {
        "context": {"span_id": culprit.span_id, "span_name": culprit.name, "role": culprit.role.value}
    }
    if culprit.error_message is not None:
        data["message"] = culprit.error_message
    if culprit.error_traceback is not None:
        data["traceback"] = culprit.error_traceback
    return canonical_json(data)
