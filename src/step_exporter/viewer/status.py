"""Errors as OTLP wants them: a ``google.rpc.Status``, in the format that the request came in.

https://opentelemetry.io/docs/specs/otlp/#failures
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum

from google.rpc.status_pb2 import Status
from starlette.responses import Response

PROTOBUF = "application/x-protobuf"
JSON = "application/json"


class Code(IntEnum):
    """``google.rpc.Code``."""

    INVALID_ARGUMENT = 3
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


def status_response(
    content_type: str, http_status: int, code: Code, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The error, as protobuf where the request was protobuf, else as JSON."""
    if content_type == PROTOBUF:
        body = Status(code=int(code), message=message).SerializeToString()
    else:
        content_type = JSON
        body = json.dumps({"code": int(code), "message": message}).encode()
    return Response(body, http_status, dict(headers or {}), content_type)


def media_type(header: str) -> str:
    """A ``Content-Type`` without its parameters."""
    return header.partition(";")[0].strip().lower()
