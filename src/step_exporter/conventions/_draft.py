"""What the readers of one span fill in, one after the other, each only what is still unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from step_exporter.conventions._values import count, number, text
from step_exporter.facts import MAX_NS, Message, RawSpan, Role, SpanFacts, TokenUsage


class Tokens:
    """The token counts of a span while they are collected. What is not set stays with the class, as in ``Draft``."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    total: int | None = None
    prompt_details: dict[str, int] | None = None
    completion_details: dict[str, int] | None = None
    cache_apart: bool = False
    """The emitter is known to leave cached and cache-write tokens out of the prompt count."""
    reasoning_apart: bool = False
    """The emitter is known to leave reasoning out of the completion count."""
    bad: bool = False

    def count(self, value: Any) -> int | None:
        """A count; what is there but is none marks the span ``bad_number``."""
        if type(value) is int and 0 <= value <= MAX_NS:
            return value
        if value is None:
            return None
        found = count(value)
        if found is None and not (isinstance(value, str) and not value.strip()):
            self.bad = True
        return found

    def take(self, usage: Mapping[str, Any], **names: str) -> None:
        """Counts of a mapping, each by its name there."""
        for part, name in names.items():
            setattr(self, part, self.count(usage.get(name)))

    def first(self, *values: Any) -> int | None:
        """The first of several values that is a count."""
        for value in values:
            if value is not None and (found := self.count(value)) is not None:
                return found
        return None

    def detail(self, side: str, name: str, value: Any) -> None:
        """A further part of the prompt or completion count; a part of nothing is not worth a row."""
        found = self.count(value)
        if not found:
            return
        details = self.prompt_details if side == "prompt" else self.completion_details
        if details is None:
            details = {}
            if side == "prompt":
                self.prompt_details = details
            else:
                self.completion_details = details
        details.setdefault(name, found)


class Draft:
    """``SpanFacts`` in the making. Every instance attribute but ``tokens`` and ``flags`` is a field of it.

    Not a slotted class on purpose: only what a span carries is set on the instance, the rest stays with
    the class, and freezing copies that onto a list of what is unknown (0.8 µs; 54 slots would cost 1.7).
    """

    role: Role | None = None
    convention: str | None = None
    failed: bool = False
    cancelled: bool = False
    error_type: str | None = None
    error_message: str | None = None
    error_traceback: str | None = None
    step_id: str | None = None
    run_id: str | None = None
    agent_id: str | None = None
    agent_name: str | None = None
    conversation_id: str | None = None
    organization_id: str | None = None
    organization_name: str | None = None
    project_id: str | None = None
    origin: str | None = None
    template_id: str | None = None
    base_template_id: str | None = None
    provider_id: str | None = None
    provider_name: str | None = None
    provider_category: str | None = None
    model: str | None = None
    served_model: str | None = None
    model_handle: str | None = None
    model_endpoint: str | None = None
    context_window_limit: int | None = None
    request_id: str | None = None
    stop_reason: str | None = None
    first_token_ns: int | None = None
    llm_start_ns: int | None = None
    llm_ns: int | None = None
    tool_ns: int | None = None
    tool_call_count: int | None = None
    asked_call_ids: tuple[str, ...] = ()
    tool_name: str | None = None
    call_id: str | None = None
    input_messages: tuple[Message, ...] = ()
    output_messages: tuple[Message, ...] = ()
    tags: tuple[str, ...] = ()
    feedback: str | None = None
    transaction_id: str | None = None

    def __init__(self) -> None:
        self.tokens = Tokens()
        self.flags: tuple[str, ...] = ()

    def flag(self, name: str) -> None:
        """Say that something is doubtful."""
        self.flags += (name,)

    def first_token_after(self, raw: RawSpan, delay: Any, unit_ns: float) -> None:
        """``after_start`` for the value of an attribute that counts in units of so many nanoseconds."""
        found = number(delay)
        self.after_start(raw, None if found is None else found * unit_ns)

    def after_start(self, raw: RawSpan, delay_ns: float | None) -> None:
        """Set when the first token came, from its delay after the start of the span."""
        if self.first_token_ns is None and delay_ns is not None and raw.start_ns is not None:
            moment = raw.start_ns + int(min(delay_ns, MAX_NS))
            if 0 <= moment <= MAX_NS:
                self.first_token_ns = moment


_FROM_SPAN = 13
"""The first fields of SpanFacts: what every span has, whoever emitted it."""
_UNKNOWN_AT = {name: place for place, name in enumerate(SpanFacts.__struct_fields__[_FROM_SPAN:])}
"""Where each of the others stands among them; ``flags`` last."""
UNKNOWN: list[Any] = list(SpanFacts.__struct_defaults__[-len(_UNKNOWN_AT) :])
_NOTHING: tuple[Any, ...] = tuple(UNKNOWN[:-1])
_USAGE = _UNKNOWN_AT["usage"]


