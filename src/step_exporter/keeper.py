"""Retention on a schedule: a thread beside the writer that prunes the database, one process at a time.

Writers are not held up: the thread has a connection of its own, and deletes in transactions of some 50 ms
(``store.retention``).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple, Self, cast

from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]  # every exporter uses it, there is no other
    attach,
    set_value,
)
from sqlalchemy import Engine

from step_exporter import environment, forks
from step_exporter.errors import ConfigurationError, InputError
from step_exporter.store.failures import cause
from step_exporter.store.maintenance import claim, prolong

_log = logging.getLogger(__name__)

TASK = "prune"
EVERY_S = 600
"""How often a database is pruned, whatever number of processes write to it."""
_FIRST_S = 5.0
_LOOK_S = 60.0
"""How often a process looks whether it is due."""
_STOP_S = 2.0


class Retention(NamedTuple):
    """How long traces are kept, and how many bytes of them: what is beyond either is deleted, the oldest first."""

    days: float | None = None
    """Since the trace's last time."""
    max_bytes: int | None = None
    """As ``StepStore.prune`` counts them."""

    @classmethod
    def of(cls, given: Retention | Mapping[str, object] | None) -> Retention | None:
        """What is given (``{"days": 30, "max_bytes": "2GB"}``), else environment variables, else None. Raises
        ``ConfigurationError``."""
        names = ("retention: days", "retention: max_bytes")
        if given is None:
            names = (
                environment.OTEL_EXPORTER_STEPS_RETENTION_DAYS,
                environment.OTEL_EXPORTER_STEPS_RETENTION_MAX_BYTES,
            )
            days, size = (os.environ.get(name) or None for name in names)
        else:
            named: Mapping[str, object] = given._asdict() if isinstance(given, Retention) else given
            if not isinstance(named, Mapping) or not set(named) <= {"days", "max_bytes"}:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(f"retention is days, max_bytes or both, not {given!r:.100}")
            days, size = named.get("days"), named.get("max_bytes")
        if days is None and size is None:
            return None
        from step_exporter.store.retention import as_bytes  # 20 ms that only pruning costs

        try:
            return cls(
                None if days is None else _days(names[0], days), None if size is None else as_bytes(names[1], size)
            )
        except InputError as error:
            raise ConfigurationError(str(error)) from None

    def stricter(self, other: Retention | None) -> Self:
        """The shorter time and the smaller size of two."""
        days, size = (
            min((value for value in values if value is not None), default=None)
            for values in zip(self, other or Retention(), strict=True)
        )
        return self._replace(days=days, max_bytes=None if size is None else int(size))


def _days(name: str, value: object) -> float:
    try:
        days = float(cast(float, value))
        timedelta(days=days)
    except (TypeError, ValueError, OverflowError):
        days = 0.0
    if not days > 0:
        raise InputError(f"{name} is a number of days, not {value!r:.40}")
    return days


class Keeper:
    """Prunes a database in a thread of its own, from when it is first told to until it is stopped."""

    def __init__(self, engine: Engine, place: str, retention: Retention) -> None:
        self.retention = retention
        self._engine = engine
        self._place = place
        self.after_fork()
        forks.rest_while_forking(self)

    def after_fork(self) -> None:
        """Begin anew in a forked child, which has no such thread yet."""
        self.writing = threading.RLock()
        """Held during each transaction."""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, if it does not run."""
        if self._thread is None and not self._stopped.is_set():
            thread = threading.Thread(target=self._run, name="step_exporter-retention", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is about to end
                return
            self._thread = thread

    def stop(self) -> None:
        """End the thread after the transaction that it is in."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        wait_s = _FIRST_S
        while not self._stopped.wait(wait_s):
            wait_s = _LOOK_S
            try:
                self._prune()
            except Exception as error:  # the next time may be better, and nobody waits for this one
                _log.warning("step_exporter could not prune %s: %s", self._place, cause(error))

    def _prune(self) -> None:
        with self.writing:
            if not claim(self._engine, TASK, EVERY_S):
                return
        from step_exporter.store.retention import prune

        days, max_bytes = self.retention
        prolonged = time.monotonic()

        def go_on(count: int) -> None:
            nonlocal prolonged
            if time.monotonic() - prolonged > _LOOK_S:
                prolonged = time.monotonic()
                with self.writing:
                    prolong(self._engine, TASK, EVERY_S)

        pruned = prune(
            self._engine,
            None if days is None else timedelta(days=days),
            max_bytes,
            go_on,
            is_stopped=self._stopped.is_set,
            lock=self.writing,
        )
        if pruned.traces:
            _log.info("step_exporter: %d old traces were deleted from %s", pruned.traces, self._place)
