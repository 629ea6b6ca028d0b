"""OTLP over HTTP: ``/v1/traces``, ``/v1/metrics``, ``/v1/logs``.

https://opentelemetry.io/docs/specs/otlp/#otlphttp says what a client may expect: 200 once everything is committed,
400 for what it must not send again, 503 with ``Retry-After`` for what it should.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from sqlalchemy import event
from starlette.requests import Request
from starlette.responses import Response

from step_exporter.conventions import all_without_content
from step_exporter.errors import DatabaseError, InputError
from step_exporter.facts import RawSpan
from step_exporter.keeper import Keeper, Retention
from step_exporter.otlp import (
    Problem,
    decode_json,
    decode_logs_json,
    decode_logs_protobuf,
    decode_protobuf,
)
from step_exporter.store.engine import DatabaseURL, create_sync_engine, display_url
from step_exporter.store.failures import cause
from step_exporter.store.ingest import MAX_BATCH, Writer
from step_exporter.store.schema import ensure_schema
from step_exporter.viewer.body import Bodies, BodyError
from step_exporter.viewer.status import JSON, PROTOBUF, Code, media_type, status_response

_log = logging.getLogger(__name__)

PATIENCE_S = 5
"""How long a request waits for other writers: exporters of the SDKs give up after 10 s."""
RETRY_AFTER_S = 1
MAX_WAITING = 200
"""Requests that wait for the database."""
_THREADS = 2
"""One decodes while the other writes; the writer takes one batch at a time."""
_CODES = {
    400: Code.INVALID_ARGUMENT,
    408: Code.INVALID_ARGUMENT,
    413: Code.RESOURCE_EXHAUSTED,
    415: Code.INVALID_ARGUMENT,
    500: Code.INTERNAL,
    503: Code.UNAVAILABLE,
}


class Signal(NamedTuple):
    """What is taken: spans, or the log records that carry messages."""

    from_json: Callable[[bytes], Iterable[RawSpan | Problem]]
    from_protobuf: Callable[[bytes], Iterable[RawSpan | Problem]]
    rejected: str
    """The field of a partial success that counts what was not taken, as protobuf and as JSON name it."""
    rejected_json: str
    response: type[ExportTraceServiceResponse] | type[ExportLogsServiceResponse]


_SPANS = Signal(decode_json, decode_protobuf, "rejected_spans", "rejectedSpans", ExportTraceServiceResponse)
_RECORDS = Signal(
    decode_logs_json,
    decode_logs_protobuf,
    "rejected_log_records",
    "rejectedLogRecords",
    ExportLogsServiceResponse,
)


class Receiver:
    """Takes spans and stores them all, whatever they are of."""

    def __init__(
        self,
        url: DatabaseURL,
        bodies: Bodies | None = None,
        *,
        content: bool = True,
        retention: Retention | None = None,
    ) -> None:
        """
        Args:
            url: The database.
            bodies: Limits on what is received.
            content: Whether prompts, answers, tool arguments and results are stored, and the texts of errors.
            retention: What is beyond is deleted, from ``open`` to ``close``.
        """
        self._engine = create_sync_engine(url, foreign_keys=False)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _wait_less)
        self._content = content
        self._writer: Writer | None = None
        self._opening = anyio.Lock()
        self._bodies = bodies or Bodies()
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._keeper = None if retention is None else Keeper(self._engine, display_url(url), retention)

    def open(self) -> None:
        """Begin to delete what is beyond the retention, if there is one, whether or not spans come."""
        if self._keeper is not None:
            self._keeper.start()

    def close(self) -> None:
        """End that, and close the connections."""
        if self._keeper is not None:
            self._keeper.stop()
        self._engine.dispose()

    async def traces(self, request: Request) -> Response:
        """``POST /v1/traces``."""
        return await self._take(_SPANS, request)

    async def logs(self, request: Request) -> Response:
        """``POST /v1/logs``: records with message content become contents of their span, the rest is let go."""
        return await self._take(_RECORDS, request)

    async def _take(self, signal: Signal, request: Request) -> Response:
        kind = media_type(request.headers.get("content-type", ""))
        if kind not in (PROTOBUF, JSON):
            return _error(kind, 415, f"Content-Type {kind!r:.60} is not taken; send {PROTOBUF} or {JSON}.")
        if self._threads.statistics().tasks_waiting >= MAX_WAITING:
            return _error(kind, 503, "Too many requests wait for the database.")
        try:
            async with self._bodies.read(request) as body:
                problems = await anyio.to_thread.run_sync(self._store, signal, kind, body, limiter=self._threads)
        except BodyError as error:
            return _error(kind, error.status, str(error))
        except InputError as error:
            return _error(kind, 400, str(error))
        except DatabaseError as error:
            _log.warning("A batch of spans was not stored; its sender was told to try again: %s", error)
            return _error(kind, 503, f"The database did not take the spans: {error}")
        except Exception as error:
            _log.exception("A batch of spans could not be taken")
            return _error(kind, 500, f"The spans could not be taken: {type(error).__name__}")
        return _accepted(signal, kind, problems)

    async def discard(self, request: Request) -> Response:
        """``POST /v1/metrics``: read, and let go, so that an SDK with all signals on sees no error."""
        kind = media_type(request.headers.get("content-type", ""))
        if kind not in (PROTOBUF, JSON):
            return _error(kind, 415, f"Content-Type {kind!r:.60} is not taken; send {PROTOBUF} or {JSON}.")
        try:
            async with self._bodies.read(request):
                pass
        except BodyError as error:
            return _error(kind, error.status, str(error))
        return Response(b"{}" if kind == JSON else b"", media_type=kind)

    def _store(self, signal: Signal, kind: str, body: bytes) -> list[str]:
        """Commit the spans of a body; the reasons of those that were none, or that no table holds."""
        decoded = signal.from_json(body) if kind == JSON else signal.from_protobuf(body)
        writer = self._ready()
        problems: list[str] = []
        spans = _good(decoded, problems)
        if not self._content:
            spans = all_without_content(spans)
        while batch := list(islice(spans, MAX_BATCH)):
            result = writer.write(batch)
            problems += ["a span could not be stored; it is in the table quarantine"] * result.quarantined
        return problems

    def _ready(self) -> Writer:
        """The writer. The tables are made when the first spans come, so that a database that is away at the start
        costs no more than a 503."""
        if self._writer is None:
            try:
                ensure_schema(self._engine)
            except DatabaseError:
                raise
            except Exception as error:
                raise DatabaseError(cause(error)) from error
            self._writer = Writer(self._engine, patience_s=PATIENCE_S)
        return self._writer


def _good(items: Iterable[RawSpan | Problem], problems: list[str]) -> Iterator[RawSpan]:
    for item in items:
        if isinstance(item, Problem):
            problems.append(str(item))
        else:
            yield item


def _accepted(signal: Signal, kind: str, problems: list[str]) -> Response:
    message = "; ".join(dict.fromkeys(problems[:10]))[:1000]
    if kind == JSON:
        partial = {signal.rejected_json: str(len(problems)), "errorMessage": message}
        answer = {"partialSuccess": partial} if problems else {}
        return Response(json.dumps(answer).encode(), media_type=JSON)
    response = signal.response()
    if problems:
        setattr(response.partial_success, signal.rejected, len(problems))
        response.partial_success.error_message = message.encode("utf-8", "replace").decode()
    return Response(response.SerializeToString(), media_type=PROTOBUF)


def _error(kind: str, status: int, message: str) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return status_response(kind, status, _CODES[status], message.encode("utf-8", "replace").decode(), headers)


def _wait_less(connection: Any, record: object) -> None:
    connection.execute(f"PRAGMA busy_timeout = {PATIENCE_S * 1000}")
