"""Facts of a trace to rows: pure, order-free, without database or OpenTelemetry."""

from .derivation import Derivation
from .rows import Changes, MessageRow, RunRow, StepMetricsRow, StepRow

__all__ = ["Changes", "Derivation", "MessageRow", "RunRow", "StepMetricsRow", "StepRow"]
