"""Log records that GenAI instrumentations send message content in, rather than putting it onto the span.

A record is kept as a span of no length below the one that it names, as Logfire keeps its logs, and carries itself as
that span's event. So it is a fact like any other: the same record again is the same span, it may come before or after
the one that it is about, and everything that stores, exports, deletes or rebuilds spans knows it. It has no part in the
agent's loop; ``with_logs`` gives what it says to its span, where that says nothing itself.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-events/
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256

from msgspec.structs import astuple, replace

from step_exporter.conventions import messages
from step_exporter.conventions._draft import Draft
from step_exporter.conventions.content import Contents, take_apart
from step_exporter.facts import Message, RawSpan, Role, SpanFacts

CONVENTION = "logs"
MARKER = "step_exporter.log"
"""The attribute of a span that is a log record."""
MARKERS = frozenset({MARKER})

DETAILS = "gen_ai.client.inference.operation.details"
CHOICE = "gen_ai.choice"
NAMES = frozenset(
    {
        "gen_ai.system.message",
        "gen_ai.user.message",
        "gen_ai.assistant.message",
        "gen_ai.tool.message",
        CHOICE,
        DETAILS,
    }
)
"""The events that carry messages."""


def as_span(record: RawSpan) -> RawSpan | None:
    """The span that a log record is kept as; None if it carries no content.

    Args:
        record: With the ids of the span that it is about, and the record as its one event.
    """
    if not take_apart(record).events:
        return None
    (event,) = record.events
    said = [record.trace_id, record.span_id, *astuple(event)]
    digest = sha256(json.dumps(said, sort_keys=True, default=repr).encode()).hexdigest()
    return replace(record, span_id=digest[:16], parent_span_id=record.span_id, attributes={MARKER: True})


def role(raw: RawSpan) -> Role | None:
    """None of the loop's."""
    return Role.OTHER


def fill(raw: RawSpan, draft: Draft) -> None:
    """What it says beside its messages, its span says."""


def read_messages(raw: RawSpan, contents: Contents) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What a record says of the prompt and of the answer."""
    prompt, answer = messages.read_messages(raw, contents)
    if raw.name == DETAILS:
        return prompt, answer
    return ((), prompt + answer) if raw.name == CHOICE else (prompt + answer, ())


def with_logs(span: SpanFacts, logs: Iterable[SpanFacts]) -> SpanFacts:
    """A span with what its log records say; what it says itself counts more."""
    if span.role is not Role.LLM and span.role is not Role.AGENT:
        return span
    ordered = sorted(logs, key=lambda log: (log.start_ns or 0, log.span_id))
    prompt = span.input_messages or tuple(message for log in ordered for message in log.input_messages)
    answer = span.output_messages or tuple(message for log in ordered for message in log.output_messages)
    asked = span.asked_call_ids
    if span.role is Role.LLM and not asked:
        asked = messages.asked_call_ids(answer)
    return replace(
        span,
        input_messages=messages.with_tool_names(prompt, ()),
        output_messages=messages.with_tool_names(answer, prompt),
        asked_call_ids=asked,
    )
