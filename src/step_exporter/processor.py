"""``StepSpanProcessor`` and ``configure()``: steps that are seen while they run, and every span accounted for.

    handle = step_exporter.configure("sqlite:///steps.db")

On the app's thread a span costs two appends. One thread of our own writes: what ended, in batches; what is open at
that moment, as open; and, in quiet times, what waits in spools.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from step_exporter import environment
from step_exporter.conventions import read
from step_exporter.exporter import DropReason, StepSpanExporter
from step_exporter.forks import renew_in_child
from step_exporter.keeper import Retention
from step_exporter.redaction import Redact
from step_exporter.sdk import OWN_TRACE_ID, SpanConverter, is_own
from step_exporter.store.engine import DatabaseURL
from step_exporter.trees import is_meaningful

_log = logging.getLogger(__name__)

MAX_QUEUE = 20_000
MAX_QUEUE_BYTES = 256 << 20
BATCH = 512
BATCH_BYTES = 8 << 20
INTERVAL_S = 0.5
"""Ended and open spans are in the database that long after, at the latest, while it keeps up."""
MAX_OPEN = 10_000
"""Open spans that are looked at; a program that never ends its spans must not fill the memory through us."""
SIGTERM_S = 5.0
"""How long SIGTERM waits for us: orchestrators kill after 10 or 30 s."""
_SPOOL_RATE = 20_000
"""Spans a second that are spooled: what shutdown reckons with. They cost 26 to 34 µs of CPU each."""
_SETTLE_S = 0.2
"""How long shutdown waits for a writer that it told to stop, before it takes what that has in its hands."""
_STALLED_S = 10.0
"""How long shutdown waits for a writer that does not get on, before it spools what waits."""
_RESCUE = 2_000
"""Spans that are spooled by one transaction then."""
SHUTDOWN_S = 30.0
"""How long shutdown takes at most, if nothing else is asked for."""
_OVERRUN_S = 0.5
"""How far past its deadline shutdown goes on spooling before it drops the rest."""


class FlushReport(NamedTuple):
    """What became of the spans that ended since the program (or its fork) began.

    ``committed`` + ``spooled`` + ``let_go`` + ``pending`` + the sum of ``dropped`` = the spans seen.
    """

    committed: int
    """In the database."""
    spooled: int
    """On this machine's disk: brought in by this process or the next one."""
    dropped: Mapping[str, int]
    """By reason (``exporter.DropReason``)."""
    let_go: int = 0
    """Of trees without an agent, LLM request or tool."""
    pending: int = 0
    """In memory still: at the deadline, or until it is known whether their tree holds an agent."""

    @property
    def seen(self) -> int:
        """All of them."""
        return self.committed + self.spooled + self.let_go + self.pending + sum(self.dropped.values())


class ProcessorStats(NamedTuple):
    """What a processor did so far."""

    report: FlushReport
    open: int
    """Spans that have begun and not ended."""
    queued: int
    """Ended spans that no batch has taken yet."""
    duplicates: int
    collisions: int
    quarantined: int
    adopted: int
    """Spans of processes that are gone, brought in out of their spools."""


