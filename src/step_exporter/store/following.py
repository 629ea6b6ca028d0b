"""Steps as they come and change: what ``tail`` asks again and again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, and_, func, or_, select

from step_exporter.models import utc_now
from step_exporter.store import reads
from step_exporter.store.conditions import step_conditions
from step_exporter.store.filters import StepFilter
from step_exporter.store.processes import Finder
from step_exporter.store.query import StepStore
from step_exporter.store.reads import STEPS, TRACES
from step_exporter.store.records import StepRecord

OVERLAP = timedelta(seconds=30)
"""What was written in that time is looked at again: rows carry the writer's clock from before its commit."""
REMEMBERED = 10_000
"""Steps of that time that are remembered at most, the last ones written. One look finds twice as many."""
_CHUNK = 500


class Change(NamedTuple):
    """A step, and when it was written last. In the order in which they are looked at."""

    updated_at: datetime
    trace_id: str
    id: str


class Follower:
    """Finds the steps of a store that are new or have changed since it was asked last, in bounded memory."""

    def __init__(self, store: FollowedStore, which: StepFilter) -> None:
        """What is there already is no news."""
        self._store = store
        self._which = which
        begin = Change(store.last_change() - OVERLAP, "", "")
        last = store.changes(which, begin, REMEMBERED, newest=True)
        self._seen = frozenset(last)
        self._first = begin if len(last) < REMEMBERED else last[0]

    def news(self) -> list[StepRecord]:
        """The first ones written first, those of one commit by their start; a flood of them in several calls."""
        changes = self._look()
        written = {(change.trace_id, change.id): change.updated_at for change in changes}

        def place(step: StepRecord) -> tuple[datetime, datetime, int]:
            start_ns = step.metrics and step.metrics.step_start_ns  # created_at is cut to microseconds
            return written[step.trace_id, step.id], step.created_at, start_ns or 0

        return sorted(self._store.steps_of(changes), key=place)

    def _look(self) -> list[Change]:
        found = self._store.changes(self._which, self._first, 2 * REMEMBERED)
        if not found:
            return []
        new = [change for change in found if change not in self._seen]
        # A writer whose clock is ahead must not hide what the others write.
        begin = Change(min(found[-1].updated_at, utc_now()) - OVERLAP, "", "")
        recent = [change for change in found if change >= begin]
        kept = recent[-REMEMBERED:]
        self._seen = frozenset(kept)
        self._first = max(self._first, begin if len(kept) == len(recent) else kept[0])
        return new


class FollowedStore(StepStore):
    """A ``StepStore`` that can be asked for changes."""

    def finder(self) -> Finder:
        """Finds what is abandoned, beside reading."""
        return Finder(self._engine, self._writing)

    def last_change(self) -> datetime:
        """When a fact last came, by the clock of whoever wrote it; now, if that is later or there is none."""
        return min(self._run(_last_change) or utc_now(), utc_now())

    def changes(self, which: StepFilter, first: Change, limit: int, *, newest: bool = False) -> list[Change]:
        """What was written from there on, the first or the ``newest`` ones, in order."""
        return self._run(_changes, self._within(which), first, limit, newest)

    def steps_of(self, changes: Sequence[Change]) -> list[StepRecord]:
        """The steps as they are now; those that are gone are left out."""
        found: list[StepRecord] = []
        for at in range(0, len(changes), _CHUNK):
            keys = [(change.trace_id, change.id) for change in changes[at : at + _CHUNK]]
            found += self._run(reads.steps_by_key, keys)
        return found


def _last_change(conn: Connection) -> datetime | None:
    return conn.scalar(select(func.max(TRACES.c.changed_at)))


def _changes(conn: Connection, which: StepFilter, first: Change, limit: int, newest: bool) -> list[Change]:
    """Looks at all traces, which are small rows, and at the steps of those that changed: an index on either time would
    cost every write."""
    columns = (STEPS.c.updated_at, STEPS.c.trace_id, STEPS.c.id)
    at, trace_id, id_ = first
    query = select(*columns).where(
        STEPS.c.trace_id.in_(select(TRACES.c.trace_id).where(TRACES.c.changed_at >= at)),
        or_(
            STEPS.c.updated_at > at,
            and_(
                STEPS.c.updated_at == at,
                or_(STEPS.c.trace_id > trace_id, and_(STEPS.c.trace_id == trace_id, STEPS.c.id >= id_)),
            ),
        ),
        *step_conditions(which, conn.dialect.name),
    )
    order = [column.desc() for column in columns] if newest else columns
    return sorted(Change(*row) for row in conn.execute(query.order_by(*order).limit(limit)))
