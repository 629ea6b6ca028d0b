"""From spans to rows: one transaction that stores the facts and everything that follows from them.

    lock the traces (sorted) · insert the facts · load what the derivation lacks · derive · write what changed

A batch that fails because another writer was in the way, or the connection went, is tried again for a while; one
that fails on its data is halved down to the span, which goes to the quarantine while its neighbours are stored.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from step_exporter.conventions.content import ContentMemo
from step_exporter.derive.rows import Changes
from step_exporter.errors import DatabaseError
from step_exporter.facts import RawSpan
from step_exporter.store.bulk import Statements
from step_exporter.store.changes import write_changes
from step_exporter.store.codec import Sources
from step_exporter.store.collisions import QUARANTINE_COLUMNS
from step_exporter.store.failures import cause, is_data, is_lost, is_missing_parent, is_passing, is_timeout
from step_exporter.store.known import KnownTraces
from step_exporter.store.notices import Notices
from step_exporter.store.prepare import UNSTORABLE, Prepared, Rejected, prepare, reject
from step_exporter.store.transaction import (
    catch_up,
    insert_facts,
    lock_traces,
    settle_contested,
    traces_made,
    update_traces,
)

_notices = Notices(logging.getLogger(__name__))

MAX_BATCH = 2_000
"""Spans of one transaction."""
UNDERIVED = "underived"
"""The reason in ``quarantine`` of a trace whose facts are stored but whose rows could not be derived: a case for
``rebuild``."""
_MAX_UNDERIVED = 10_000
_MAX_SHARED = 10_000
"""Names of organizations and providers that are remembered as stored; forgetting them costs an insert that does
nothing."""
_LOSSES = 3
"""So often a batch may cost its connection before it is halved: the server may end what takes too long that way."""
_MAX_TEXTS = 32
"""Conversations whose last prompt is remembered, so that the next one is parsed from where it goes on."""


class WriteResult(NamedTuple):
    """What became of the spans of one ``write``. ``new``, ``duplicates``, ``collisions`` and ``quarantined`` sum to
    the spans given; all are in the database, committed."""

    new: int = 0
    """Facts that were not there, or ends of spans that were open."""
    duplicates: int = 0
    """Facts that were there already."""
    collisions: int = 0
    """Facts that differed from what their key holds; the loser is in the quarantine."""
    quarantined: int = 0
    """Spans that could not be stored as rows: no valid id, or refused by the database."""

    @property
    def committed(self) -> int:
        """How many spans are safe."""
        return sum(self)


class WriteError(DatabaseError):
    """The database took none or only a part of the spans."""

    def __init__(self, message: str, result: WriteResult) -> None:
        super().__init__(message)
        self.result = result
        """What was committed before."""


class Writer:
    """Writes spans to one database, whose tables must be there (``ensure_schema``). Thread-safe."""

    def __init__(self, engine: Engine, *, max_known_spans: int = 30_000, patience_s: float = 10.0) -> None:
        """
        Args:
            engine: Made by ``create_sync_engine``.
            max_known_spans: Spans of live traces that are remembered (4 KiB each), so that a batch costs what is new.
            patience_s: How long a batch is tried again while other writers or the connection are in its way.
        """
        self.engine = engine
        self.sql = Statements(engine.dialect)
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._known = KnownTraces(max_known_spans)
        self._sources = Sources()
        self._memo = ContentMemo(max_texts=_MAX_TEXTS)
        self._shared: set[tuple[str, str]] = set()
        """Organizations and providers (table, id) that were there when they were last looked for."""
        self._underived: dict[str, None] = {}

    def write(self, raws: Iterable[RawSpan]) -> WriteResult:
        """Store spans and all that follows from them; returns after the commit.

        Raises ``WriteError`` if the database cannot be used; spans of earlier transactions stay.
        """
        return self.commit(*self.prepare(raws))

    def prepare(self, raws: Iterable[RawSpan]) -> tuple[list[Prepared], list[Rejected]]:
        """The spans made ready to store, and those that can only go to the quarantine. Needs no database."""
        with self._lock:
            return prepare(raws, self._sources, self._memo)

    def commit(self, prepared: Sequence[Prepared], rejected: Sequence[Rejected] = ()) -> WriteResult:
        """``write`` what ``prepare`` gave."""
        with self._lock:
            done: Counter[str] = Counter()
            try:
                for at in range(0, len(rejected), MAX_BATCH):
                    self._quarantine(rejected[at : at + MAX_BATCH], done)
                for at in range(0, len(prepared), MAX_BATCH):
                    self._store(prepared[at : at + MAX_BATCH], done)
            except Exception as error:
                raise WriteError(cause(error), WriteResult(**done)) from error
            return WriteResult(**done)

    def forget(self) -> None:
        """Remember nothing of the database: it is another one now."""
        with self._lock:
            self._known.clear()
            self._shared.clear()
            self._underived.clear()

    def after_fork(self) -> None:
        """Start anew in a forked child: another thread may have held the lock, or been in the middle of a batch."""
        self._lock = threading.Lock()
        self._known.clear()
        self._memo = ContentMemo(max_texts=_MAX_TEXTS)

    # Errors

    def _store(self, batch: Sequence[Prepared], done: Counter[str]) -> None:
        """Store a batch, by halves where its data is refused or it takes longer than the database allows."""
        try:
            done.update(self._patiently(batch))
        except _DeriveError as error:
            traces = sorted({item.facts.trace_id for item in batch})
            if len(traces) == 1:
                self._give_up_deriving(traces[0], error)
                done.update(self._patiently(batch))
                return
            half = set(traces[: len(traces) // 2])
            self._store([item for item in batch if item.facts.trace_id in half], done)
            self._store([item for item in batch if item.facts.trace_id not in half], done)
        except Exception as error:
            if not (is_data(error) or isinstance(error, _TooMuchError)):
                raise
            if len(batch) == 1:
                why = cause(error)
                _notices.say(UNSTORABLE, "step_exporter cannot store a span: %s. It is in the table quarantine.", why)
                self._quarantine([reject(batch[0].encoded.raw, UNSTORABLE, why)], done)
                return
            middle = len(batch) // 2
            self._store(batch[:middle], done)
            self._store(batch[middle:], done)

    def _patiently(self, batch: Sequence[Prepared]) -> Mapping[str, int]:
        """Store a batch, trying again for a while if something passing is in the way."""
        deadline = time.monotonic() + self._patience_s
        pause = 0.01
        lost = 0
        renewed = False
        while True:
            try:
                return self._transact(batch)
            except _UnknownNamesError as unknown:
                self._add_names(unknown)
            except _DeriveError as error:
                if renewed or not is_missing_parent(error.__cause__):
                    raise
                # An organization or provider is gone that was there: somebody deleted what no step used, or this is
                # another server, that lags behind, or a backup.
                self._shared.clear()
                renewed = True
            except Exception as error:
                lost += is_lost(error)
                if len(batch) > 1 and (is_timeout(error) or lost == _LOSSES):
                    raise _TooMuchError from error
                if not is_passing(error) or time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, 1.0)

    def _give_up_deriving(self, trace_id: str, error: _DeriveError) -> None:
        """Keep the facts of a trace, whose rows are out of date from now on; no fact is lost."""
        message = (
            "step_exporter cannot derive the steps of trace %s; its spans are stored. Rebuild it when that is fixed."
        )
        _notices.say(UNDERIVED, message, trace_id, error=error.__cause__)
        self._underived[trace_id] = None
        if len(self._underived) > _MAX_UNDERIVED:
            del self._underived[next(iter(self._underived))]
        self._quarantine([Rejected(trace_id, None, UNDERIVED, cause(error.__cause__ or error), b"")], None)

    def _quarantine(self, rejected: Sequence[Rejected], done: Counter[str] | None) -> None:
        with self.engine.begin() as conn:
            now = self.sql.now()
            self.sql.insert(conn, "quarantine", QUARANTINE_COLUMNS, [(*item, now) for item in rejected])
        if done is not None:
            done["quarantined"] += len(rejected)

    # Names that traces share

    def _add_names(self, names: _UnknownNamesError) -> None:
        """Insert organizations and providers in a transaction of their own, before any trace is locked: two writers
        that insert the same ones in different orders would wait for each other."""
        with self.engine.begin() as conn:
            self._insert_names(conn, names)
        if len(self._shared) > _MAX_SHARED:
            self._shared.clear()
        self._shared.update(("organizations", id_) for id_, _ in names.organizations)
        self._shared.update(("providers", id_) for id_, _ in names.providers)

    def _insert_names(self, conn: Connection, names: _UnknownNamesError) -> None:
        self.sql.insert(conn, "organizations", ("id", "name"), names.organizations)
        self.sql.insert(conn, "providers", ("id", "name"), names.providers)

    def _have_names(self, conn: Connection, changes: Iterable[tuple[str, Changes]]) -> None:
        """See that the organizations and providers that the changes name are there. On SQLite, where writers take
        turns, they are inserted each time: its writer does not check foreign keys (``create_sync_engine``)."""
        organizations: dict[str, str] = {}
        providers: dict[str, str] = {}
        for _, change in changes:
            organizations.update(
                item for item in change.organizations if ("organizations", item[0]) not in self._shared
            )
            providers.update(item for item in change.providers if ("providers", item[0]) not in self._shared)
        if organizations or providers:
            unknown = _UnknownNamesError(sorted(organizations.items()), sorted(providers.items()))
            if self.engine.dialect.name != "sqlite":
                raise unknown
            self._insert_names(conn, unknown)

    # The transaction

    def _transact(self, batch: Sequence[Prepared]) -> Mapping[str, int]:
        """One transaction. What is known of its traces is put back only after the commit."""
        with self.engine.begin() as conn:
            now = self.sql.now()  # one time for all: whoever follows looks for steps in the traces that changed since
            works = lock_traces(conn, self.sql, batch, self._known, now)
            counts = insert_facts(conn, self.sql, works)
            derived = [work for work in works if work.trace_id not in self._underived]
            with _deriving():
                catch_up(conn, derived)
            counts.update(settle_contested(conn, self.sql, works))
            with _deriving():
                changes = [(work.trace_id, work.derive()) for work in derived if work.facts]
            self._have_names(conn, changes)
            with _deriving():
                write_changes(conn, self.sql, changes, traces_made(works), now)
            update_traces(conn, self.sql, works, now)
        for work in works:
            if work.known is not None and work.trace_id not in self._underived:
                self._known.put(work.trace_id, work.after_commit(work.known))
        return counts


class _TooMuchError(DatabaseError):
    """The database gives up in the middle: a part of it may pass."""


class _DeriveError(Exception):
    """The facts are fine, but what was made of them is not."""


class _UnknownNamesError(Exception):
    """Organizations and providers that have to be there before the transaction."""

    def __init__(self, organizations: list[tuple[str, str]], providers: list[tuple[str, str]]) -> None:
        super().__init__()
        self.organizations = organizations
        self.providers = providers


@contextmanager
def _deriving() -> Generator[None]:
    """Tell errors in deriving from errors of the facts and of the database."""
    try:
        yield
    except Exception as error:
        if is_data(error):
            raise _DeriveError from error
        raise
