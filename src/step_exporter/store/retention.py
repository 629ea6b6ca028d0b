"""Deletes old traces to keep a database small, while writers go on.

Whole traces go, those whose last time is longest ago first, in transactions of some 50 ms with a pause as long after
each. In SQLite the pages they leave are given back to the file system (incremental vacuum), some at a time. In
PostgreSQL rows that a writer holds are passed over (SKIP LOCKED), and autovacuum makes their room usable again.

Spans that arrive late for a pruned trace begin it anew; what people deleted stays deleted (``editing``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, Engine, delete, exists, select, text

from step_exporter import models
from step_exporter.errors import InputError
from step_exporter.store import audit, filters, organizations
from step_exporter.store.audit import Caller, Entry
from step_exporter.store.editing import patiently, purge

_TABLES = models.Base.metadata.tables
_TRACES, _STEPS, _QUARANTINE, _DELETIONS = (_TABLES[name] for name in ("traces", "steps", "quarantine", "deletions"))
_MEASURED = ("spans", "contents", "resources", "steps", "step_metrics", "runs", "messages")

GOAL_S = 0.05
"""How long a transaction takes, but that it ends with whole traces: writers of a SQLite file wait for it."""
_FOUND = 500
"""Traces that a transaction looks up."""
_TOGETHER = 4
"""Traces that are deleted by the same statements."""
_SAMPLE_BYTES = 64 * 1024 * 1024
"""PostgreSQL: of a larger table only so much is measured, as its rows must be read for it."""

_SIZE = re.compile(r"(\d{1,15})\s*(?:([kmgt])(i)?)?b?", re.IGNORECASE)
_NO_LOCK = nullcontext()

Progress = Callable[[int], object]
"""Called after each transaction with how many traces are gone."""


class Pruned(NamedTuple):
    """What ``prune`` did."""

    traces: int
    """How many were deleted."""
    bytes_before: int
    """SQLite: the pages in use. PostgreSQL: the rows of traces, without indexes and what is dead; of large tables as
    reckoned from a sample."""
    bytes_after: int


def prune(
    engine: Engine,
    older_than: timedelta | datetime | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    caller: Caller = audit.ITSELF,
    is_stopped: Callable[[], bool] = lambda: False,
    lock: AbstractContextManager[object] = _NO_LOCK,
    without_steps: bool = False,
) -> Pruned:
    """Delete traces that ended before a moment (or so long ago), then the oldest until no more than ``max_bytes``
    are in use; ``without_steps`` only such as no step follows from, by itself all of these. A caller of one
    organization deletes what belongs to that one wholly. ``is_stopped`` is asked after each transaction; ``lock`` is
    held during each."""
    if older_than is None and max_bytes is None and not without_steps:
        raise InputError("prune what? Give older_than, max_bytes or without_steps")
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 0):
        raise InputError(f"max_bytes is a number of bytes, not {max_bytes!r:.40}")
    if max_bytes is not None and caller.organization_id is not None:
        raise InputError("max_bytes is for the whole database; of one organization give older_than")
    limit = None if older_than is None else _moment(older_than)
    before = _size(engine)
    batches = _Batches(engine, progress, caller, is_stopped, lock, without_steps)
    if limit is not None or max_bytes is None:
        batches.run(limit, None)
    if limit is not None and caller.organization_id is None and not without_steps:
        with lock, engine.begin() as conn:
            conn.execute(delete(_QUARANTINE).where(_QUARANTINE.c.created_at < limit))
    if max_bytes is not None:
        batches.run(None, max_bytes)
    if engine.dialect.name == "sqlite":
        _give_back(engine, is_stopped, lock)
    return Pruned(batches.count, before, _size(engine))


class _Batches:
    """Transactions of as many traces as fit in the time that they should take."""

    def __init__(
        self,
        engine: Engine,
        progress: Progress | None,
        caller: Caller,
        is_stopped: Callable[[], bool],
        lock: AbstractContextManager[object],
        without_steps: bool,
    ) -> None:
        self.engine = engine
        self.progress = progress
        self.caller = caller
        self.is_stopped = is_stopped
        self.lock = lock
        self.without_steps = without_steps
        self.count = 0
        self._reached: int | None = None
        """The last time of the traces deleted last: of those before it, the ones with steps stay."""
        self._began = 0.0
        """When the transaction got its lock: what it waited for others says nothing about its size."""
        self._noted: int | None = None
        """The entry of the audit trail that tells of all of them."""

    def run(self, limit: datetime | None, max_bytes: int | None) -> None:
        """Delete until nothing is old enough, or little enough is left."""
        used = 0 if max_bytes is None else _size(self.engine)
        self._reached = None
        while (max_bytes is None or used > max_bytes) and not self.is_stopped():
            with self.lock:
                gone, used, noted = patiently(
                    self.engine, lambda conn, _, used=used: self._delete(conn, limit, max_bytes, used)
                )
            if not gone:
                return
            self._noted = noted
            self.count += gone
            if self.progress is not None:
                self.progress(self.count)
            _pause(self._began)

    def _delete(
        self, conn: Connection, limit: datetime | None, max_bytes: int | None, used: int
    ) -> tuple[int, int, int | None]:
        """Delete one batch; how many traces that were, how many bytes are in use then, and the entry that tells."""
        self._began = time.monotonic()
        found = self._oldest(conn, limit)
        gone = 0
        while gone < len(found) and (max_bytes is None or used > max_bytes):
            now = found[gone : gone + _TOGETHER]
            if self.without_steps:
                self._reached = conn.scalar(select(_TRACES.c.last_ns).where(_TRACES.c.trace_id == now[-1]))
            if max_bytes is not None and conn.dialect.name == "postgresql":
                used -= _row_bytes(conn, now)
            purge(conn, now)
            conn.execute(delete(_DELETIONS).where(_DELETIONS.c.trace_id.in_(now)))
            gone += len(now)
            if max_bytes is not None and conn.dialect.name == "sqlite":
                used = _page_bytes(conn)
            if time.monotonic() - self._began > GOAL_S:
                break
        if not gone:
            return 0, used, None
        details: dict[str, object] = {
            "older_than": None if limit is None else limit.isoformat(),
            "max_bytes": max_bytes,
            "traces": self.count + gone,
        }
        if self.without_steps:
            details["without_steps"] = True
        entry = Entry(self.caller.actor, "prune", organization_id=self.caller.organization_id, details=details)
        return gone, used, audit.write(conn, entry, self._noted)

    def _oldest(self, conn: Connection, limit: datetime | None) -> Sequence[str]:
        """The ids of the next traces, locked; those without a time come last."""
        query = select(_TRACES.c.trace_id).order_by(_TRACES.c.last_ns, _TRACES.c.trace_id).limit(_FOUND)
        timeless = query.where(_TRACES.c.last_ns.is_(None))
        timed = query.where(_TRACES.c.last_ns.is_not(None))
        if limit is not None:
            timed = query.where(_TRACES.c.last_ns < filters.check_time_ns("older_than", limit))
            timeless = timeless.where(_TRACES.c.changed_at < limit)
        if self._reached is not None:
            timed = timed.where(_TRACES.c.last_ns >= self._reached)
        own = self.caller.organization_id
        for asked in (timed, timeless):
            if self.without_steps:
                asked = asked.where(~exists().where(_STEPS.c.trace_id == _TRACES.c.trace_id))
            if own is not None:
                asked = asked.where(organizations.is_whole(_TRACES.c.trace_id, own))
            found = conn.scalars(asked.with_for_update(skip_locked=True)).all()
            if own is not None and found:  # as it is now that they are locked
                found = organizations.whole_traces(conn, own, found)
            if found:
                return found
        return ()


def _pause(began: float) -> None:
    """Let others in, for as long as they may have waited."""
    time.sleep(min(time.monotonic() - began, 1.0))


def as_bytes(name: str, value: object) -> int:
    """A size as text, such as ``500MB`` (of thousands) or ``2 GiB`` (of 1,024), or a number of bytes. Raises
    ``InputError``."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise InputError(f"{name} is a size such as 500MB or 2GB, not {value!r:.40}")
    return int(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index((found[2] or " ").lower())


def _size(engine: Engine) -> int:
    with engine.connect() as conn:
        return _row_bytes(conn) if conn.dialect.name == "postgresql" else _page_bytes(conn)


def _page_bytes(conn: Connection) -> int:
    pages, free, size = (
        conn.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _row_bytes(conn: Connection, trace_ids: Sequence[str] | None = None) -> int:
    """A file of PostgreSQL keeps its size when rows go, so the rows themselves are measured."""
    total = 0
    for name in _MEASURED:
        measure = f"SELECT coalesce(sum(pg_column_size(t.*)), 0) FROM {name} t"  # noqa: S608  our names
        if trace_ids is not None:
            total += int(conn.scalar(text(f"{measure} WHERE trace_id = ANY(:ids)"), {"ids": list(trace_ids)}) or 0)
            continue
        size = conn.scalar(text(f"SELECT sum(pg_table_size(relid)) FROM pg_partition_tree('{name}')"))  # noqa: S608
        share = min(1.0, _SAMPLE_BYTES / max(1, int(size or 0)))
        sample = "" if share == 1 else f" TABLESAMPLE SYSTEM ({100 * share:.6f})"
        total += round(int(conn.scalar(text(measure + sample)) or 0) / share)
    return total


def _give_back(engine: Engine, is_stopped: Callable[[], bool], lock: AbstractContextManager[object]) -> None:
    """Let the file shrink by its free pages. Where the file was not made for that (``auto_vacuum``) it stays."""
    before = -1
    while not is_stopped():
        with lock, engine.begin() as conn:
            began = time.monotonic()
            free = left = conn.exec_driver_sql("PRAGMA freelist_count").scalar_one()
            if free in (0, before):
                break
            with closing(conn.connection.cursor()) as cursor:
                while left > 0 and time.monotonic() - began < GOAL_S:
                    cursor.execute("PRAGMA incremental_vacuum")  # Python takes one step of it, which gives one page
                    left -= 1
            cursor.close()  # a step that is not the last leaves the statement open, and nothing commits past one
        before = free
        _pause(began)
    connection = engine.raw_connection()  # a checkpoint is nothing for a transaction
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    finally:
        connection.close()


def _moment(older_than: timedelta | datetime) -> datetime:
    if isinstance(older_than, datetime):
        return filters.check_time("older_than", older_than)
    if not isinstance(older_than, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance]  # a number could be days as well as nanoseconds
        raise InputError(f"older_than is a timedelta or a datetime with a time zone, not {older_than!r:.40}")
    try:
        return datetime.now(UTC) - older_than
    except OverflowError:
        raise InputError("older_than reaches back beyond the calendar") from None