class StepSpanProcessor(SpanProcessor):
    """Stores steps as they begin and as they end. Thread-safe; survives forks; never raises.

    Making one connects to nothing and starts no thread: the first span does.
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
        max_queue: int = MAX_QUEUE,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        batch: int = BATCH,
        interval_seconds: float = INTERVAL_S,
    ) -> None:
        """
        Args:
            url, content, redact, record, spool, encryption_key, retention: As of ``StepSpanExporter``.
            max_queue: Ended spans in memory at most; further ones are dropped and counted.
            max_queue_bytes: The same in bytes, as the writer reckons them from the spans it has taken.
            batch: Spans of one transaction.
            interval_seconds: How often ended spans are written and open ones put down.
        """
        self._exporter = StepSpanExporter(
            url,
            content=content,
            redact=redact,
            record=record,
            spool=spool,
            encryption_key=encryption_key,
            retention=retention,
        )
        self._redacts = redact is not None
        self._max_queue = _positive("max_queue", max_queue, MAX_QUEUE)
        self._max_bytes = _positive("max_queue_bytes", max_queue_bytes, MAX_QUEUE_BYTES)
        self._batch = _positive("batch", batch, BATCH)
        self._interval_s = _positive("interval_seconds", interval_seconds, INTERVAL_S)
        self._closed = False
        self._is_finished = False
        """Whether nothing is left to do since shutdown."""
        self._is_replaced = False
        self._renew()
        _processors.add(self)
        renew_in_child(self)

    def _renew(self) -> None:
        """The state of a process: made anew in a forked child, where the queue and the open spans are the parent's."""
        self._queue = deque[ReadableSpan]()
        self._open: dict[int, Span] = {}
        self._room = -1 if self._closed else self._max_queue
        self._looked: dict[int, _Look] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._in_hand: list[ReadableSpan] = []
        self._give_up = False
        self._closing: _Closing | None = None
        self._convert = SpanConverter()
        self._dropped_at_flush = 0

    # The app's side

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note that a span is open."""
        context = span.get_span_context()
        if not context.trace_flags & 1:  # recorded only: its end will be no matter either
            return
        if len(self._open) < MAX_OPEN:
            self._open[id(context)] = span
        if self._thread is None:
            self._start()

    def on_end(self, span: ReadableSpan) -> None:
        """Hand an ended span over."""
        context = span.get_span_context()
        self._open.pop(id(context), None)
        if context is None or not context.trace_flags & 1 or (self._redacts and context[0] == OWN_TRACE_ID):
            return
        waiting = self._queue
        if len(waiting) >= self._room:
            self._refuse(1)
            return
        waiting.append(span)
        if self._thread is None:
            self._start()
        elif len(waiting) == self._batch:
            self._wake.put(None)

    def _refuse(self, count: int) -> None:
        reason = DropReason.AFTER_SHUTDOWN if self._closed else DropReason.QUEUE_FULL
        self._exporter.refuse(count, reason, quietly=self._is_replaced)

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None or self._closed:
                return
            # Made together: gevent may have replaced both kinds, or be about to. A put is safe in a signal handler that
            # interrupts another one; an Event's set is not.
            self._wake = queue.SimpleQueue[queue.SimpleQueue[bool] | None]()
            thread = threading.Thread(target=self._run, name="StepSpanProcessor", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is on its way out: shutdown writes, on its own thread
                return
            self._thread = thread
            _shut_down_with_worker(self)

    # What people ask

    @property
    def is_closed(self) -> bool:
        """Whether it was shut down."""
        return self._closed

    def stand_aside(self) -> None:
        """Say nothing of further spans, which another processor of the same provider stores."""
        self._is_replaced = True

    def force_flush(self, timeout_millis: int | None = 30_000) -> bool:
        """Whether every span that had ended is in the database: none dropped since the last call, none spooled."""
        report = self.flush(30.0 if timeout_millis is None else timeout_millis / 1000)
        dropped = sum(report.dropped.values())
        before, self._dropped_at_flush = self._dropped_at_flush, dropped
        return dropped == before and not (report.spooled or self._queue or self._in_hand)

    def flush(self, timeout_seconds: float = 10.0) -> FlushReport:
        """Write what has ended, and wait for it until the deadline. What the report calls committed is committed."""
        if self._queue and self._thread is None:
            self._start()
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            answer = cast("queue.SimpleQueue[bool]", type(self._wake)())
            self._wake.put(answer)
            with contextlib.suppress(queue.Empty):
                answer.get(timeout=max(0.0, timeout_seconds))
        return self._report()

    def stats(self) -> ProcessorStats:
        """What was done so far."""
        inner = self._exporter.stats()
        return ProcessorStats(
            self._report(),
            open=len(self._open),
            queued=len(self._queue),
            duplicates=inner.duplicates,
            collisions=inner.collisions,
            quarantined=inner.quarantined,
            adopted=inner.adopted,
        )

    def shutdown(self, timeout_seconds: float = SHUTDOWN_S) -> None:
        """Write what has ended, spool what the database does not take in time, and close. Idempotent: a second call
        waits for the first one, which then keeps the earlier of both deadlines, or, in a signal handler that
        interrupted it, leaves it to go on.

        Ctrl-C, or another exception that interrupts the waiting, passes through once what waits is spooled.
        """
        self.shut_down_all((self,), timeout_seconds)

    def _close(self, closing: _Closing) -> None:
        """Close, and take shutdown over unless another call has or did: ``_closing`` says so."""
        with self._starting:
            if self._closing is not None:
                self._closing.hurry(closing)
                return
            if self._is_finished:
                return
            self._closing = closing
            self._closed = True
        self._room = -1
        self._exporter.hurry()
        if self._thread is not None:
            self._wake.put(None)

    def _write_out(self, closing: _Closing) -> None:
        """Wait for the writer, as long as it gets on and there is time to spool what waits. Without one, write."""
        thread = self._thread
        if thread is None:
            self._finish()
        elif thread is not threading.current_thread():
            waiting, until = len(self._queue), time.monotonic() + _STALLED_S
            while thread.is_alive() and time.monotonic() < min(until, closing.last_moment):
                thread.join(0.05)
                if len(self._queue) < waiting:
                    waiting, until = len(self._queue), time.monotonic() + _STALLED_S

    @staticmethod
    def shut_down_all(processors: Sequence[StepSpanProcessor], timeout_s: float) -> None:
        """Shut processors down side by side, by one deadline. Whatever interrupts it, what waits is spooled before."""
        closing = _Closing(timeout_s, lambda: sum(len(one._queue) for one in processors))
        try:
            for one in processors:
                one._close(closing)
            for one in processors:
                if one._closing is closing:
                    one._write_out(closing)
        finally:
            try:
                StepSpanProcessor._rescue_all([one for one in processors if one._closing is closing], closing)
                for one in processors:
                    StepSpanProcessor._wait_for_other(one, closing)
            finally:
                StepSpanProcessor._end_as_told()

    @staticmethod
    def _rescue_all(processors: Sequence[StepSpanProcessor], closing: _Closing) -> None:
        """Take from the writers what they have not written."""
        late = [one for one in processors if not one._is_finished and one._thread is not threading.current_thread()]
        try:
            for one in late:
                one._give_up = True
            until = time.monotonic() + min(closing.timeout_s, _SETTLE_S)
            for one in late:
                if one._thread is not None:
                    one._thread.join(max(0.0, until - time.monotonic()))
            for one in late:
                if not one._is_finished:
                    one._rescue(closing.deadline)
        finally:
            for one in processors:
                one._closing = None

    @staticmethod
    def _wait_for_other(processor: StepSpanProcessor, closing: _Closing) -> None:
        """Wait for another thread that shuts it down; rescue what waits if that thread hangs in the database."""
        other = processor._closing
        if other is None or other.thread == closing.thread:  # it is what a signal handler interrupted: it goes on then
            return

        def wait(until: float) -> None:
            while processor._closing is other and time.monotonic() < until:
                time.sleep(0.02)

        wait(closing.last_moment + 2 * _SETTLE_S)
        if processor._closing is other:
            processor._give_up = True
            processor._rescue(closing.deadline)
            wait(closing.deadline + _OVERRUN_S)

    @staticmethod
    def _end_as_told() -> None:
        """End by the signal, unless it came in the middle of a shutdown: that one ends it then, when it is done."""
        if _signal is None or threading.current_thread() is not threading.main_thread():
            return
        going_on = [one._closing for one in tuple(_processors)]
        if all(closing is None or closing.thread != threading.get_ident() for closing in going_on):
            signal.signal(_signal, signal.SIG_DFL)
            os.kill(os.getpid(), _signal)

    def _rescue(self, deadline: float) -> None:
        """Spool what the writer has not got to, and what it has in its hands if the database does not answer."""
        while self._queue:
            if time.monotonic() > deadline + _OVERRUN_S:
                self._exporter.refuse(len(self._queue), DropReason.DEADLINE)
                self._queue.clear()
                break
            self._exporter.rescue(self._taken(_RESCUE))
        self._exporter.leave()
        self._is_finished = True

    def _report(self) -> FlushReport:
        inner = self._exporter.stats()
        settled = inner.committed + inner.spooled + inner.let_go + sum(inner.dropped.values())
        return FlushReport(
            inner.committed,
            inner.spooled,
            {str(reason): count for reason, count in inner.dropped.items()},
            inner.let_go,
            max(0, inner.seen - settled) + len(self._queue),
        )

    # The writer's side

    def _run(self) -> None:
        more_waits = False
        while True:
            answers: list[queue.SimpleQueue[bool]] = []
            try:
                answer = self._wake.get(timeout=0 if more_waits else self._interval_s)
                while True:
                    if answer is not None:
                        answers.append(answer)
                    answer = self._wake.get_nowait()
            except queue.Empty:
                pass
            closing = self._closed
            try:
                if closing:
                    self._finish()
                else:
                    more_waits = self._pass()
            except Exception:  # the exporter catches what it does; whatever else must not end the thread
                time.sleep(self._interval_s)
            for answer in answers:
                answer.put(True)
            if closing:
                return

    def _pass(self) -> bool:
        """Write what has ended by now, then what is open, then of what waits in spools; whether more waits there."""
        due = len(self._queue)
        while due > 0 and not self._give_up:
            self._in_hand = self._taken(self._batch)
            due -= len(self._in_hand)
            try:
                self._exporter.export(self._in_hand)
            finally:
                self._in_hand = []
        if self._closed:
            return False
        self._put_down_open()
        return self._exporter.tend()

    def _finish(self) -> None:
        """The last pass."""
        self._pass()
        if not self._give_up:
            self._exporter.shutdown()
            self._is_finished = True

    def _taken(self, limit: int) -> list[ReadableSpan]:
        """Take spans off the queue, up to so many or 8 MiB, and make the room what their size leaves."""
        taken: list[ReadableSpan] = []
        size = 0
        while len(taken) < limit and size < BATCH_BYTES:
            try:
                span = self._queue.popleft()
            except IndexError:
                break
            taken.append(span)
            size += _size(span)
        if taken and not self._closed:
            self._room = max(1, min(self._max_queue, self._max_bytes * len(taken) // size))
        return taken

    def _put_down_open(self) -> None:
        """Put meaningful spans that are open down, once. Their role is read again whenever they have changed."""
        open_now = self._open.copy()
        looked = self._looked
        for key in [key for key, look in looked.items() if open_now.get(key) is not look.span]:
            del looked[key]
        found: list[tuple[int, Span]] = []
        for key, span in open_now.items():
            if is_own(span):
                continue
            look = looked.get(key)
            size = len(span.attributes or ())
            if look is not None and (look.is_down or (look.size, look.name) == (size, span.name)):
                continue
            looked[key] = _Look(span, size, span.name, is_down=False)
            try:
                if is_meaningful(read(self._convert(span))):
                    found.append((key, span))
            except Exception:  # it changed meanwhile: the next time
                del looked[key]
        if found and self._exporter.export_open([span for _, span in found]):
            for key, _ in found:
                looked[key] = looked[key]._replace(is_down=True)
        else:
            for key, _ in found:
                del looked[key]

    def after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._renew()


# Shutdown


class _Closing:
    """A call of shutdown that is going on."""

    def __init__(self, timeout_s: float, waiting: Callable[[], int]) -> None:
        self.thread = threading.get_ident()
        self.deadline = time.monotonic() + timeout_s
        self.timeout_s = timeout_s
        self._waiting = waiting

    @property
    def last_moment(self) -> float:
        """When to begin to spool what waits: on a busy machine, that takes several times as long as it should."""
        return self.deadline - max(self.timeout_s / 4, 2 * _SETTLE_S + self._waiting() / _SPOOL_RATE)

    def hurry(self, other: _Closing) -> None:
        """Keep the deadline of another call, if it is earlier."""
        if other.deadline < self.deadline:
            self.deadline, self.timeout_s = other.deadline, other.timeout_s


_signal: int | None = None
"""The one that has asked this process to end."""


def _on_sigterm(number: int, frame: object) -> None:
    global _signal
    if _signal is None:  # else this is in the middle of it
        _signal = number
        StepSpanProcessor.shut_down_all(tuple(_processors), SIGTERM_S)


_Number = TypeVar("_Number", int, float)


def _positive(name: str, value: _Number, default: _Number) -> _Number:
    """A setting that has to be more than 0; the default, said, in place of one that the writer could not work with."""
    if isinstance(value, int | float) and 0 < value < math.inf and (type(value) is int or type(default) is float):  # pyright: ignore[reportUnnecessaryIsInstance]
        return value
    _log.error("step_exporter: %s is %.40r; it must be more than 0. %s is used instead", name, value, default)
    return default


class _Look(NamedTuple):
    """What was seen of an open span when its role was last read."""

    span: Span
    size: int
    name: str
    is_down: bool


def _size(span: ReadableSpan) -> int:
    """Roughly the bytes of a span in memory."""
    size = 1_000
    for attributes in (span.attributes, *(event.attributes for event in span.events)):
        for value in (attributes or {}).values():
            size += 100 + (len(value) if isinstance(value, str | bytes) else 0)
            if isinstance(value, tuple | list):
                size += sum(50 + (len(item) if isinstance(item, str) else 0) for item in value)
    return size


# One call


class Handle:
    """What ``configure`` set up."""

    def __init__(self, provider: TracerProvider, processor: StepSpanProcessor) -> None:
        self.provider = provider
        self.processor = processor

    def flush(self, timeout_seconds: float = 10.0) -> FlushReport:
        """Write what has ended, and wait for it until the deadline."""
        return self.processor.flush(timeout_seconds)

    def stats(self) -> ProcessorStats:
        """What was done so far."""
        return self.processor.stats()

    def shutdown(self, timeout_seconds: float = SHUTDOWN_S) -> FlushReport:
        """Write or spool what has ended, and close. Spans that end afterwards are counted and dropped."""
        self.processor.shutdown(timeout_seconds)
        return self.processor.flush(0)


def configure(
    url: DatabaseURL | None = None,
    *,
    provider: TracerProvider | None = None,
    content: str | bool | None = None,
    redact: Redact | None = None,
    record: str | None = None,
    spool: str | os.PathLike[str] | bool | None = None,
    encryption_key: str | None = None,
    retention: Retention | Mapping[str, object] | None = None,
    max_queue: int = MAX_QUEUE,
    on_sigterm: bool = True,
) -> Handle:
    """Store the steps of this process: take the tracer provider (or make one, if there is none) and add a
    ``StepSpanProcessor``. A second call for the same provider changes nothing, says so where it asks for anything
    else, and gives the same.

    Args:
        url: A SQLite or PostgreSQL URL, or the path of a SQLite file. Default: ``OTEL_EXPORTER_STEPS_URL``, else
            ``sqlite:///steps.db``.
        provider: To add to. Default: the global one.
        content, redact, record, spool, encryption_key, retention: As of ``StepSpanExporter``.
        max_queue: As of ``StepSpanProcessor``.
        on_sigterm: Write or spool what has ended before SIGTERM ends the process, where the app has no handler of its
            own for it. As Python runs handlers between bytecodes of the main thread, one long C call there puts the
            end off until it returns; with False it is at once, and what ended in the last half second is lost.
    """
    if provider is None:
        found = trace.get_tracer_provider()
        if isinstance(found, TracerProvider):
            provider = found
        else:
            provider = TracerProvider()
            trace.set_tracer_provider(provider)
    asked: dict[str, Any] = {
        "url": url,
        "content": content,
        "redact": redact,
        "record": record,
        "spool": spool,
        "encryption_key": encryption_key,
        "retention": retention,
        "max_queue": max_queue,
    }
    processor, before = _configured.get(provider, (None, asked))
    if processor is None or processor.is_closed:
        if processor is not None:
            processor.stand_aside()
        processor = StepSpanProcessor(**asked)
        provider.add_span_processor(processor)
        _configured[provider] = processor, asked
        if on_sigterm:
            _handle_sigterm()
    elif ignored := [name for name, value in asked.items() if value not in (before[name], None, MAX_QUEUE)]:
        _log.warning(
            "step_exporter is configured for this tracer provider already; what this call gives differently is not"
            " used: %s. Shut the first handle down before, or give a provider of its own",
            ", ".join(ignored),
        )
    return Handle(provider, processor)


def _handle_sigterm() -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with contextlib.suppress(ValueError):  # in a sub-interpreter
            signal.signal(signal.SIGTERM, _on_sigterm)


def _shut_down_with_worker(processor: StepSpanProcessor) -> None:
    """A worker that ``multiprocessing`` forked ends by ``os._exit``, past atexit handlers, but not past its own."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _shut_down, (weakref.ref(processor),), exitpriority=0)


def _shut_down(of: weakref.ref[StepSpanProcessor]) -> None:
    processor = of()
    if processor is not None:
        processor.shutdown()


def post_instrument() -> None:
    """``configure()`` under ``opentelemetry-instrument``, if ``OTEL_EXPORTER_STEPS_PENDING`` is true."""
    if os.environ.get(environment.OTEL_EXPORTER_STEPS_PENDING, "").strip().lower() in ("true", "1", "on"):
        configure()


_configured: weakref.WeakKeyDictionary[TracerProvider, tuple[StepSpanProcessor, dict[str, Any]]]
_configured = weakref.WeakKeyDictionary()
_processors: weakref.WeakSet[StepSpanProcessor] = weakref.WeakSet()
