"""OTLP traces to ``RawSpan`` and back: JSON, protobuf and files; and the log records that carry message content.

https://opentelemetry.io/docs/specs/otlp/ and opentelemetry-proto's ``trace.proto`` say what the fields mean.
"""

from __future__ import annotations

from step_exporter.otlp.decode import PEOPLE, Problem, decode_json
from step_exporter.otlp.encode import encode_json
from step_exporter.otlp.files import Extension, read_file, read_stream
from step_exporter.otlp.logs import decode_logs_json, decode_logs_protobuf
from step_exporter.otlp.protobuf import decode_protobuf

__all__ = [
    "PEOPLE",
    "Extension",
    "Problem",
    "decode_json",
    "decode_logs_json",
    "decode_logs_protobuf",
    "decode_protobuf",
    "encode_json",
    "read_file",
    "read_stream",
]
