"""Deletes old traces to keep a database small, while writers go on.

Whole traces go, those whose last time is longest ago first, in transactions of some 50 ms with a pause of the same
length after each. In SQLite the pages they leave are given back to the file system (incremental vacuum). In PostgreSQL
rows that a writer holds are passed over (SKIP LOCKED), and autovacuum makes their room usable again.

Spans that arrive late for a pruned trace begin it anew; what people deleted stays deleted (``editing``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, Engine, and_, delete, or_, select, text

from step_exporter import models
from step_exporter.errors import InputError
from step_exporter.store import filters
from step_exporter.store.editing import patiently, purge

_TABLES = models.Base.metadata.tables
_TRACES, _QUARANTINE, _DELETIONS = (_TABLES[name] for name in ("traces", "quarantine", "deletions"))
_MEASURED = ("spans", "contents", "resources", "steps", "step_metrics", "runs", "messages")

GOAL_S = 0.05
"""How long a transaction should take: writers wait for one at most."""
_MAX_TRACES = 500
_MAX_PAGES = 1000
"""Pages (4 KiB) that one transaction gives back."""

Progress = Callable[[int], object]
"""Called after each transaction with how many traces are gone."""


class Pruned(NamedTuple):
    """What ``prune`` did."""

    traces: int
    """How many were deleted."""
    bytes_before: int
    """SQLite: the pages in use. PostgreSQL: the rows of traces, without indexes and what is dead."""
    bytes_after: int


def prune(
    engine: Engine,
    older_than: timedelta | datetime | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Delete traces that ended before a moment (or so long ago), then the oldest until no more than ``max_bytes``
    are in use."""
    if older_than is None and max_bytes is None:
        raise InputError("prune what? Give older_than or max_bytes")
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 0):
        raise InputError(f"max_bytes is a number of bytes, not {max_bytes!r:.40}")
    limit = None if older_than is None else _moment(older_than)
    before = _size(engine)
    batches = _Batches(engine, progress)
    if limit is not None:
        batches.run(limit, None)
        with engine.begin() as conn:
            conn.execute(delete(_QUARANTINE).where(_QUARANTINE.c.created_at < limit))
    if max_bytes is not None:
        batches.run(None, max_bytes)
    if engine.dialect.name == "sqlite":
        _give_back(engine)
    return Pruned(batches.count, before, _size(engine))


class _Batches:
    """Transactions of as many traces as fit in the time that they should take."""

    def __init__(self, engine: Engine, progress: Progress | None) -> None:
        self.engine = engine
        self.progress = progress
        self.count = 0
        self._traces = 8
        self._began = 0.0
        """When the transaction got its lock: what it waited for others says nothing about its size."""

    def run(self, limit: datetime | None, max_bytes: int | None) -> None:
        """Delete until nothing is old enough, or little enough is left."""
        used = 0 if max_bytes is None else _size(self.engine)
        while max_bytes is None or used > max_bytes:
            gone, used = patiently(self.engine, lambda conn, _, used=used: self._delete(conn, limit, max_bytes, used))
            if not gone:
                return
            took = time.monotonic() - self._began
            self.count += gone
            if self.progress is not None:
                self.progress(self.count)
            self._traces = max(1, min(_MAX_TRACES, self._traces * 2 if took < GOAL_S else self._traces // 2))
            time.sleep(min(took, 1.0))

    def _delete(self, conn: Connection, limit: datetime | None, max_bytes: int | None, used: int) -> tuple[int, int]:
        """Delete one batch; how many traces that were, and how many bytes are in use then."""
        self._began = time.monotonic()
        query = select(_TRACES.c.trace_id).order_by(_TRACES.c.last_ns, _TRACES.c.trace_id).limit(self._traces)
        if limit is not None:
            limit_ns = filters.check_time_ns("older_than", limit)
            timeless = and_(_TRACES.c.last_ns.is_(None), _TRACES.c.changed_at < limit)
            query = query.where(or_(_TRACES.c.last_ns < limit_ns, timeless))
        found = conn.scalars(query.with_for_update(skip_locked=True)).all()
        if not found:
            return 0, used
        if max_bytes is not None and conn.dialect.name == "postgresql":
            used -= _row_bytes(conn, found)
        purge(conn, found)
        conn.execute(delete(_DELETIONS).where(_DELETIONS.c.trace_id.in_(found)))
        return len(found), used if conn.dialect.name == "postgresql" else _page_bytes(conn)


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
        where = "" if trace_ids is None else " WHERE trace_id = ANY(:ids)"
        query = text(f"SELECT coalesce(sum(pg_column_size(t.*)), 0) FROM {name} t{where}")  # noqa: S608  our names
        total += int(conn.execute(query, {} if trace_ids is None else {"ids": list(trace_ids)}).scalar_one())
    return total


def _give_back(engine: Engine) -> None:
    """Let the file shrink by its free pages. Where the file was not made for that (``auto_vacuum``) it stays."""
    free = -1
    while True:
        began = time.monotonic()
        with engine.begin() as conn:
            left = conn.exec_driver_sql("PRAGMA freelist_count").scalar_one()
            if left in (0, free):
                break
            free = left
            # It gives back a page a step, but says that it has no rows: past SQLAlchemy, which would not fetch any.
            conn.connection.cursor().execute(f"PRAGMA incremental_vacuum({_MAX_PAGES})").fetchall()
        time.sleep(min(time.monotonic() - began, 1.0))
    connection = engine.raw_connection()  # a checkpoint is nothing for a transaction
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    finally:
        connection.close()


def _moment(older_than: timedelta | datetime) -> datetime:
    if not isinstance(older_than, timedelta):
        return filters.check_time("older_than", older_than)
    try:
        return datetime.now(UTC) - older_than
    except OverflowError:
        raise InputError("older_than reaches back beyond the calendar") from None
