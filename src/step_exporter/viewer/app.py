"""The app: its routes, and what becomes of errors."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from step_exporter.errors import AmbiguousIdError, DatabaseError, InputError, NotFoundError, StepExporterError
from step_exporter.keeper import Retention
from step_exporter.store.engine import DatabaseURL, display_url
from step_exporter.viewer.api import Api
from step_exporter.viewer.body import Bodies, BodyError
from step_exporter.viewer.edits import Edits
from step_exporter.viewer.live import Live
from step_exporter.viewer.pages import Pages, safe_path
from step_exporter.viewer.reading import PageStore
from step_exporter.viewer.receiver import Receiver
from step_exporter.viewer.security import COOKIE, SESSION_S, Access, Gate, Sessions

_log = logging.getLogger(__name__)

_MAX_FORM = 16 * 1024


def create_app(
    url: DatabaseURL,
    access: Access,
    sessions: Sessions,
    *,
    bodies: Bodies | None = None,
    organization_id: str | None = None,
    content: bool = True,
    retention: Retention | None = None,
) -> Starlette:
    """The app over one database.

    Args:
        url: The database; nothing connects to it before the first request, but for ``retention``.
        access: Who may talk to it.
        sessions: Of browsers; made with the key of ``access``.
        bodies: Limits on what is received.
        organization_id: The only one whose steps the pages and the API show and change. Spans are taken of all.
        content: Whether prompts, answers, tool arguments and results that are received are stored, and the texts of
            errors.
        retention: What is beyond is deleted, every ten minutes.
    """
    store = PageStore(url, organization_id=organization_id)
    receiver = Receiver(url, bodies, content=content, retention=retention)
    pages = Pages(store, display_url(url))
    live = Live(pages)
    forms = Bodies(_MAX_FORM)
    api = Api(store, forms)
    edits = Edits(store, forms)

    async def login(request: Request) -> Response:
        next_path = safe_path(request.query_params.get("next", "/"))
        if request.method != "POST":
            code = request.query_params.get("code")
            if code is None:
                return pages.login(None, next_path, 200)
            if sessions.redeem(code):
                return _with_session(RedirectResponse("/", 303), request, sessions)
            return pages.login("This link was used already, or is of another start of the server.", "/", 403)
        try:
            async with forms.read(request) as body:
                form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=10)
        except (BodyError, ValueError):
            return pages.login("That could not be read.", "/", 400)
        next_path = safe_path(form.get("next", ["/"])[0])
        if not sessions.matches(form.get("key", [""])[0].strip()):
            return pages.login("That is not the key.", next_path, 403)
        return _with_session(RedirectResponse(next_path, 303), request, sessions)

    def failed(request: Request, error: Exception) -> Response:
        status, title = _meaning(error)
        message = error.detail if isinstance(error, HTTPException) else str(error)
        headers = {"Retry-After": "5"} if status == 503 else {}
        if isinstance(error, HTTPException) and error.headers:
            headers |= error.headers
        if request.url.path.startswith(("/api/", "/v1/")):
            response: Response = JSONResponse({"error": message}, status)
        else:
            response = pages.error(status, title, message)
        response.headers.update(headers)
        return response

    def broken(request: Request, error: Exception) -> Response:
        _log.error("Cannot answer %s", request.url.path, exc_info=error)
        return pages.error(500, "Something is wrong", "The server's log says what.")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        receiver.open()
        yield
        receiver.close()
        store.close()

    return Starlette(
        routes=[
            Route("/", pages.runs),
            Route("/traces/{trace_id:str}", pages.trace),
            Route("/traces/{trace_id:str}/lines", pages.lines),
            Route("/traces/{trace_id:str}/detail", pages.detail),
            Route("/traces/{trace_id:str}/feedback", edits.feedback, methods=["POST"]),
            Route("/traces/{trace_id:str}/tags", edits.tags, methods=["POST"]),
            Route("/stats", pages.stats),
            Route("/live/runs", live.runs),
            Route("/live/traces/{trace_id:str}", live.trace),
            Route("/login", login, methods=["GET", "POST"]),
            Route("/v1/traces", receiver.traces, methods=["POST"]),
            Route("/v1/metrics", receiver.discard, methods=["POST"]),
            Route("/v1/logs", receiver.logs, methods=["POST"]),
            *api.routes(),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ],
        middleware=[Middleware(Gate, access=access, sessions=sessions)],
        exception_handlers={HTTPException: failed, StepExporterError: failed, 500: broken},
        lifespan=lifespan,
    )


def _meaning(error: Exception) -> tuple[int, str]:
    match error:
        case HTTPException():
            return error.status_code, "There is no such page" if error.status_code == 404 else "Not possible"
        case NotFoundError():
            return 404, "Nothing there"
        case AmbiguousIdError():
            return 409, "Which one?"
        case InputError():
            return 400, "That cannot be asked"
        case DatabaseError():
            return 503, "The database does not answer"
        case _:
            return 500, "Something is wrong"


def _with_session(response: Response, request: Request, sessions: Sessions) -> Response:
    response.set_cookie(
        COOKIE,
        sessions.new_session(),
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response
