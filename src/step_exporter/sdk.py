"""From the SDK's ``ReadableSpan`` to ``RawSpan``, by its public attributes; and whose spans are not converted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]  # every exporter uses it, there is no other
    attach,
    detach,
    set_value,
)
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, set_span_in_context

from step_exporter.facts import HAS_IS_REMOTE, IS_REMOTE, AttributeValue, Event, Link, RawSpan, Resource, Scope

K = TypeVar("K")
V = TypeVar("V")


class _ByIdentity(Generic[K, V]):
    """Converts an object once, as long as it lives: every span of a tracer shares its resource and scope. Bounded."""

    def __init__(self, convert: Callable[[K], V], bound: int = 256) -> None:
        self._convert = convert
        self._bound = bound
        self._known: OrderedDict[int, tuple[K, V]] = OrderedDict()
        self._last: tuple[K, V] | None = None

    def __call__(self, source: K) -> V:
        known = self._last
        if known is not None and known[0] is source:
            return known[1]
        known = self._known.get(id(source))
        if known is None or known[0] is not source:
            known = (source, self._convert(source))
            self._known[id(source)] = known  # holds the object, so that its id is not used again
            if len(self._known) > self._bound:
                self._known.popitem(last=False)
        self._last = known
        return known[1]


class _LastAsHex:
    """Writes ids, and remembers the last: most spans have the trace, and often the parent, of the span before."""

    def __init__(self, digits: int) -> None:
        self._format = f"0{digits}x"
        self._number = -1
        self._text = ""

    def __call__(self, number: int) -> str:
        if number != self._number:
            self._number, self._text = number, format(number, self._format)
        return self._text


class SpanConverter:
    """Converts spans of the SDK. Not thread-safe."""

    def __init__(self) -> None:
        self._resource = _ByIdentity(_resource)
        self._scope = _ByIdentity(_scope)
        self._trace_id = _LastAsHex(32)
        self._parent_id = _LastAsHex(16)

    def __call__(self, span: ReadableSpan) -> RawSpan:
        """The span as plain values. It has ended: only such spans are exported."""
        context = span.get_span_context()
        parent = span.parent
        status = span.status
        scope = span.instrumentation_scope
        # The SDK takes 1 µs to say that a span has neither events nor links, a quarter of all here.
        events = span.events if getattr(span, "_events", True) else ()
        links = span.links if getattr(span, "_links", True) else ()
        kind, code = span.kind, status.status_code
        state = context.trace_state if context is not None else None
        return RawSpan(  # by position: 20 keywords cost 1 µs
            self._trace_id(context.trace_id) if context is not None else "",
            f"{context.span_id:016x}" if context is not None else "",
            self._parent_id(parent.span_id) if parent is not None else None,
            span.name,
            # The hash of an enum's member is Python code, 0.3 µs: what most spans are is told by identity.
            "internal" if kind is _INTERNAL else "client" if kind is _CLIENT else kind.name.lower(),
            span.start_time,
            span.end_time,
            True,
            "unset" if code is _UNSET else "ok" if code is _OK else code.name.lower(),
            status.description,
            _attributes(span.attributes),
            tuple(map(_event, events)) if events else (),
            tuple(map(_link, links)) if links else (),
            self._resource(span.resource),
            self._scope(scope) if scope is not None else _NO_SCOPE,
            int(context.trace_flags) if context is not None else 0,
            state.to_header() if state else "",
            parent.is_remote if parent is not None else None,
            span.dropped_attributes,
            span.dropped_events,
            span.dropped_links,
        )


_INTERNAL, _CLIENT = SpanKind.INTERNAL, SpanKind.CLIENT
_UNSET, _OK = StatusCode.UNSET, StatusCode.OK
_NO_SCOPE = Scope()


def _attributes(attributes: Mapping[str, Any] | None) -> dict[str, AttributeValue]:
    """A copy. ``copy`` of the mapping proxy and what is below it takes 0.8 µs, ``dict`` of it 3; whether it is empty
    takes 0.3."""
    if attributes is None:
        return {}
    copy = getattr(attributes, "copy", None)
    copied = copy() if copy is not None else attributes
    return cast("dict[str, AttributeValue]", copied) if type(copied) is dict else dict(copied)


def _event(event: Any) -> Event:
    return Event(event.name, event.timestamp, _attributes(event.attributes), getattr(event, "dropped_attributes", 0))


def _link(link: Any) -> Link:
    context = link.context
    return Link(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        trace_state=context.trace_state.to_header() if context.trace_state else "",
        attributes=_attributes(link.attributes),
        dropped_attributes=getattr(link, "dropped_attributes", 0),
        flags=int(context.trace_flags) | HAS_IS_REMOTE | (IS_REMOTE if context.is_remote else 0),
    )


def _resource(resource: SdkResource) -> Resource:
    return Resource(_attributes(resource.attributes), resource.schema_url or "")


def _scope(scope: InstrumentationScope) -> Scope:
    attributes = getattr(scope, "attributes", None)  # since SDK 1.29
    return Scope(scope.name or "", scope.version or "", _attributes(attributes), scope.schema_url or "")


# Our own spans

OWN_TRACE_ID = RandomIdGenerator().generate_trace_id()
"""Of spans that are made while we work, by ``redact`` that calls a traced service: storing them would make more."""
_OWN = NonRecordingSpan(
    SpanContext(OWN_TRACE_ID, RandomIdGenerator().generate_span_id(), is_remote=False, trace_flags=TraceFlags(0))
)


@contextmanager
def at_work() -> Generator[None]:
    """Suppress instrumentation, as far as it asks, and give spans that are made all the same an unsampled parent of
    our own: most samplers drop them at once, and others leave them the trace's id."""
    token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True, set_span_in_context(_OWN)))
    try:
        yield
    finally:
        detach(token)


def is_own(span: ReadableSpan) -> bool:
    """Whether a span was made ``at_work``."""
    context = cast("SpanContext | None", getattr(span, "context", None))
    return context is not None and context.trace_id == OWN_TRACE_ID
