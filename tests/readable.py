"""The SDK's span of what a recording holds, for exporters to export."""

from __future__ import annotations

from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link as SdkLink
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from step_exporter.facts import RawSpan


def readable(raw: RawSpan) -> ReadableSpan:
    """The span as the SDK hands it to an exporter."""
    parent = None
    if raw.parent_span_id is not None:
        parent = _context(raw.trace_id, raw.parent_span_id, is_remote=bool(raw.parent_is_remote))
    return ReadableSpan(
        raw.name,
        context=_context(raw.trace_id, raw.span_id, raw.trace_flags, raw.trace_state),
        parent=parent,
        resource=SdkResource(dict(raw.resource.attributes), raw.resource.schema_url),
        attributes=dict(raw.attributes),
        events=[SdkEvent(event.name, dict(event.attributes), event.time_ns) for event in raw.events],
        links=[SdkLink(_context(link.trace_id, link.span_id), dict(link.attributes)) for link in raw.links],
        kind=SpanKind[raw.kind.upper()],
        status=Status(StatusCode[raw.status_code.upper()], raw.status_message),
        start_time=raw.start_ns,
        end_time=raw.end_ns,
        instrumentation_scope=InstrumentationScope(raw.scope.name, raw.scope.version, raw.scope.schema_url),
    )


def _context(trace_id: str, span_id: str, flags: int = 0, state: str = "", *, is_remote: bool = False) -> SpanContext:
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(flags & 0xFF), TraceState.from_header([state])
    )
