"""OTLP/JSON to protobuf by protobuf's own reader of JSON, so by none of our code."""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_IDS = frozenset({"traceId", "spanId", "parentSpanId"})


def to_protobuf(document: dict[str, Any]) -> bytes:
    """A document of spans or of log records."""
    request = ExportLogsServiceRequest() if "resourceLogs" in document else ExportTraceServiceRequest()
    return ParseDict(_base64_ids(document), request).SerializeToString()


def _base64_ids(value: Any) -> Any:
    """OTLP writes ids in hexadecimal digits; protobuf's own mapping writes all bytes in base64."""
    if isinstance(value, list):
        return [_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode() if key in _IDS else _base64_ids(item)
        for key, item in value.items()
    }
