"""OpenTelemetry spans of AI agents as steps in a SQL database, found by trace id."""

from step_exporter.exporter import StepSpanExporter
from step_exporter.processor import FlushReport, Handle, StepSpanProcessor, configure
from step_exporter.store.query import AsyncStepStore, StepStore

__all__ = [
    "AsyncStepStore",
    "FlushReport",
    "Handle",
    "StepSpanExporter",
    "StepSpanProcessor",
    "StepStore",
    "configure",
]
