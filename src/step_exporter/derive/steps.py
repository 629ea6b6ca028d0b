"""One step's rows from what belongs to it. Pure: no state, no tree, only facts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import astuple

from step_exporter.facts import MAX_NS, Annotation, Role, SpanFacts, TokenUsage, Value

from . import ids
from .intervals import union_ns
from .rows import StepMetricsRow, StepRow

NO_USAGE = TokenUsage()


class Outcome(Value, frozen=True):
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


class StepParts(Value, frozen=True):
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


class Built(Value, frozen=True):
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


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
"""Made once: ``json.dumps`` makes an encoder for each call, which costs 2 µs."""


def canonical_json(value: Any) -> str:
    """JSON text that is equal for equal values."""
    return _encode(value)


def is_open(spans: Iterable[SpanFacts]) -> bool:
    """Whether any of the spans has not ended."""
    return any(not facts.ended for facts in spans)


def intervals(spans: Iterable[SpanFacts]) -> list[tuple[int, int]]:
    """The times of spans; none of one that is open, or ends before it starts."""
    return [
        (start, end)
        for facts in spans
        if facts.ended and (start := facts.start_ns) is not None and (end := facts.end_ns) is not None and end >= start
    ]


def covered_ns(spans: Sequence[SpanFacts]) -> int | None:
    """How much time spans cover together, None where that of none is known."""
    if not spans:
        return None
    times = intervals(spans)
    return union_ns(times) if times else None


_CLOCKS_NS = 10_000_000
"""So far apart may clocks be that NTP keeps, and so long may a server go on after its client has its answer."""


def out_of_time(spans: Sequence[SpanFacts], outermost: SpanFacts) -> list[SpanFacts]:
    """Of the spans of one request or call, those of other services that do not lie within the time of those of the
    outermost one's service, give or take 10 ms: another machine's clock may go otherwise, so that these times say
    nothing here."""
    service = outermost.service_name
    if service is None:
        return []
    others = [facts for facts in spans if facts.service_name not in (service, None)]
    if not others:
        return []
    own = [facts for facts in spans if facts.service_name in (service, None)]
    times = intervals(own)
    times += [(start, MAX_NS) for facts in own if not facts.ended and (start := facts.start_ns) is not None]
    if not times:
        return []
    first, last = min(start for start, _ in times) - _CLOCKS_NS, max(end for _, end in times) + _CLOCKS_NS
    return [
        facts
        for facts in others
        if (facts.start_ns is not None and not first <= facts.start_ns <= last)
        or (facts.ended and facts.end_ns is not None and facts.end_ns > last)
    ]


def in_caches(usage: TokenUsage) -> int:
    """Prompt tokens read from a cache or written to one."""
    return (usage.cached or 0) + (usage.cache_write or 0)


def in_reasoning(usage: TokenUsage) -> int:
    """Completion tokens of reasoning."""
    return usage.reasoning or 0


def _inclusive(count: int | None, other: int | None, left_out: tuple[int, int]) -> int | None:
    """A count, or another one's that includes what it leaves out."""
    if count is None or (other is not None and other > count and other - count in left_out):
        return other
    return count


