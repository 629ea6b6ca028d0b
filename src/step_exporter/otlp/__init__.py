"""OTLP traces to ``RawSpan`` and back: JSON, protobuf and files.

https://opentelemetry.io/docs/specs/otlp/ and opentelemetry-proto's ``trace.proto`` say what the fields mean.
"""

from __future__ import annotations

from step_exporter.otlp.decode import Problem, decode_json
from step_exporter.otlp.encode import encode_json
from step_exporter.otlp.files import read_file
from step_exporter.otlp.protobuf import decode_protobuf

__all__ = ["Problem", "decode_json", "decode_protobuf", "encode_json", "read_file"]
