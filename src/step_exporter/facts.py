"""The plain values that flow through the package: what a span said, and what we understood of it.

``RawSpan`` is a span as it arrived, whatever it came from (the SDK, OTLP, the database).
``SpanFacts`` is what a convention reader understood of it, and all that the derivation sees.
They are immutable, compared by value, and made several times per span: see ``Value``.

Times are integer nanoseconds since the Unix epoch. ``None`` means unknown; it is never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

MAX_NS = 2**63 - 1
"""The largest time that a signed 64-bit column holds (the year 2262); OTLP times are unsigned."""

HAS_IS_REMOTE = 0x100
"""In OTLP's flags of spans and links (``SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK``): whether the next bit means
anything."""
IS_REMOTE = 0x200

AttributeValue = Any
"""None, bool, int, float, str, bytes, or a tuple or mapping of these (OTLP's AnyValue)."""


class Value(Struct, frozen=True, gc=False):
    """Immutable, equal and hashed by its fields; ``msgspec.structs`` has ``replace``, ``astuple`` and ``asdict``.

    Not a named tuple: one of 54 fields takes 0.4 µs to make instead of 0.2, one of three 0.2 instead of 0.03. And not
    looked at by the garbage collector, as no value can be part of a circle: those of a batch of 512 spans, which live
    long enough to be looked at three times, took it 5 to 20 µs a span.
    """


REDACTION_FAILED = "redaction_failed"
"""The flag of a span of which a text could not be redacted, so that it is not stored (``redaction``)."""


class Role(StrEnum):
    """What a span is in an agent's loop."""

    WORKFLOW = "workflow"
    """A run that orchestrates agents (``invoke_workflow``, a crew's kickoff)."""
    AGENT = "agent"
    """One invocation of an agent."""
    STEP = "step"
    """A span that says itself that it is one turn of an agent's loop."""
    LLM = "llm"
    """A request to a model."""
    TOOL = "tool"
    """The execution of a tool."""
    OTHER = "other"
    """Anything else: an HTTP call, a chain, a task."""


class Resource(Value, frozen=True):
    """Who emitted a span (OTLP Resource)."""

    attributes: Mapping[str, AttributeValue] = {}
    schema_url: str = ""


class Scope(Value, frozen=True):
    """Which library emitted a span (OTLP InstrumentationScope)."""

    name: str = ""
    version: str = ""
    attributes: Mapping[str, AttributeValue] = {}
    schema_url: str = ""


class Event(Value, frozen=True):
    """A timed event on a span."""

    name: str
    time_ns: int | None
    attributes: Mapping[str, AttributeValue] = {}
    dropped_attributes: int = 0


class Link(Value, frozen=True):
    """A link from a span to another."""

    trace_id: str
    span_id: str
    trace_state: str = ""
    attributes: Mapping[str, AttributeValue] = {}
    dropped_attributes: int = 0
    flags: int = 0
    """As of OTLP: trace flags, and whether the other span is another process'."""


class RawSpan(Value, frozen=True):
    """A span as it arrived. ``trace_id`` is 32, ``span_id`` 16 lower-case hexadecimal digits."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str = "internal"
    """internal, server, client, producer or consumer."""
    start_ns: int | None = None
    end_ns: int | None = None
    """None while the span is open, and where the emitter gave no usable end."""
    ended: bool = True
    status_code: str = "unset"
    """unset, ok or error."""
    status_message: str | None = None
    attributes: Mapping[str, AttributeValue] = {}
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    resource: Resource = Resource()
    scope: Scope = Scope()
    trace_flags: int = 0
    trace_state: str = ""
    parent_is_remote: bool | None = None
    """Whether the parent ran in another process; None where the source does not say."""
    dropped_attributes: int = 0
    dropped_events: int = 0
    dropped_links: int = 0
    process_id: str | None = None
    abandoned_ns: int | None = None
    """When an open span was found to belong to a process that is gone."""
    flags: tuple[str, ...] = ()
    """What was doubtful on arrival: ``clock_skew``, ``truncated``, ``unsafe_value``."""
    collisions: int = 0
    """How many different spans lost to this one under the same key."""


class TokenUsage(Value, frozen=True):
    """Tokens of one LLM request. ``prompt`` includes ``cached`` and ``cache_write``, ``completion``
    includes ``reasoning``; a reader whose emitter leaves them out adds them and flags ``normalised``."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    prompt_details: tuple[tuple[str, int], ...] = ()
    """Further parts of the prompt count, such as audio, sorted by name."""
    completion_details: tuple[tuple[str, int], ...] = ()


class ToolCall(Value, frozen=True):
    """A tool call that a model asked for. ``arguments`` is canonical JSON text, or text as it came."""

    id: str | None
    name: str | None
    arguments: str


class Content(Value, frozen=True):
    """One element of a content value: a message of a prompt, a tool's result.

    ``hash`` covers ``parent_hash`` and the raw text, so a prompt that repeats a prefix repeats its hashes.
    """

    hash: str
    """32 hexadecimal digits: the first half of a SHA-256."""
    parent_hash: str | None
    body: str


class ContentValue(Value, frozen=True):
    """A content value taken apart. ``form`` says how ``elements`` make up the value again
    (see ``conventions.content``)."""

    form: tuple[str, ...]
    elements: tuple[Content, ...]


class Message(Value, frozen=True):
    """One message of a prompt or an answer, in the one form that all vocabularies are read into."""

    role: str
    """system, user, assistant or tool."""
    text: str
    """What makes two messages equal beside role and tool calls: the text, empty parts dropped; parts that
    are not text as canonical JSON."""
    name: str | None = None
    """The tool's name on a tool message, the speaker's on others."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    content_hash: str | None = None
    """The ``Content`` that it was read from."""


class SpanFacts(Value, frozen=True):
    """What a span means: all that the derivation knows of it."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    start_ns: int | None
    end_ns: int | None
    ended: bool
    role: Role
    convention: str | None
    """The vocabulary that decided the role, such as ``genai`` or ``openinference``."""
    scope_name: str
    service_name: str | None
    abandoned_ns: int | None = None

    # error
    failed: bool = False
    """The span itself ended with an error."""
    cancelled: bool = False
    """The error was a cancellation (``asyncio.CancelledError``)."""
    error_type: str | None = None
    error_message: str | None = None
    error_traceback: str | None = None

    # identity
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

    # model
    provider_id: str | None = None
    provider_name: str | None = None
    provider_category: str | None = None
    model: str | None = None
    """The model that served; where only the requested one is known, that."""
    served_model: str | None = None
    """Only where the response named it; used to tell requests apart."""
    model_handle: str | None = None
    model_endpoint: str | None = None
    context_window_limit: int | None = None
    request_id: str | None = None
    """The id of the response (``gen_ai.response.id``)."""
    stop_reason: str | None = None
    usage: TokenUsage | None = None
    first_token_ns: int | None = None
    """When the first token arrived, as a time since the epoch."""
    llm_start_ns: int | None = None
    """Where one span stands for a whole step (Letta): when its LLM request began, from its events."""
    llm_ns: int | None = None
    tool_ns: int | None = None
    """Where one span stands for a whole step (Letta): how long its tools ran, from its events."""
    tool_call_count: int | None = None
    asked_call_ids: tuple[str, ...] = ()
    """Ids of the tool calls that the response asked for, in order."""

    # tool
    tool_name: str | None = None
    call_id: str | None = None

    # messages
    input_messages: tuple[Message, ...] = ()
    """The prompt, system messages first."""
    output_messages: tuple[Message, ...] = ()

    # what people set
    tags: tuple[str, ...] = ()
    feedback: str | None = None
    """positive or negative."""
    transaction_id: str | None = None

    flags: tuple[str, ...] = ()
    """What is doubtful, sorted: ``bad_number``, ``normalised``, ``tokens_inconsistent``, ``clock_skew``, …"""


class Annotation(Value, frozen=True):
    """What a person set on a step, kept on the span that was its anchor at that moment."""

    trace_id: str
    span_id: str
    key: str
    """feedback, tags or tid."""
    value: AttributeValue
    set_by: str | None = None
    set_at_ns: int | None = None


class Deletion(Value, frozen=True):
    """What a person deleted, so that late spans do not bring it back."""

    trace_id: str
    kind: str
    """trace, run or step."""
    id: str
    deleted_by: str | None = None
    deleted_at_ns: int | None = None
