"""OpenTelemetry's own metrics of an exporter, under the SDK's flag ``OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED``.

``otel.sdk.exporter.span.inflight``, ``otel.sdk.exporter.span.exported`` (``error.type`` where spans were dropped) and
``otel.sdk.exporter.operation.duration`` (s).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from opentelemetry.metrics import get_meter_provider

FLAG = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
COMPONENT = "steps_span_exporter"

_numbers = itertools.count()


@dataclass(slots=True)
class Operation:
    """One export."""

    failed: bool = False


class Metrics(Protocol):
    """What an exporter tells of itself."""

    @contextmanager
    def operation(self, spans: int) -> Generator[Operation]:
        """Around an export of so many spans."""
        ...


class _NoMetrics:
    @contextmanager
    def operation(self, spans: int) -> Generator[Operation]:
        yield Operation()


class _SdkMetrics:
    def __init__(self) -> None:
        meter = get_meter_provider().get_meter("opentelemetry-sdk")
        prefix = "otel.sdk.exporter"
        self._inflight = meter.create_up_down_counter(f"{prefix}.span.inflight", "{span}", "Spans being exported")
        self._exported = meter.create_counter(f"{prefix}.span.exported", "{span}", "Spans whose export has ended")
        self._duration = meter.create_histogram(f"{prefix}.operation.duration", "s", "Duration of exports")
        self._labels = {"otel.component.type": COMPONENT, "otel.component.name": f"{COMPONENT}/{next(_numbers)}"}

    @contextmanager
    def operation(self, spans: int) -> Generator[Operation]:
        began = time.perf_counter()
        self._inflight.add(spans, self._labels)
        operation = Operation()
        try:
            yield operation
        finally:
            labels = {**self._labels, "error.type": "dropped"} if operation.failed else self._labels
            self._inflight.add(-spans, self._labels)
            self._exported.add(spans, labels)
            self._duration.record(time.perf_counter() - began, labels)


def exporter_metrics() -> Metrics:
    """What the SDK's flag asks for."""
    enabled = os.environ.get(FLAG, "").strip().lower() == "true"
    return _SdkMetrics() if enabled else _NoMetrics()