def request_usage(spans: Sequence[SpanFacts]) -> TokenUsage:
    """The usage of one request, once: each count from the span closest to the wire that has it; another one's where it
    is more by just what is in caches, or reasoning."""
    usages = [facts.usage for facts in spans if facts.usage is not None]
    if not usages:
        return NO_USAGE
    merged = usages[0]
    for usage in usages[1:]:
        merged = TokenUsage(
            prompt=_inclusive(merged.prompt, usage.prompt, (in_caches(merged), in_caches(usage))),
            completion=_inclusive(merged.completion, usage.completion, (in_reasoning(merged), in_reasoning(usage))),
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


def status_of(parts: StepParts) -> tuple[str, SpanFacts | None]:
    """The status of a step, and the span whose error it is."""
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
        is_silent = anchor.role is Role.AGENT and not requests and not calls
        if is_silent and last and (outcome.failed or outcome.cancelled):  # in a run that came to nothing
            return ("cancelled" if outcome.cancelled else "failed"), outcome.opener
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
    executed = [facts for call in calls for facts in call] if calls else []
    seen: Sequence[SpanFacts] = requests[0] if len(requests) == 1 else [facts for spans in requests for facts in spans]
    flags = set(parts.flags)
    in_flight = troubled = is_streamed = is_annotated = False
    start = end = conversation_id = None
    members = (*carriers, *seen, *executed)
    off: list[SpanFacts] = []  # whose times say nothing
    if len(seen) + len(executed) > len(requests) + len(calls):
        off += [facts for spans in requests for facts in out_of_time(spans, spans[-1])]
        off += [facts for spans in calls for facts in out_of_time(spans, spans[0])]
        if off:
            flags.add("clock_skew")
    for facts in members:  # one pass; most steps are fine, and nobody said a word of them
        if facts.flags:
            flags.update(facts.flags)
        begun, ended = facts.start_ns, facts.end_ns
        if off and facts in off:
            begun = None
        if begun is not None and (start is None or begun < start):
            start = begun
        if not facts.ended:
            in_flight = True
        elif begun is not None and ended is not None and ended >= begun and (end is None or ended > end):
            end = ended
        if facts.failed or facts.cancelled:
            troubled = True
        if conversation_id is None:
            conversation_id = facts.conversation_id
        if facts.first_token_ns is not None:
            is_streamed = True
        if facts.tags or facts.feedback is not None or facts.transaction_id is not None:
            is_annotated = True
    outcome = parts.outcome
    if in_flight or troubled or (parts.last and (outcome.failed or outcome.cancelled)):
        status, culprit = status_of(parts)
    else:
        status, culprit = "success", None

    # The last request that ended without error speaks for the step; what it leaves out, the step span may say.
    spoken = requests[-1] if requests else ()
    if troubled:
        spoken = next((request for request in reversed(requests) if not request_failed(request)), spoken)
    if len(seen) == 1 and not carriers:
        voice = said = seen[0]
    else:
        voice, said = merge((*spoken, *carriers)), merge((*carriers, *seen))
    agent = parts.agent or said

    usage = _step_usage(parts)
    prompt_tokens, completion_tokens = usage.prompt, usage.completion
    if status not in ("pending", "running", "abandoned"):
        if prompt_tokens is None:
            flags.add("no_prompt_usage")
        if completion_tokens is None:
            flags.add("no_completion_usage")
    if carriers and not requests and anchor.role is Role.AGENT:
        flags.add("no_llm_span")
    if troubled and any(facts.failed for facts in executed):
        flags.add("tool_error")

    model = voice.served_model or voice.model
    provider_name = voice.provider_name
    provider_id = said.provider_id
    if provider_id is None and provider_name is not None:
        provider_id = ids.provider_id(provider_name)
    organization_id = said.organization_id or agent.organization_id
    organization_name = said.organization_name or agent.organization_name
    if organization_id is None and organization_name is not None:
        organization_id = ids.organization_id(organization_name)
    handle = voice.model_handle
    if handle is None and provider_name is not None and model is not None:
        handle = f"{provider_name}/{model}"
    agent_id = said.agent_id or agent.agent_id
    project_id = said.project_id or agent.project_id
    agent_name = parts.agent_name
    for facts in (*seen, *carriers):
        if facts.agent_name:
            agent_name = facts.agent_name
            break

    if off:
        seen = [facts for facts in seen if facts not in off]
        executed = [facts for facts in executed if facts not in off]
    llm_ns, tool_ns = covered_ns(seen), covered_ns(executed)
    if in_flight:
        end = None
    llm_start = min([facts.start_ns for facts in seen if facts.start_ns is not None], default=said.llm_start_ns)
    first_token, ttft = _first_token(parts, off) if is_streamed else (None, None)
    if ttft is not None and ttft < 0:
        ttft, first_token = None, None
        flags.add("clock_skew")

    feedback = tags = tid = None
    if is_annotated or parts.annotations:
        feedback, tags, tid = _annotated(parts, members)
    step = StepRow(  # by position: 37 keywords cost 2 µs
        parts.trace_id,
        parts.id,
        anchor.span_id,
        parts.parent_step_id,
        said.origin or agent.origin,
        organization_id,
        provider_id,
        parts.run_id,
        agent_id,
        agent_name,
        project_id,
        provider_name,
        said.provider_category,
        model,
        handle,
        voice.model_endpoint,
        voice.context_window_limit,
        completion_tokens or 0,
        prompt_tokens or 0,
        counted((prompt_tokens or 0) + (completion_tokens or 0)),
        usage.cached,
        usage.cache_write,
        usage.reasoning,
        _completion_details(usage),
        _prompt_details(usage),
        voice.stop_reason,
        tags,
        tid,
        voice.request_id,
        feedback,
        _error_type(status, culprit) if culprit is not None else None,
        _error_data(culprit) if culprit is not None else None,
        status,
        canonical_json(sorted(flags)) if flags else None,
        anchor.service_name,
        anchor.convention,
        start if start is not None else said.end_ns or 0,
    )
    metrics = StepMetricsRow(
        parts.trace_id,
        parts.id,
        parts.run_id,
        agent_id,
        organization_id,
        provider_id,
        project_id,
        start,
        llm_start,
        llm_ns if llm_ns is not None else said.llm_ns,
        tool_ns if tool_ns is not None else said.tool_ns,
        end - start if end is not None and start is not None else None,
        ttft,
        len(requests) or (1 if llm_start is not None else 0),
        _count_calls(calls) or said.tool_call_count or 0,
        said.base_template_id or agent.base_template_id,
        said.template_id or agent.template_id,
    )
    return Built(
        step,
        metrics,
        end,
        first_token,
        conversation_id,
        (organization_id, organization_name or organization_id) if organization_id is not None else None,
        (provider_id, provider_name or provider_id) if provider_id is not None else None,
        in_flight,
    )


def merge(spans: Sequence[SpanFacts]) -> SpanFacts:
    """Of each fact, what the first span knows that knows it. For the facts that are None where unknown."""
    if len(spans) == 1:
        return spans[0]
    columns = zip(*map(astuple, spans), strict=True)
    known: list[Any] = [next((value for value in column if value is not None), None) for column in columns]
    return SpanFacts(*known)


def _step_usage(parts: StepParts) -> TokenUsage:
    """The sums of the requests' usage; what the step span repeats counts only where no request says anything."""
    if not parts.carriers and len(parts.requests) == 1 and len(parts.requests[0]) == 1:
        return parts.requests[0][0].usage or NO_USAGE
    usages = [request_usage(request) for request in parts.requests]
    if parts.carriers and all(usage.prompt is None and usage.completion is None for usage in usages):
        return parts.anchor.usage or NO_USAGE
    if len(usages) == 1:
        return usages[0]
    return TokenUsage(
        prompt=_sum(usage.prompt for usage in usages),
        completion=_sum(usage.completion for usage in usages),
        cached=_sum(usage.cached for usage in usages),
        cache_write=_sum(usage.cache_write for usage in usages),
        reasoning=_sum(usage.reasoning for usage in usages),
        prompt_details=_sum_parts(usage.prompt_details for usage in usages),
        completion_details=_sum_parts(usage.completion_details for usage in usages),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    found = [value for value in values if value is not None]
    return counted(sum(found)) if found else None


def counted(tokens: int) -> int:
    """A sum of counts, each of which fits its column, as far as the column of the sum goes."""
    return tokens if tokens <= MAX_NS else MAX_NS


def _sum_parts(details: Iterable[tuple[tuple[str, int], ...]]) -> tuple[tuple[str, int], ...]:
    total: dict[str, int] = {}
    for part in details:
        for name, count in part:
            total[name] = total.get(name, 0) + count
    return tuple(sorted(total.items()))


def _completion_details(usage: TokenUsage) -> str | None:
    if usage.reasoning is None and not usage.completion_details:
        return None
    found = {} if usage.reasoning is None else {"reasoning_tokens": usage.reasoning}
    return canonical_json({**found, **dict(usage.completion_details)})


def _prompt_details(usage: TokenUsage) -> str | None:
    cached, cache_write = usage.cached, usage.cache_write
    if cached is None and cache_write is None and not usage.prompt_details:
        return None
    found = {} if cached is None else {"cached_tokens": cached}
    if cache_write is not None:
        found["cache_write_tokens"] = cache_write
    return canonical_json({**found, **dict(usage.prompt_details)})


def _first_token(parts: StepParts, off: Sequence[SpanFacts]) -> tuple[int | None, int | None]:
    """When the first token of the step's first streaming answer came, and how long after its request; the times of
    spans that are ``off`` say nothing."""
    for spans in parts.requests or (parts.carriers,):
        if off:
            spans = [facts for facts in spans if facts not in off]
        for facts in spans:
            if facts.first_token_ns is not None:
                starts = [span.llm_start_ns or span.start_ns for span in spans]
                begun = min((start for start in starts if start is not None), default=None)
                return facts.first_token_ns, facts.first_token_ns - begun if begun is not None else None
    return None, None


def _count_calls(calls: Sequence[Sequence[SpanFacts]]) -> int:
    """Tool calls, those with one call id once (an MCP client's and its server's span)."""
    if len(calls) < 2:
        return len(calls)
    count, counted = 0, set[str]()
    for call in calls:
        call_id = next((facts.call_id for facts in call if facts.call_id is not None), None)
        if call_id is None or call_id not in counted:
            count += 1
        if call_id is not None:
            counted.add(call_id)
    return count


def _annotated(parts: StepParts, spans: Sequence[SpanFacts]) -> tuple[str | None, str | None, str | None]:
    """feedback, tags (canonical JSON) and tid: what spans say, overruled by what people set last."""
    feedback: str | None = None
    tid: str | None = None
    tags: Any = ()
    for facts in spans:
        if facts.feedback is not None and feedback is None:
            feedback = facts.feedback
        if facts.transaction_id is not None and tid is None:
            tid = facts.transaction_id
        if facts.tags:
            tags = {*tags, *facts.tags}
    if tags:
        tags = sorted(tags)
    if parts.annotations:
        for note in sorted(parts.annotations, key=lambda note: (note.set_at_ns or 0, note.span_id)):
            if note.key == "feedback":
                feedback = note.value
            elif note.key == "tags":
                tags = note.value
            elif note.key == "tid":
                tid = note.value
    return feedback, canonical_json(list(tags)) if tags else None, tid


def _error_type(status: str, culprit: SpanFacts) -> str:
    return culprit.error_type or ("cancelled" if status == "cancelled" else "error")


def _error_data(culprit: SpanFacts) -> str:
    data: dict[str, Any] = {
        "context": {"span_id": culprit.span_id, "span_name": culprit.name, "role": culprit.role.value}
    }
    if culprit.error_message is not None:
        data["message"] = culprit.error_message
    if culprit.error_traceback is not None:
        data["traceback"] = culprit.error_traceback
    return canonical_json(data)
