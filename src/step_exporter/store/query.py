"""``StepStore`` and ``AsyncStepStore``: how programs read steps, runs and messages.

    with StepStore("sqlite:///steps.db") as store:
        for step in store.steps(StepFilter(agent_name="weather", status="failed")):
            print(step.trace_id, step.error_type, step.metrics)

    async with AsyncStepStore("postgresql://localhost/steps") as store:
        trace = await store.trace("4bf92f35")

Both have the same methods, give the same records (``store.records``) and raise the same errors. They never write:
SQLite files are opened read-only, PostgreSQL transactions are. Each call reads one snapshot. Every call may raise
``DatabaseError`` (``SchemaError`` where the tables are missing, somebody else's or of a newer version,
``NotFoundError`` where there is no such file); what it raises besides is said there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from step_exporter.errors import DatabaseError
from step_exporter.store import reads
from step_exporter.store.engine import DatabaseURL, create_async_store_engine, create_sync_engine, display_url
from step_exporter.store.filters import Order, RunFilter, StepFilter
from step_exporter.store.records import MessageRecord, Page, RunRecord, StepRecord, TraceRecord
from step_exporter.store.schema import check_schema

__all__ = ["AsyncStepStore", "RunFilter", "StepFilter", "StepStore"]

P = ParamSpec("P")
T = TypeVar("T")


class _Reader:
    """What both stores know: where they read, and whether the schema there was looked at."""

    def __init__(self, url: DatabaseURL) -> None:
        self._place = display_url(url)
        self._checked = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._place!r})"

    def _call(self, conn: Connection, op: Callable[[Connection], T]) -> T:
        if not self._checked:
            check_schema(conn)
            self._checked = True
        return op(conn)

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise DatabaseError(f"Cannot read {self._place}: {cause}") from error


class StepStore(_Reader):
    """Reads a database of steps. Threads may share one. Close it, or use it as a context manager.

    ``url`` is any SQLite or PostgreSQL URL, or the path of a SQLite file. Making a store connects to nothing;
    a URL that names no such database raises ``ConfigurationError``.
    """

    def __init__(self, url: DatabaseURL) -> None:
        super().__init__(url)
        self._engine = create_sync_engine(url, read_only=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Closing twice does nothing more."""
        self._engine.dispose()

    def find_trace(self, trace_id: str) -> str:
        """The whole id of the one trace whose id begins so: at least 4 hexadecimal digits, either case.

        Raises ``InputError`` if these are none, ``NotFoundError``, and ``AmbiguousIdError``, which lists candidates.
        """
        return self._run(reads.find_trace, trace_id)

    def trace(self, trace_id: str) -> TraceRecord:
        """All of one trace: runs, steps, spans, messages and how they hang together. ``trace_id`` may be cut to a
        unique prefix; raises what ``find_trace`` does."""
        return self._run(reads.trace, trace_id)

    def step(self, step_id: str, trace_id: str | None = None) -> StepRecord:
        """One step, by its id or the (16-digit) id of any of its spans. ``trace_id`` may be cut to a unique prefix.

        Without a trace id a span is looked for in every trace: 1 µs each. Raises ``NotFoundError``;
        ``AmbiguousIdError``, which lists the traces, if several have such a step; ``InputError``.
        """
        return self._run(reads.step, step_id, trace_id)

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
        return self._run(reads.steps, which or StepFilter(), after, limit, order)

    def runs(
        self,
        which: RunFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Order = "newest",
    ) -> Page[RunRecord]:
        """A page of runs, as ``steps`` gives steps."""
        return self._run(reads.runs, which or RunFilter(), after, limit, order)

    def messages(
        self, trace_id: str | None = None, *, run_id: str | None = None, step_id: str | None = None
    ) -> tuple[MessageRecord, ...]:
        """The messages of a trace, of a run, or those that a step added to its conversation, run by run in the order
        of the conversation. At least one id is needed; a run id alone finds the run in every trace that has it.
        Raises what ``find_trace`` and ``step`` do; a run that is not there has no messages."""
        return self._run(reads.messages, trace_id, run_id, step_id)

    def _run(self, op: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._errors(), self._engine.connect() as conn:
            return self._call(conn, lambda conn: op(conn, *args, **kwargs))


class AsyncStepStore(_Reader):
    """``StepStore`` for asyncio, method for method. Use it as an async context manager, or await ``close``; one that
    is left open does not keep the interpreter from exiting.

    A PostgreSQL store belongs to the event loop that it was first used in.
    """

    def __init__(self, url: DatabaseURL) -> None:
        super().__init__(url)
        self._engine = create_async_store_engine(url, read_only=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """``StepStore.close``."""
        await self._engine.dispose()

    async def find_trace(self, trace_id: str) -> str:
        """``StepStore.find_trace``."""
        return await self._run(reads.find_trace, trace_id)

    async def trace(self, trace_id: str) -> TraceRecord:
        """``StepStore.trace``."""
        return await self._run(reads.trace, trace_id)

    async def step(self, step_id: str, trace_id: str | None = None) -> StepRecord:
        """``StepStore.step``."""
        return await self._run(reads.step, step_id, trace_id)

    async def steps(
        self,
        which: StepFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Order = "newest",
    ) -> Page[StepRecord]:
        """``StepStore.steps``."""
        return await self._run(reads.steps, which or StepFilter(), after, limit, order)

    async def runs(
        self,
        which: RunFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Order = "newest",
    ) -> Page[RunRecord]:
        """``StepStore.runs``."""
        return await self._run(reads.runs, which or RunFilter(), after, limit, order)

    async def messages(
        self, trace_id: str | None = None, *, run_id: str | None = None, step_id: str | None = None
    ) -> tuple[MessageRecord, ...]:
        """``StepStore.messages``."""
        return await self._run(reads.messages, trace_id, run_id, step_id)

    async def _run(self, op: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._errors():
            async with self._engine.connect() as conn:
                return await conn.run_sync(self._call, lambda conn: op(conn, *args, **kwargs))
