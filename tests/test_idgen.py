"""Ids that a seeded program does not repeat, and the SDK's metrics of our exporter."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from opentelemetry.metrics import _internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from sdk_spans import ended
from step_exporter.exporter import StepSpanExporter
from step_exporter.idgen import SecretsIdGenerator


def test_a_seed_does_not_repeat_the_ids() -> None:
    tracer = TracerProvider(id_generator=SecretsIdGenerator(), shutdown_on_exit=False).get_tracer("t")
    seen = set[tuple[int, int]]()
    for _ in range(2):
        random.seed(42)
        context = tracer.start_span("a").get_span_context()
        assert context.is_valid
        seen.add((context.trace_id, context.span_id))
    assert len(seen) == 2


def test_the_sdks_flag_turns_on_the_exporters_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    reader = InMemoryMetricReader()
    monkeypatch.setattr(_internal, "_METER_PROVIDER", MeterProvider([reader], shutdown_on_exit=False))
    exporter = StepSpanExporter(tmp_path / "steps.db")
    exporter.export([ended(), ended(span_id=8)])
    exporter.shutdown()
    exporter = StepSpanExporter(tmp_path / "no" / "steps.db", spool="off")
    exporter.export([ended()])
    exporter.shutdown()
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        metric.name: metric.data.data_points
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    exported = {point.attributes.get("error.type"): point.value for point in found["otel.sdk.exporter.span.exported"]}
    assert exported == {None: 2, "dropped": 1}
    assert sum(point.value for point in found["otel.sdk.exporter.span.inflight"]) == 0
    assert sum(point.count for point in found["otel.sdk.exporter.operation.duration"]) == 2
