"""OpenTelemetry spans of AI agents as steps in a SQL database, found by trace id."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from step_exporter.exporter import StepSpanExporter
    from step_exporter.processor import FlushReport, Handle, StepSpanProcessor, configure
    from step_exporter.store.query import AsyncStepStore, AuditFilter, RunFilter, StepFilter, StepStore

__all__ = [
    "AsyncStepStore",
    "AuditFilter",
    "FlushReport",
    "Handle",
    "RunFilter",
    "StepFilter",
    "StepSpanExporter",
    "StepSpanProcessor",
    "StepStore",
    "configure",
]

_MODULES = {
    "StepSpanExporter": "step_exporter.exporter",
    "FlushReport": "step_exporter.processor",
    "Handle": "step_exporter.processor",
    "StepSpanProcessor": "step_exporter.processor",
    "configure": "step_exporter.processor",
    "AsyncStepStore": "step_exporter.store.query",
    "AuditFilter": "step_exporter.store.query",
    "RunFilter": "step_exporter.store.query",
    "StepFilter": "step_exporter.store.query",
    "StepStore": "step_exporter.store.query",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: who reads needs no SDK, who exports no queries, and the
    pytest plugin, which pytest loads for everyone, neither."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
