"""``StepStore`` and ``AsyncStepStore``: how programs read steps, runs and messages.

    with StepStore("sqlite:///steps.db") as store:
        for step in store.steps(StepFilter(agent_name="weather", status="failed")):
            print(step.trace_id, step.error_type, step.metrics)

    async with AsyncStepStore("postgresql://localhost/steps") as store:
        trace = await store.trace("4bf92f35")

Both have the same methods, give the same records (``store.records``) and raise the same errors. What reads never
writes: SQLite files are opened read-only, PostgreSQL transactions are; each call reads one snapshot. What writes
(``feedback``, ``tags``, ``transaction``, ``delete``, ``prune``, ``rebuild``) opens a connection of its own, and returns
after the commit. Every call may raise ``DatabaseError`` (``SchemaError`` where the tables are missing, somebody else's
or of a newer version, ``NotFoundError`` where there is no such file); what it raises besides is said there.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import BinaryIO, Concatenate, Literal, ParamSpec, Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from step_exporter.errors import DatabaseError, InputError
from step_exporter.store import audit, editing, export, filters, organizations, reads, rebuild, retention, statistics
from step_exporter.store.audit import Caller
from step_exporter.store.engine import DatabaseURL, create_async_store_engine, create_sync_engine, display_url
from step_exporter.store.export import Format
from step_exporter.store.filters import AuditFilter, Order, RunFilter, StepFilter, check_text
from step_exporter.store.rebuild import Difference
from step_exporter.store.records import AuditRecord, MessageRecord, Page, RunRecord, StepRecord, TraceRecord
from step_exporter.store.retention import Pruned
from step_exporter.store.schema import check_schema
from step_exporter.store.statistics import Group, StatsRecord

__all__ = ["AsyncStepStore", "AuditFilter", "RunFilter", "StepFilter", "StepStore"]

Feedback = Literal["positive", "negative"]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", StepFilter, RunFilter, AuditFilter)


class _Reader:
    """What both stores know: where they read, for whom, and whether the schema there was looked at."""

    def __init__(self, url: DatabaseURL, organization_id: str | None) -> None:
        self._place = display_url(url)
        self._organization_id = None if organization_id is None else check_text("organization_id", organization_id)
        self._checked = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._place!r})"

    def _within(self, which: F) -> F:
        """What a filter asks for of what the store may read."""
        if self._organization_id is None:
            return which
        if which.organization_id not in (None, self._organization_id):
            return replace(which, trace_ids=())
        return replace(which, organization_id=self._organization_id)

    def _call(self, conn: Connection, op: Callable[[Connection], T]) -> T:
        if not self._checked:
            check_schema(conn)
            self._checked = True
        return op(conn)

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:  # the latter where the driver runs a select (``kept``)
            cause = getattr(error, "orig", None) or error
            raise DatabaseError(f"Cannot use {self._place}: {cause}") from error


class StepStore(_Reader):
    """Reads a database of steps, and keeps it. Threads may share one. Close it, or use it as a context manager.

    ``url`` is any SQLite or PostgreSQL URL, or the path of a SQLite file. Making a store connects to nothing;
    a URL that names no such database raises ``ConfigurationError``.

    With an ``organization_id`` every method finds and changes what belongs to that organization only: its steps and
    runs, their messages and spans. What is another one's, or nobody's, is as if it were not there. ``delete``,
    ``prune``, ``rebuild``, ``verify`` and OTLP ``export`` take traces that belong to it wholly
    (``docs/data-control.md``).

    ``actor`` is who the audit trail says made a change, where the call has no ``by``; default: the operating system's
    user.

    ``encryption_key`` is as of ``StepSpanExporter``. Without the key of an encrypted database steps, runs and
    statistics can be read, and texts show as ``<encrypted>``; what needs the spans (``trace``, ``step`` by the id of a
    span, ``verify``, OTLP ``export``) and what derives (``feedback``, ``rebuild``) raises ``EncryptionError``, as
    whatever meets an encrypted text does with a wrong key.
    """

    def __init__(
        self,
        url: DatabaseURL,
        *,
        organization_id: str | None = None,
        actor: str | None = None,
        encryption_key: str | None = None,
    ) -> None:
        super().__init__(url, organization_id)
        self._actor = None if actor is None else check_text("actor", actor)
        self._engine = create_sync_engine(url, read_only=True, encryption_key=encryption_key)
        self._writing = create_sync_engine(url, encryption_key=encryption_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Closing twice does nothing more; a store that is asked again opens new ones."""
        self._engine.dispose()
        self._writing.dispose()

    def find_trace(self, trace_id: str) -> str:
        """The whole id of the one trace whose id begins so: at least 4 hexadecimal digits, either case.

        Raises ``InputError`` if these are none, ``NotFoundError``, and ``AmbiguousIdError``, which lists candidates.
        """
        return self._run(reads.find_trace, trace_id, self._organization_id)

    def trace(self, trace_id: str) -> TraceRecord:
        """All of one trace: runs, steps, spans, messages and how they hang together. ``trace_id`` may be cut to a
        unique prefix; raises what ``find_trace`` does."""
        return self._run(reads.trace, trace_id, self._organization_id)

    def step(self, step_id: str, trace_id: str | None = None) -> StepRecord:
        """One step, by its id or the (16-digit) id of any of its spans. ``trace_id`` may be cut to a unique prefix.

        Without a trace id a span is looked for in every trace: 1 µs each. Raises ``NotFoundError``;
        ``AmbiguousIdError``, which lists the traces, if several have such a step; ``InputError``.
        """
        return self._run(reads.step, step_id, trace_id, self._organization_id)

    def steps(
        self,
        which: StepFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Order = "newest",
    ) -> Page[StepRecord]:
        """A page of steps by (created_at, trace_id, id). For the next one pass the page's ``next`` as ``after``,
        with the same filter and order. ``limit`` is 1 to 1,000.

        Pages neither repeat nor skip a step while others arrive; one that arrives late, with a start on a page
        already read, is not on those that follow. Raises ``InputError``.
        """
        return self._run(reads.steps, self._within(which or StepFilter()), after, limit, order)

    def runs(
        self,
        which: RunFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Order = "newest",
    ) -> Page[RunRecord]:
        """A page of runs, as ``steps`` gives steps."""
        return self._run(reads.runs, self._within(which or RunFilter()), after, limit, order)

    def messages(
        self, trace_id: str | None = None, *, run_id: str | None = None, step_id: str | None = None
    ) -> tuple[MessageRecord, ...]:
        """The messages of a trace, of a run, or those that a step added to its conversation, run by run in the order
        of the conversation. At least one id is needed; a run id alone finds the run in every trace that has it.
        Raises what ``find_trace`` and ``step`` do; a run that is not there has no messages."""
        return self._run(reads.messages, trace_id, run_id, step_id, self._organization_id)

    def stats(
        self, by: Sequence[Group] = (), which: StepFilter | None = None, *, cost: bool = False
    ) -> tuple[StatsRecord, ...]:
        """Counts, error rate, exact percentiles of times, tokens of the steps, by any of model, provider, agent, run,
        status, service, hour and day (UTC); the largest group first. Without ``by`` one record of all steps, or none
        where there is no step.

        ``cost`` adds US dollars by the price table of ``genai-prices`` (``ConfigurationError`` where it is not
        installed). Reads every step that is asked for: 1,000,000 take some seconds.
        """
        return self._run(statistics.stats, by, self._within(which or StepFilter()), cost)

    def audit(
        self,
        which: AuditFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Order = "newest",
    ) -> Page[AuditRecord]:
        """A page of the audit trail: who changed what, in the order in which it was written. For the next one pass
        the page's ``next`` as ``after``, with the same filter and order. ``limit`` is 1 to 1,000. Raises
        ``InputError``.

        What concerned several organizations (a whole database pruned or rebuilt, a trace of two deleted) is seen by a
        store of all of them only.
        """
        return self._run(audit.entries, self._within(which or AuditFilter()), after, limit, order)

    def feedback(
        self,
        step_id: str,
        value: Feedback | None,
        tags: Sequence[str] | None = None,
        *,
        trace_id: str | None = None,
        by: str | None = None,
    ) -> None:
        """Set what people think of a step (None takes it back) and, where given, its tags (an empty list takes all
        away). ``by`` says who.

        It is kept on the step's first span: it stays through late spans and rebuilds, and overrules what spans say.
        Raises what ``step`` does.
        """
        self._write(editing.feedback, self._caller(), step_id, value, tags, trace_id, by)

    def tags(self, step_id: str, tags: Sequence[str], *, trace_id: str | None = None, by: str | None = None) -> None:
        """Set the tags of a step, in the place of those it had (an empty list takes all away); kept and raising as
        ``feedback``."""
        self._write(editing.tags, self._caller(), step_id, tags, trace_id, by)

    def transaction(self, step_id: str, tid: str | None, *, trace_id: str | None = None, by: str | None = None) -> None:
        """Set the transaction id (``tid``) of a step; kept and raising as ``feedback``."""
        self._write(editing.transaction, self._caller(), step_id, tid, trace_id, by)

    def delete(
        self,
        *,
        trace_id: str | None = None,
        run_id: str | None = None,
        step_id: str | None = None,
        before: datetime | int | None = None,
        by: str | None = None,
    ) -> int:
        """Delete a trace; a run or a step (of a trace, where several have it); or every trace that ended before a
        moment (a datetime, or nanoseconds). Returns how many.

        Deleting a run keeps its steps and messages, without a run; deleting a step its messages, without a step. What
        is deleted does not come back: late spans of a deleted trace are stored, but no step follows from them. Raises
        what ``find_trace`` and ``step`` do, ``InputError`` for other combinations.
        """
        ids = [id_ for id_ in (trace_id, run_id, step_id) if id_ is not None]
        if (before is None) != bool(ids) or (run_id is not None and step_id is not None):
            raise InputError("delete what? Give a trace_id, a run_id or a step_id (of that trace), or before alone")
        if before is not None:
            return self._write(editing.delete_before, self._caller(), before, by)
        if step_id is not None:
            return self._write(editing.delete_step, self._caller(), step_id, trace_id, by)
        if run_id is not None:
            return self._write(editing.delete_run, self._caller(), run_id, trace_id, by)
        return self._write(editing.delete_trace, self._caller(), trace_id or "", by)

    def prune(
        self,
        *,
        older_than: timedelta | datetime | None = None,
        max_bytes: int | None = None,
        without_steps: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> Pruned:
        """Delete whole traces that ended before a moment or so long ago, and then the oldest until no more than
        ``max_bytes`` are in use; in small transactions, while writers go on. A SQLite file shrinks. Late spans begin
        a pruned trace anew. ``progress`` is called with the number of traces that are gone. Raises ``InputError``;
        also for ``max_bytes`` in a store of one organization, as bytes are the whole database's.

        ``without_steps`` deletes only traces from which no step follows, such as the receiver keeps; alone, all of
        them, also those that have only just begun.
        """
        return self._write(
            retention.prune, older_than, max_bytes, progress, self._caller(), without_steps=without_steps
        )

    def rebuild(self, traces: Sequence[str] | None = None, progress: Callable[[int, int], object] | None = None) -> int:
        """Derive traces (whole ids; default: all) again from their spans; returns how many. What people set and
        deleted stays. ``progress`` is called with how many are done, of how many. Raises ``InputError``,
        ``NotFoundError``."""
        return self._write(rebuild.rebuild, self._chosen(traces), progress, self._caller())

    def verify(
        self, traces: Sequence[str] | None = None, progress: Callable[[int, int], object] | None = None
    ) -> list[Difference]:
        """Derive traces (whole ids; default: all) again and compare; the rows that differ from what their spans give.
        ``rebuild`` mends them. Writes nothing; raises as it does."""
        chosen = self._chosen(traces)
        with self._errors():
            return list(rebuild.verify(self._engine, chosen, progress))

    def export(
        self,
        output: str | os.PathLike[str] | BinaryIO,
        format: Format = "jsonl",  # noqa: A002
        which: StepFilter | None = None,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Write steps, oldest first, to a file (a path, or one open for bytes) as ``jsonl``, ``csv`` or ``parquet``;
        or as ``otlp`` the whole traces that have one, in OTLP/JSON lines that give the same rows when imported again,
        with what people set and deleted. Without a filter these are all traces.
        Returns how many steps (traces). Raises ``InputError``, also where a filter of a store of one organization
        names a shared trace as ``otlp``; ``StepExporterError`` where the file cannot be written to its end;
        ``ConfigurationError`` for Parquet without pyarrow.
        """
        which = which if self._organization_id is None else self._within(which or StepFilter())
        return self._run(export.export, output, format, which, progress, self._organization_id)

    def _chosen(self, traces: Sequence[str] | None) -> Sequence[str] | None:
        """Whole ids of traces that are there (a rebuild of another one would make it) and that the store may take as a
        whole. None: all."""
        if traces is None:
            own = self._organization_id
            return self._run(lambda conn: None if own is None else organizations.whole_traces(conn, own))
        return [self._run(self._find_whole, filters.check_trace_id(trace_id)) for trace_id in traces]

    def _find_whole(self, conn: Connection, trace_id: str) -> str:
        found = reads.find_trace(conn, trace_id, self._organization_id)
        organizations.check_whole(conn, found, self._organization_id)
        return found

    def _caller(self) -> Caller:
        return Caller(self._actor or audit.current_user(), self._organization_id)

    def _write(self, op: Callable[Concatenate[Engine, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._run(lambda conn: None)  # a database that is not there must not be made, nor a newer one changed
        with self._errors():
            return op(self._writing, *args, **kwargs)

    def _run(self, op: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._errors(), self._engine.connect() as conn:
            return self._call(conn, lambda conn: op(conn, *args, **kwargs))


class AsyncStepStore(_Reader):
    """``StepStore`` for asyncio, method for method. Use it as an async context manager, or await ``close``; one that
    is left open does not keep the interpreter from exiting.

    A PostgreSQL store belongs to the event loop that it was first used in.
    """

    def __init__(
        self,
        url: DatabaseURL,
        *,
        organization_id: str | None = None,
        actor: str | None = None,
        encryption_key: str | None = None,
    ) -> None:
        super().__init__(url, organization_id)
        self._engine = create_async_store_engine(url, read_only=True, encryption_key=encryption_key)
        # What writes or takes long runs in a thread: aiosqlite is no driver to write by, nor may the loop wait.
        self._sync = StepStore(url, organization_id=organization_id, actor=actor, encryption_key=encryption_key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """``StepStore.close``."""
        await self._engine.dispose()
        await asyncio.to_thread(self._sync.close)

    async def find_trace(self, trace_id: str) -> str:
        """``StepStore.find_trace``."""
        return await self._run(reads.find_trace, trace_id, self._organization_id)

    async def trace(self, trace_id: str) -> TraceRecord:
        """``StepStore.trace``."""
        return await self._run(reads.trace, trace_id, self._organization_id)

    async def step(self, step_id: str, trace_id: str | None = None) -> StepRecord:
        """``StepStore.step``."""
        return await self._run(reads.step, step_id, trace_id, self._organization_id)

    async def steps(
        self,
        which: StepFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Order = "newest",
    ) -> Page[StepRecord]:
        """``StepStore.steps``."""
        return await self._run(reads.steps, self._within(which or StepFilter()), after, limit, order)

    async def runs(
        self,
        which: RunFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Order = "newest",
    ) -> Page[RunRecord]:
        """``StepStore.runs``."""
        return await self._run(reads.runs, self._within(which or RunFilter()), after, limit, order)

    async def messages(
        self, trace_id: str | None = None, *, run_id: str | None = None, step_id: str | None = None
    ) -> tuple[MessageRecord, ...]:
        """``StepStore.messages``."""
        return await self._run(reads.messages, trace_id, run_id, step_id, self._organization_id)

    async def stats(
        self, by: Sequence[Group] = (), which: StepFilter | None = None, *, cost: bool = False
    ) -> tuple[StatsRecord, ...]:
        """``StepStore.stats``."""
        return await asyncio.to_thread(self._sync.stats, by, which, cost=cost)

    async def audit(
        self,
        which: AuditFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Order = "newest",
    ) -> Page[AuditRecord]:
        """``StepStore.audit``."""
        return await self._run(audit.entries, self._within(which or AuditFilter()), after, limit, order)

    async def feedback(
        self,
        step_id: str,
        value: Feedback | None,
        tags: Sequence[str] | None = None,
        *,
        trace_id: str | None = None,
        by: str | None = None,
    ) -> None:
        """``StepStore.feedback``."""
        await asyncio.to_thread(self._sync.feedback, step_id, value, tags, trace_id=trace_id, by=by)

    async def tags(
        self, step_id: str, tags: Sequence[str], *, trace_id: str | None = None, by: str | None = None
    ) -> None:
        """``StepStore.tags``."""
        await asyncio.to_thread(self._sync.tags, step_id, tags, trace_id=trace_id, by=by)

    async def transaction(
        self, step_id: str, tid: str | None, *, trace_id: str | None = None, by: str | None = None
    ) -> None:
        """``StepStore.transaction``."""
        await asyncio.to_thread(self._sync.transaction, step_id, tid, trace_id=trace_id, by=by)

    async def delete(
        self,
        *,
        trace_id: str | None = None,
        run_id: str | None = None,
        step_id: str | None = None,
        before: datetime | int | None = None,
        by: str | None = None,
    ) -> int:
        """``StepStore.delete``."""
        return await asyncio.to_thread(
            self._sync.delete, trace_id=trace_id, run_id=run_id, step_id=step_id, before=before, by=by
        )

    async def prune(
        self,
        *,
        older_than: timedelta | datetime | None = None,
        max_bytes: int | None = None,
        without_steps: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> Pruned:
        """``StepStore.prune``; ``progress`` is called in another thread."""
        return await asyncio.to_thread(
            self._sync.prune,
            older_than=older_than,
            max_bytes=max_bytes,
            without_steps=without_steps,
            progress=progress,
        )

    async def rebuild(
        self, traces: Sequence[str] | None = None, progress: Callable[[int, int], object] | None = None
    ) -> int:
        """``StepStore.rebuild``; ``progress`` is called in another thread."""
        return await asyncio.to_thread(self._sync.rebuild, traces, progress)

    async def verify(
        self, traces: Sequence[str] | None = None, progress: Callable[[int, int], object] | None = None
    ) -> list[Difference]:
        """``StepStore.verify``; ``progress`` is called in another thread."""
        return await asyncio.to_thread(self._sync.verify, traces, progress)

    async def export(
        self,
        output: str | os.PathLike[str] | BinaryIO,
        format: Format = "jsonl",  # noqa: A002
        which: StepFilter | None = None,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """``StepStore.export``; ``output`` is written and ``progress`` called in another thread."""
        return await asyncio.to_thread(self._sync.export, output, format, which, progress=progress)

    async def _run(self, op: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._errors():
            async with self._engine.connect() as conn:
                return await conn.run_sync(self._call, lambda conn: op(conn, *args, **kwargs))
