"""What a fork must not tear: exporters and processors begin anew in the child, and are at rest while the parent forks.

A child that is forked in the middle of a SQLite transaction finds the file locked for ever: SQLite keeps its locks in
the memory of the process, and the transaction that holds them is one that nobody in the child can end.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Protocol

from step_exporter.store.engine import close_idle_files

WAIT_S = 1.0
"""How long a fork waits at most for what is being written."""


class Forkable(Protocol):
    """What begins anew in a forked child."""

    def after_fork(self) -> None:
        """Begin anew."""
        ...


class Writing(Forkable, Protocol):
    """What also has a lock that it holds while it writes."""

    @property
    def writing(self) -> threading.RLock:
        """Held while it writes."""
        ...


def renew_in_child(one: Forkable) -> None:
    """Call its ``after_fork`` in forked children, as long as it lives."""
    _renewed.add(one)


def rest_while_forking(one: Writing) -> None:
    """Also hold its lock during forks."""
    _renewed.add(one)
    _resting.add(one)


_renewed: weakref.WeakSet[Forkable] = weakref.WeakSet()
_resting: weakref.WeakSet[Writing] = weakref.WeakSet()
_held = threading.local()


def _before() -> None:
    until = time.monotonic() + WAIT_S
    locks = [one.writing for one in tuple(_resting)]
    _held.locks = [lock for lock in locks if lock.acquire(timeout=max(0.0, until - time.monotonic()))]
    close_idle_files()  # also those that were being written to


def _after_in_parent() -> None:
    for lock in _held.locks:
        lock.release()


def _after_in_child() -> None:
    for one in tuple(_renewed):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
