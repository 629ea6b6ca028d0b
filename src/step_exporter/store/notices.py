"""Log lines that say a fault once, not once a span."""

from __future__ import annotations

import logging
import time

QUIET_S = 60.0
"""A fault of one kind is logged once in that time."""


class Notices:
    """Logs the first of each kind of fault a minute. What is said never holds a span's content."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[str, float] = {}

    def say(self, kind: str, message: str, *args: object, error: BaseException | None = None) -> None:
        """Log an error unless one of its kind was logged just now; with its traceback if ``error`` is given."""
        now = time.monotonic()
        if now - self._said.get(kind, -QUIET_S) >= QUIET_S:
            self._said[kind] = now
            self._log.error(message, *args, exc_info=error)
