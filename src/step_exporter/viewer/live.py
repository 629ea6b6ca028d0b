"""Server-sent events: a page is told that what it shows has changed, and asks for itself again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from step_exporter.errors import StepExporterError
from step_exporter.viewer.pages import Pages, seen_runs, seen_trace
from step_exporter.viewer.waterfall import scale_of

INTERVAL_S = 1.0
MAX_LISTENERS = 50
"""Pages that are open at once; each asks the database once in the interval."""
_QUIET = 15
"""Intervals after which a comment is sent, so that proxies keep the connection."""


class Live:
    """Handlers of the event streams."""

    def __init__(self, pages: Pages, interval_s: float = INTERVAL_S) -> None:
        self._pages = pages
        self._interval_s = interval_s
        self._listeners = 0

    async def runs(self, request: Request) -> Response:
        """``GET /live/runs``, with the filters of the page."""
        asked = dict(request.query_params)

        def look() -> str:
            return seen_runs(self._pages.run_page(asked).page.items)

        return self._stream(look, request)

    async def trace(self, request: Request) -> Response:
        """``GET /live/traces/{trace_id}``. While spans are open the page grows, which counts as a change."""
        trace_id = request.path_params["trace_id"]
        ticks = 0

        def look() -> str | None:
            nonlocal ticks
            version = self._pages.store.version(trace_id)
            if version is None:
                return None
            seen = seen_trace(version, ticks)
            outline = self._pages.store.outline(trace_id)
            ticks += any(row.span.is_open for row in outline.rows) and scale_of(outline).is_live
            return seen

        return self._stream(look, request)

    def _stream(self, look: Callable[[], str | None], request: Request) -> Response:
        if self._listeners >= MAX_LISTENERS:
            return PlainTextResponse("Too many pages are open.", 503, {"Retry-After": "30"})
        return StreamingResponse(
            self._events(look, request.query_params.get("seen")),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    async def _events(self, look: Callable[[], str | None], last: str | None) -> AsyncIterator[str]:
        """The stream. ``last`` is what the page shows: what came between the page and this is a change, too."""
        self._listeners += 1
        try:
            yield "retry: 3000\n\n"
            quiet = 0
            while True:
                now = await self._look(look)
                quiet += 1
                if now is not None and now != last:
                    last, quiet = now, 0
                    yield "event: change\ndata: 1\n\n"
                elif quiet >= _QUIET:
                    quiet = 0
                    yield ": still here\n\n"
                await asyncio.sleep(self._interval_s)
        finally:
            self._listeners -= 1

    async def _look(self, look: Callable[[], str | None]) -> str | None:
        def found() -> str | None:
            self._pages.store.find_abandoned()
            return look()

        try:
            return await to_thread.run_sync(found)
        except StepExporterError:  # the database is away, or was never there
            return None
