"""``StepSpanExporter``: from the SDK's span processors into the database.

    provider.add_span_processor(BatchSpanProcessor(StepSpanExporter("sqlite:///steps.db")))

The only place that catches everything: whatever happens here, the app does not notice, but for one line of log.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace
from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]  # every exporter uses it, there is no other
    attach,
    detach,
    set_value,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from sqlalchemy.exc import DBAPIError

from step_exporter import environment
from step_exporter.conventions import without_content
from step_exporter.errors import ConfigurationError, DatabaseError, EncryptionError, StepExporterError
from step_exporter.facts import REDACTION_FAILED, RawSpan
from step_exporter.forks import rest_while_forking
from step_exporter.keeper import Retention
from step_exporter.redaction import FAILED, Redact, redacted
from step_exporter.sdk import SpanConverter, at_work, is_own
from step_exporter.selfmetrics import Metrics, exporter_metrics
from step_exporter.sharing import SharedWriter, acquire
from step_exporter.spool import Spool, Write, adopt, spool_directory, spool_home, spooled, spooled_all
from step_exporter.store.encryption import Cipher, make_cipher
from step_exporter.store.engine import DatabaseURL, absolute_url, replace_connections
from step_exporter.store.failures import cause
from step_exporter.store.ingest import MAX_BATCH, WriteResult
from step_exporter.store.notices import Notices
from step_exporter.store.prepare import Prepared, Rejected
from step_exporter.store.processes import Account
from step_exporter.trees import LocalTrees, is_meaningful

_log = logging.getLogger(__name__)

DEFAULT_URL = "sqlite:///steps.db"


class DropReason(StrEnum):
    """Why spans were dropped: there are no other reasons."""

    AFTER_SHUTDOWN = "after_shutdown"
    """They ended after shutdown."""
    CONFIGURATION = "configuration"
    """A setting cannot be used, so that nothing is known of where to write."""
    DATABASE = "database"
    """The database cannot be used, and there is no spool."""
    SPOOL_FULL = "spool_full"
    """The database cannot be used, and the spool holds as much as it may."""
    SPOOL = "spool"
    """The database cannot be used, and neither can the spool; or the spool that they waited in is damaged or gone."""
    QUEUE_FULL = "queue_full"
    """More spans ended than were written meanwhile (``StepSpanProcessor``)."""
    DEADLINE = "deadline"
    """At the deadline of shutdown they were neither written nor spooled (``StepSpanProcessor``)."""
    UNREADABLE = "unreadable"
    """No spans."""
    ERROR = "error"
    """Anything else: a defect of this package, or memory that ran out."""


_REFUSED = {
    DropReason.AFTER_SHUTDOWN: "they ended after shutdown, which has to come last",
    DropReason.QUEUE_FULL: "more ended than are written meanwhile; a larger max_queue takes longer bursts",
    DropReason.DEADLINE: "shutdown had no time left to write or spool them; give it more",
}
"""Why, and what to do, for people."""
_COUNTED = " (further ones are counted in stats())"
_PAUSE_S = 1.0
"""After a failure the database is left alone for so long, doubled each time: an app that exports span by span must not
wait for each."""
_MAX_PAUSE_S = 30.0
_ADOPT_S = 30.0
"""How often spools of processes that are gone are looked for."""
_BRING_IN = 2_000
"""Facts out of spools that one export brings in, of its own and of others each."""


class ExporterStats(NamedTuple):
    """What became of the spans that an exporter was given since it was made (or its process forked).

    ``seen`` = ``committed`` + ``spooled`` + ``let_go`` + ``waiting`` + the sum of ``dropped``, whenever no export is
    going on.
    """

    seen: int
    committed: int
    """In the database, quarantine included."""
    let_go: int
    """Of trees without an agent, LLM request or tool."""
    waiting: int
    """In memory, until their tree turns out to be one or the other."""
    dropped: Mapping[str, int]
    """By reason (``DropReason``)."""
    duplicates: int
    """Of the committed, how many were in the database already."""
    collisions: int
    """Of the committed, how many differ from another span with their id; one of the two is in the quarantine."""
    quarantined: int
    """Of the committed, how many could not be stored as rows."""
    exporters: int
    """How many of this process write to the same database, through one writer; 0 while this one is not open."""
    spooled: int = 0
    """On this machine's disk, because the database could not be used; brought in as soon as it can be."""
    adopted: int = 0
    """Spans of processes that are gone, brought in out of their spools. No part of ``seen``."""