def plain(raw: RawSpan) -> SpanFacts:
    """The facts of a span that speaks none of the vocabularies."""
    return SpanFacts(*head(raw, Role.OTHER, None), *_NOTHING, flags=_with_clock(raw, raw.flags))


def freeze(raw: RawSpan, draft: Draft) -> SpanFacts:
    """The facts of a draft, which is used up by it."""
    fields = draft.__dict__
    tokens: Tokens = fields.pop("tokens")
    flags: tuple[str, ...] = fields.pop("flags") + raw.flags
    role: Role = fields.pop("role", None) or Role.OTHER
    known = head(raw, role, fields.pop("convention", None))
    values = UNKNOWN.copy()
    for name, value in fields.items():
        values[_UNKNOWN_AT[name]] = value
    if role is _LLM or role is _AGENT or role is _STEP:
        # Usage of a chain, a workflow or a tool is a sum of what is below it, and nothing would use it.
        usage, more = _usage(tokens)
        values[_USAGE] = usage
        flags += more
    if tokens.bad:
        flags += ("bad_number",)
    values[-1] = _with_clock(raw, flags)
    return SpanFacts(*known, *values)


def head(raw: RawSpan, role: Role | None, convention: str | None) -> tuple[Any, ...]:
    """The first fields of ``SpanFacts``."""
    service = text(raw.resource.attributes.get("service.name"))
    return (
        raw.trace_id,
        raw.span_id,
        raw.parent_span_id,
        raw.name,
        raw.kind,
        raw.start_ns,
        raw.end_ns,
        raw.ended,
        role,
        convention,
        raw.scope.name,
        service,
        raw.abandoned_ns,
    )


_LLM, _AGENT, _STEP = Role.LLM, Role.AGENT, Role.STEP
"""Told by identity: the hash of an enum's member is Python code, 0.3 µs."""


def _with_clock(raw: RawSpan, flags: tuple[str, ...]) -> tuple[str, ...]:
    """The flags sorted, each once, with ``clock_skew`` where a span ends before it begins."""
    start, end = raw.start_ns, raw.end_ns
    if start is not None and end is not None and end < start:
        flags += ("clock_skew",)
    return tuple(sorted(set(flags))) if len(flags) > 1 else flags


def _usage(tokens: Tokens) -> tuple[TokenUsage | None, tuple[str, ...]]:
    """The counts, with the prompt including cached and the completion including reasoning tokens.

    Where a total is reported and only fits with the parts added, the emitter left them out: that is
    evidence, not a guess (Bedrock's ``totalTokens``, Gemini's ``totalTokenCount``).
    """
    prompt, completion = tokens.prompt, tokens.completion
    cached, reasoning = tokens.cached, tokens.reasoning
    if not (prompt or completion or cached or reasoning or tokens.cache_write):
        return None, ()  # no request costs nothing: 0 and 0 is a stream whose usage nobody asked for
    if len(tokens.__dict__) == 2 and prompt is not None and completion is not None:
        return TokenUsage(prompt, completion), ()  # nothing else was told, as of most requests
    flags: tuple[str, ...] = ()
    apart = (cached or 0) + (tokens.cache_write or 0)
    if prompt is not None and completion is not None and tokens.total:
        missing = tokens.total - prompt - completion
        if missing:
            if apart and missing == apart:
                tokens.cache_apart = True
            elif reasoning and missing == reasoning:
                tokens.reasoning_apart = True
            elif apart and reasoning and missing == apart + reasoning:
                tokens.cache_apart = tokens.reasoning_apart = True
            else:
                flags = ("tokens_inconsistent",)
    if tokens.cache_apart and apart and prompt is not None:
        prompt = min(prompt + apart, MAX_NS)
        flags += ("normalised",)
    if tokens.reasoning_apart and reasoning and completion is not None:
        completion = min(completion + reasoning, MAX_NS)
        flags += ("normalised",)
    if (cached is not None and prompt is not None and cached > prompt) or (
        reasoning is not None and completion is not None and reasoning > completion
    ):
        flags += ("tokens_inconsistent",)
    usage = TokenUsage(
        prompt,
        completion,
        cached,
        tokens.cache_write,
        reasoning,
        tuple(sorted(tokens.prompt_details.items())) if tokens.prompt_details else (),
        tuple(sorted(tokens.completion_details.items())) if tokens.completion_details else (),
    )
    return usage, flags
