"""Trace and span ids out of the operating system's random numbers.

The SDK's generator uses ``random``: programs that seed it, as machine learning does, repeat their trace ids, and two
runs become one trace. ``OTEL_PYTHON_ID_GENERATOR=steps_secrets`` uses this one instead.
"""

from __future__ import annotations

import secrets

from opentelemetry.sdk.trace.id_generator import IdGenerator


class SecretsIdGenerator(IdGenerator):
    """Ids that no seed repeats."""

    def generate_span_id(self) -> int:
        """64 random bits, not all zero."""
        return secrets.randbits(64) or 1

    def generate_trace_id(self) -> int:
        """128 random bits, not all zero."""
        return secrets.randbits(128) or 1

    def is_trace_id_random(self) -> bool:
        """True: the SDK sets the random flag of W3C Trace Context level 2."""
        return True