class StepSpanExporter(SpanExporter):
    """Stores spans of AI agents as steps. Thread-safe; survives forks; never raises.

    Making one connects to nothing: the database is opened, and its tables made, at the first export.
    """

    def __init__(
        self,
        url: DatabaseURL | None = None,
        *,
        content: str | bool | None = None,
        redact: Redact | None = None,
        record: str | None = None,
        spool: str | os.PathLike[str] | bool | None = None,
        encryption_key: str | None = None,
        retention: Retention | Mapping[str, object] | None = None,
    ) -> None:
        """
        Args:
            url: A SQLite or PostgreSQL URL, or the path of a SQLite file. Default: ``OTEL_EXPORTER_STEPS_URL``, else
                ``sqlite:///steps.db``.
            content: ``"off"`` stores no prompt, answer, tool argument or result, no error message and no traceback.
                All else stays the same.
                Default: ``OTEL_EXPORTER_STEPS_CONTENT``, else ``"on"``.
            redact: Is given the name of an attribute and each text in it, and returns the text to store. Spans that
                it makes, by calling a traced service, are not stored.
            record: ``"all"`` also keeps spans of local trees without an agent, LLM request or tool. Default:
                ``OTEL_EXPORTER_STEPS_RECORD``, else ``"steps"``.
            spool: The directory in which spans wait on disk while the database cannot be used, or ``"off"``. Default:
                ``OTEL_EXPORTER_STEPS_SPOOL``, else ``$XDG_STATE_HOME/step_exporter``.
            encryption_key: The base64 of 64 bytes: content, attributes and errors are stored encrypted. Of several,
                separated by commas, the first encrypts and all decrypt. Default:
                ``OTEL_EXPORTER_STEPS_ENCRYPTION_KEY``, else nothing is encrypted.
            retention: ``{"days": 30, "max_bytes": "2GB"}``, or one of them: what is beyond is deleted, every ten
                minutes. Default: ``OTEL_EXPORTER_STEPS_RETENTION_DAYS`` and ``…_RETENTION_MAX_BYTES``, else nothing is.
        """
        self._url = url
        self._content = content
        self._redact = redact
        self._record = record
        self._spool_home = spool
        self._encryption_key = encryption_key
        self._retention = retention
        self._shared: SharedWriter | None = None
        self._settings: _Settings | None = None
        self._closed = False
        self._renew()
        rest_while_forking(self)

    @property
    def writing(self) -> threading.RLock:
        """Held while it writes."""
        return self._lock

    def after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._renew()

    def _renew(self) -> None:
        """The state of a process: made anew in a forked child, where the parent's spans and counts are none of ours
        and its locks may be held by threads that do not exist."""
        self._lock = threading.RLock()
        self._busy = False
        self._is_closing = False
        """Whether shutdown waits for the export that it came in the middle of."""
        self._late: list[Sequence[ReadableSpan]] = []
        self._counting = threading.RLock()
        self._seen = 0
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._dropped_at_flush = 0
        self._convert = SpanConverter()
        self._trees = LocalTrees()
        self._notices = Notices(_log)
        self._retry_at = 0.0
        self._pause_s = _PAUSE_S
        self._is_last = False
        self._lacks_key = False
        self._adopt_at = 0.0
        self._bring_in_at = 0.0
        self._spool: Spool | None = None
        self._uncommitted: _Parts = []
        self._told = 0
        """How many reasons for drops the database was told of."""
        self._metrics: Metrics | None = None

    # The SDK's side

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Store spans. Success means committed, let go, or waiting for what becomes of their tree.

        Never raises, but for the app's own Ctrl-C, exit or time limit that arrives meanwhile on its main thread.
        """
        if self._redact is not None:
            spans = [span for span in spans if not is_own(span)]  # else each would make more
            if not spans:
                return SpanExportResult.SUCCESS
        if self._closed:
            self.refuse(len(spans), DropReason.AFTER_SHUTDOWN)
            return SpanExportResult.FAILURE
        with self._lock:
            if self._busy:  # a signal handler ended a span while this thread was in here
                self._late.append(spans)
                return SpanExportResult.SUCCESS
            self._metrics = self._metrics or exporter_metrics()
            with self._metrics.operation(len(spans)) as operation:
                stored = self._work(lambda: self._store(spans), len(spans))
                operation.failed = not stored
        return SpanExportResult.SUCCESS if stored else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether all that was exported is in the database, none dropped since the last call. Waits for an export."""
        if not self._lock.acquire(timeout=max(0, timeout_millis) / 1000):
            return False
        try:
            dropped = self._dropped.total()
            before, self._dropped_at_flush = self._dropped_at_flush, dropped
            return dropped == before and not (self._busy or self._late or self._counts["spooled"])
        finally:
            self._lock.release()

    def shutdown(self, timeout_millis: int = 30_000) -> None:
        """Write what waits and close the database. What is exported afterwards is counted and dropped.

        In a signal handler that interrupts an export on its thread, that export does it when it is done.
        """
        with self._counting:
            if self._closed:
                return
            self._closed = True
        if not self._lock.acquire(timeout=max(0, timeout_millis) / 1000):
            self._leave()
            return
        try:
            if self._busy:
                self._is_closing = True
            else:
                self._close()
        finally:
            self._lock.release()

    def stats(self) -> ExporterStats:
        """What became of the spans so far."""
        with self._counting:
            shared = self._shared
            return ExporterStats(
                seen=self._seen,
                committed=self._counts["committed"],
                let_go=self._counts["let_go"],
                waiting=self._trees.waiting,
                dropped=dict(self._dropped),
                duplicates=self._counts["duplicates"],
                collisions=self._counts["collisions"],
                quarantined=self._counts["quarantined"],
                exporters=shared.users if shared is not None else 0,
                spooled=self._counts["spooled"],
                adopted=self._counts["adopted"],
            )

    # The processor's side

    def export_open(self, spans: Sequence[ReadableSpan]) -> bool:
        """Put spans that have not ended down as open. Whether they are in the database: they are never spooled."""
        with self._lock:
            opened: list[bool] = []
            if not (self._busy or self._closed):
                self._work(lambda: opened.append(self._store_open(spans)))
            return opened == [True]

    def tend(self) -> bool:
        """Bring in what waits in spools, and say that this process lives: for quiet times. Whether some came in, and
        more waits."""
        with self._lock:
            if self._shared is None or self._busy or self._closed or time.monotonic() < self._retry_at:
                return False
            before = self._counts["spooled"], self._counts["adopted"]
            self._work(self._tend)
            if before == (self._counts["spooled"], self._counts["adopted"]):
                return False  # it would only try the same again
            return self._retry_at == 0.0 and (self._adopt_at == 0.0 or self._counts["spooled"] > 0)

    def hurry(self) -> None:
        """Shutdown has begun: after a failure the database is not tried again."""
        self._is_last = True

    def rescue(self, spans: Sequence[ReadableSpan]) -> None:
        """Spool spans past an export that hangs. Waits for nothing but the disk."""
        try:
            settings = self._settings or self._read_settings()
            raws = self._prepared(self._converted(spans, SpanConverter()), settings)
            self._spool_rows([spooled(raw, settings.redact is not None) for raw in raws], None)
        except BaseException as error:
            reason = _reason(error)
            self._notices.say(reason, "step_exporter: spans could not be spooled: %s%s", cause(error), _COUNTED)
            with self._counting:
                self._dropped[reason] += len(spans)
            if not isinstance(error, Exception):
                raise
        finally:  # not before: an export that ends meanwhile counts what was seen and is nowhere as lost
            with self._counting:
                self._seen += len(spans)

    def leave(self) -> None:
        """Close without another word to the database, which may hang, perhaps in ``shutdown``: spool what waits."""
        self._closed = True
        self._leave()

    # Storing

    def _store(self, spans: Sequence[ReadableSpan]) -> None:
        settings, shared = self._opened()
        self._store_raws(self._prepared(self._converted(spans, self._convert), settings), settings, shared)

    def _store_open(self, spans: Sequence[ReadableSpan]) -> bool:
        settings, shared = self._opened()
        self._may_try()
        try:
            shared.make_ready()
            process_id = shared.process()
        except Exception:
            self._pause()
            raise
        raws = [
            replace(raw, ended=False, end_ns=None, process_id=process_id)
            for raw in self._prepared(self._converted(spans, self._convert), settings)
        ]
        prepared, _ = shared.writer.prepare(raws)
        prepared = [item for item in prepared if is_meaningful(item.facts)]  # what redaction has left of them
        if not settings.everything:
            prepared, let_go = self._trees.add(prepared)
            self._counts["let_go"] += let_go
        self._commit(prepared, [])
        return self._retry_at == 0.0

    def _store_raws(self, raws: list[RawSpan], settings: _Settings, shared: SharedWriter) -> None:
        prepared, rejected = shared.writer.prepare(raws)
        if not settings.everything:
            prepared, let_go = self._trees.add(prepared)
            self._counts["let_go"] += let_go
        self._commit(prepared, rejected)

    def _prepared(self, raws: list[RawSpan], settings: _Settings) -> list[RawSpan]:
        """The spans as they may be stored."""
        if not settings.content:
            raws = [without_content(raw) for raw in raws]
        if settings.redact is not None:
            with at_work():
                raws = [redacted(raw, settings.redact, self._redaction_failed) for raw in raws]
        return raws

    def _redaction_failed(self, name: str, why: str) -> None:
        message = "step_exporter: redact failed on %s (%s); '%s' is stored in place of such texts"
        self._notices.say(REDACTION_FAILED, message, name[:100], why, FAILED)

    def _opened(self) -> tuple[_Settings, SharedWriter]:
        settings = self._settings or self._read_settings()
        if self._shared is None:
            self._shared = acquire(settings.url, settings.encryption_key)
            if settings.retention is not None:
                self._shared.retain(settings.retention)
        return settings, self._shared

    def _leave(self) -> None:
        """Spool what an export that hangs in the database has in its hands. Should that be committed all the same, the
        spool's copy will change nothing."""
        with self._counting:
            parts, self._uncommitted = list(self._uncommitted), []
            parts.append((self._trees.drain(), []))  # the export is done with the trees
        for prepared, rejected in parts:
            self._keep(prepared, rejected)
        place = f" at {self._shared.place}" if self._shared is not None else ""
        message = "step_exporter: the database%s did not take all by the end of shutdown (%d spans spooled, %d dropped)"
        _log.warning(message, place, self._counts["spooled"], self._dropped.total())
        self._close_spool()

    def _drain(self) -> None:
        self._commit(self._trees.drain(), [])
        if self._shared is not None and self._counts["spooled"] and time.monotonic() >= self._retry_at:
            self._tend()

    def _commit(self, prepared: list[Prepared], rejected: list[Rejected]) -> None:
        """Write, and spool what cannot be written, in transactions of their own: each is committed or spooled whole."""
        shared = self._shared
        if shared is None or not (prepared or rejected):
            return
        parts: _Parts = [
            *(([], rejected[at : at + MAX_BATCH]) for at in range(0, len(rejected), MAX_BATCH)),
            *((prepared[at : at + MAX_BATCH], []) for at in range(0, len(prepared), MAX_BATCH)),
        ]
        self._uncommitted = parts
        while parts:
            spans, refused = parts[0]
            try:
                self._may_try()
                result = shared.make_ready().commit(spans, refused)
            except BaseException as error:
                if isinstance(error, Exception) and not isinstance(error, _LeftAloneError):
                    self._lacks_key = _is_encryption(error)
                    self._pause()
                with self._counting:
                    left = [] if self._uncommitted is not parts else parts
                    self._uncommitted = []
                for spans, refused in left:
                    self._keep(spans, refused, error)
                raise
            with self._counting:
                was_rescued = self._uncommitted is not parts
                del parts[0]
            ended = 0 if was_rescued else sum(item.encoded.raw.ended for item in spans) + len(refused)
            self._count(result, ended)
        self._reached()
        if self._counts["spooled"] or time.monotonic() >= self._adopt_at or len(self._dropped) > self._told:
            self._tend()

    def _may_try(self) -> None:
        if time.monotonic() < self._retry_at:
            raise _LeftAloneError

    def _reached(self) -> None:
        self._retry_at, self._pause_s = 0.0, _PAUSE_S
        self._lacks_key = False

    def _pause(self) -> None:
        self._retry_at = math.inf if self._is_last else time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)

    # The spool

    def _keep(self, prepared: list[Prepared], rejected: list[Rejected], error: BaseException | None = None) -> None:
        """Spool what could not be committed, or count it as dropped."""
        self._spool_rows(spooled_all(prepared, rejected, self._redact is not None), error)

    def _spool_rows(self, rows: list[Rejected], error: BaseException | None) -> None:
        if not rows:
            return
        kept = 0
        reason = _reason(error) if error is not None else DropReason.DATABASE
        spool = self._own_spool()
        if self._lacks_key and self._cipher() is None:
            spool, reason = None, DropReason.CONFIGURATION  # no plain text beside an encrypted database
        if spool is not None:
            reason = DropReason.SPOOL_FULL
            try:
                kept = spool.put(rows)
            except Exception as failure:
                reason = DropReason.SPOOL
                self._notices.say(reason, "step_exporter: spans are lost: %s%s", cause(failure), _COUNTED)
            self._count_lost(spool)
        with self._counting:
            self._counts["spooled"] += kept
            if kept < len(rows):
                self._dropped[reason] += len(rows) - kept

    def _release(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.release(id(self), self._account(), is_reachable=time.monotonic() >= self._retry_at)

    def _close_spool(self) -> None:
        """Leave what is in it to whoever reaches the database next."""
        if self._spool is not None:
            self._spool.close()

    def _own_spool(self) -> Spool | None:
        with self._counting:
            if self._spool is None and (directory := self._spool_directory()) is not None:
                self._spool = Spool(directory, cipher=self._cipher())
            return self._spool

    def _spool_directory(self) -> Path | None:
        return None if self._settings is None else self._settings.spool

    def _cipher(self) -> Cipher | None:
        return None if self._settings is None else self._settings.cipher

    def _account(self) -> Account:
        counts = self._counts
        with self._counting:
            dropped = {str(reason): count for reason, count in self._dropped.items()}
        return Account(self._seen, counts["committed"], counts["spooled"], dropped)

    def _tend(self) -> None:
        """Bring in what waits here and what others left, and say that this process lives. The database is left alone
        only if it was the database that failed: a spool that cannot be used is said, and costs nothing else."""
        shared = self._shared
        if shared is None:
            return
        try:
            shared.make_ready()
            account = self._account()
            shared.beat(id(self), account)
            self._told = len(account.dropped)
        except Exception:
            self._pause()
            raise
        due = self._spool is not None and time.monotonic() >= self._bring_in_at
        if due and not self._move(shared, self._bring_in):
            self._bring_in_at = time.monotonic() + _ADOPT_S
        if time.monotonic() >= self._adopt_at:
            self._adopt_at = time.monotonic() + _ADOPT_S
            self._move(shared, self._adopt)
        self._reached()

    def _move(self, shared: SharedWriter, out_of: Callable[[Write], None]) -> bool:
        """Move facts out of spools into the database; whether the spools could be used. Raises what the database
        does."""
        is_database = False

        def write(raws: Sequence[RawSpan], rejected: Sequence[Rejected]) -> None:
            nonlocal is_database
            try:
                prepared, refused = shared.writer.prepare(raws)
                self._count(shared.writer.commit(prepared, [*refused, *rejected]), 0)
            except Exception:
                is_database = True
                self._pause()
                raise

        try:
            out_of(write)
        except Exception as error:
            if is_database:
                raise
            self._notices.say("spools", "step_exporter cannot bring in what was spooled: %s", cause(error))
            return False
        return True

    def _bring_in(self, write: Write) -> None:
        spool = self._spool
        moved = 0
        try:
            while spool is not None and moved < _BRING_IN and (brought := spool.bring_in(write)):
                moved += brought
                with self._counting:
                    self._counts["spooled"] -= brought
                    self._counts["committed"] += brought
        finally:
            self._count_lost(spool)

    def _adopt(self, write: Write) -> None:
        settings, directory = self._settings, self._spool_directory()
        if settings is not None and directory is not None and directory.is_dir():
            adopted = adopt(directory, write, _BRING_IN, self._cipher(), _Rules(settings, self._prepared))
            self._counts["adopted"] += adopted
            if adopted >= _BRING_IN:
                self._adopt_at = 0.0

    def _count_lost(self, spool: Spool | None) -> None:
        """Count what a damaged spool has taken with it as dropped."""
        if spool is not None and (lost := spool.take_lost()):
            with self._counting:
                self._counts["spooled"] -= lost
                self._dropped[DropReason.SPOOL] += lost

    def _converted(self, spans: Sequence[ReadableSpan], convert: SpanConverter) -> list[RawSpan]:
        raws: list[RawSpan] = []
        for span in spans:
            try:
                raws.append(convert(span))
            except Exception as error:  # no span of the SDK's
                self._dropped[DropReason.UNREADABLE] += 1
                self._notices.say(
                    DropReason.UNREADABLE, "step_exporter: a span cannot be read: %s%s", cause(error), _COUNTED
                )
        return raws

    def _read_settings(self) -> _Settings:
        self._settings = _Settings.of(
            self._url,
            self._content,
            self._redact,
            self._record,
            self._spool_home,
            self._encryption_key,
            self._retention,
        )
        return self._settings

    # Faults and counts

    def _work(self, work: Callable[[], None], given: int = 0) -> bool:
        """``_take``, with the lock held, and then do what signal handlers on this thread wanted meanwhile: they must
        wait for nothing that this thread holds."""
        try:
            self._busy = True
            if self._closed and not self._is_closing:  # since the caller looked
                if given:
                    self.refuse(given, DropReason.AFTER_SHUTDOWN)
                return False
            stored = self._take(work, given)
            return self._store_late() and stored
        finally:
            self._busy = False
            if self._is_closing:
                self._close()

    def _store_late(self) -> bool:
        stored = True
        while self._late:
            late = self._late.pop()
            stored &= self._take(lambda late=late: self._store(late), len(late))
        return stored

    def _close(self) -> None:
        self._is_closing = False
        try:
            self._store_late()
            self._take(self._drain, 0)
        finally:
            self._close_spool()
            self._take(self._release, 0)

    def _take(self, work: Callable[[], None], given: int) -> bool:
        """Do work on so many new spans; whether none was dropped. What it did not account for was lost to its error."""
        with self._counting:
            self._seen += given
        before = self._dropped.total()
        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        error: BaseException | None = None
        try:
            work()
        except BaseException as raised:  # asyncio.CancelledError would end the SDK's worker for good
            error = raised
        finally:
            detach(token)
        if error is not None and not isinstance(error, Exception):
            self._recover()
        reason = _reason(error)
        with self._counting:
            counts = self._counts
            accounted = counts["committed"] + counts["spooled"] + counts["let_go"] + self._trees.waiting
            lost = self._seen - accounted - self._dropped.total()
            if lost > 0:
                self._dropped[reason] += lost
            lost = self._dropped.total() - before
        if error is not None:
            place = f" at {self._shared.place}" if self._shared is not None else ""
            spool = self._spool
            kept = f", {spool.waiting} wait in {spool.directory}" if spool is not None and spool.waiting else ""
            message = "step_exporter: spans could not be stored%s (%d dropped%s): %s%s"
            if not isinstance(error, _LeftAloneError):  # said at the failure before
                self._notices.say(reason, message, place, lost, kept, cause(error), _COUNTED)
            if _is_the_apps(error):
                try:
                    raise error
                finally:
                    del error  # or its traceback would keep this frame, which keeps it
        return self._dropped.total() == before

    def _recover(self) -> None:
        """After an exception that may have come at any point, as Ctrl-C does: close the connections that nobody gave
        back, and count what is in the spool."""
        try:
            if self._shared is not None:
                replace_connections(self._shared.engine)
            more = self._spool.recover() if self._spool is not None else 0
        except Exception as error:
            self._notices.say("recover", "step_exporter cannot begin anew after an interruption: %s", cause(error))
            return
        with self._counting:
            self._counts["spooled"] += more
            self._counts["committed"] -= min(0, more)  # it had just been brought in

    def refuse(self, given: int, reason: DropReason, *, quietly: bool = False) -> None:
        """Count spans as dropped that nobody will be given, and say so."""
        if not given:
            return
        with self._counting:
            self._seen += given
            self._dropped[reason] += given
            place = f" for {self._shared.place}" if self._shared is not None else ""
        if quietly or sys.is_finalizing():  # then logging may be gone, and writes tracebacks of its own
            return
        message = "step_exporter: spans%s are dropped (%s): %s%s"
        self._notices.say(reason, message, place, reason, _REFUSED.get(reason, "they were refused"), _COUNTED)

    def _count(self, result: WriteResult, committed: int) -> None:
        self._counts["committed"] += committed
        self._counts["duplicates"] += result.duplicates
        self._counts["collisions"] += result.collisions
        self._counts["quarantined"] += result.quarantined


_Parts = list[tuple[list[Prepared], list[Rejected]]]
"""What goes into transactions of their own."""


class _Settings(NamedTuple):
    url: DatabaseURL
    content: bool
    redact: Redact | None
    everything: bool
    spool: Path | None
    """The directory of this database's spools."""
    encryption_key: str | None
    cipher: Cipher | None
    """Of the spool."""
    retention: Retention | None

    @classmethod
    def of(
        cls,
        url: DatabaseURL | None,
        content: str | bool | None,
        redact: Redact | None,
        record: str | None,
        spool: str | os.PathLike[str] | bool | None,
        encryption_key: str | None,
        retention: Retention | Mapping[str, object] | None,
    ) -> _Settings:
        """Arguments, else environment variables, else defaults. Raises ``ConfigurationError``."""
        get = os.environ.get
        if redact is not None and not callable(redact):
            raise ConfigurationError("redact must be a function of an attribute's name and a text in it")
        # Once: the working directory may change, and the database stays where it is.
        place = absolute_url(url if url is not None else get(environment.OTEL_EXPORTER_STEPS_URL) or DEFAULT_URL)
        home = spool_home(spool if spool is not None else get(environment.OTEL_EXPORTER_STEPS_SPOOL) or None)
        return cls(
            place,
            environment.keeps_content(content),
            redact,
            environment.choice("record", record, environment.OTEL_EXPORTER_STEPS_RECORD, ("steps", "all")) == "all",
            None if home is False else spool_directory(place, home),
            encryption_key,
            make_cipher(encryption_key),
            Retention.of(retention),
        )


class _Rules(NamedTuple):
    """What a process lets in out of the spools of others: no more than what it stores of its own."""

    settings: _Settings
    prepared: Callable[[list[RawSpan], _Settings], list[RawSpan]]

    def span(self, raw: RawSpan, is_redacted: bool) -> RawSpan:
        """Without what the settings do not let in."""
        (raw,) = self.prepared([raw], self.settings._replace(redact=None) if is_redacted else self.settings)
        return raw

    def rejected(self, row: Rejected) -> Rejected:
        """Its bytes are as the other process had them, so they stay out where anything may have to."""
        if self.settings.content and self.settings.redact is None:
            return row
        return row._replace(detail="", body=b"")


class _LeftAloneError(DatabaseError):
    """The database is left alone for a moment after a failure."""


def _reason(error: BaseException | None) -> str:
    if isinstance(error, ConfigurationError):
        return DropReason.CONFIGURATION
    return DropReason.DATABASE if isinstance(error, StepExporterError | DBAPIError) else DropReason.ERROR


def _is_encryption(error: BaseException) -> bool:
    return isinstance(error, EncryptionError) or isinstance(error.__cause__, EncryptionError)


def _is_the_apps(error: BaseException) -> bool:
    """Whether it is an exception of the app's own that a signal handler has raised in here: Ctrl-C, an exit, a time
    limit."""
    ours = isinstance(error, Exception | asyncio.CancelledError | GeneratorExit)
    return not ours and threading.current_thread() is threading.main_thread()
