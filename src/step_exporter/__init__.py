"""OpenTelemetry spans of AI agents as steps in a SQL database, found by trace id."""

from step_exporter.exporter import StepSpanExporter
from step_exporter.store.query import AsyncStepStore, StepStore

__all__ = ["AsyncStepStore", "StepSpanExporter", "StepStore"]
