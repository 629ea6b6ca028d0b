"""Server-sent events: a page is told that what it shows has changed, and asks for itself again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from step_exporter.errors import StepExporterError
from step_exporter.viewer.pages import Pages
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

        def look() -> Hashable:
            return tuple((run.trace_id, run.id, run.updated_at) for run in self._pages.run_page(asked))

        return self._stream(look)

    async def trace(self, request: Request) -> Response:
        """``GET /live/traces/{trace_id}``. While spans are open the page grows, which counts as a change."""
        trace_id = request.path_params["trace_id"]
        ticks = 0

        def look() -> Hashable:
            nonlocal ticks
            version = self._pages.store.version(trace_id)
            if version is None:
                return None
            outline = self._pages.store.outline(trace_id)
            ticks += any(row.span.is_open for row in outline.rows) and scale_of(outline).is_live
            return version, ticks

        return self._stream(look)

    def _stream(self, look: Callable[[], Hashable]) -> Response:
        if self._listeners >= MAX_LISTENERS:
            return PlainTextResponse("Too many pages are open.", 503, {"Retry-After": "30"})
        return StreamingResponse(
            self._events(look), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    async def _events(self, look: Callable[[], Hashable]) -> AsyncIterator[str]:
        self._listeners += 1
        try:
            yield "retry: 3000\n\n"
            last = await self._look(look)
            quiet = 0
            while True:
                await asyncio.sleep(self._interval_s)
                now = await self._look(look)
                quiet += 1
                if now is not None and now != last:
                    last, quiet = now, 0
                    yield "event: change\ndata: 1\n\n"
                elif quiet >= _QUIET:
                    quiet = 0
                    yield ": still here\n\n"
        finally:
            self._listeners -= 1

    async def _look(self, look: Callable[[], Hashable]) -> Hashable:
        try:
            return await to_thread.run_sync(look)
        except StepExporterError:  # the database is away, or was never there
            return None
