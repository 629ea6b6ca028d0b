"""The pages: Runs, Trace, Statistics. Server-made HTML that reads without JavaScript."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from step_exporter.errors import InputError
from step_exporter.models import utc_datetime
from step_exporter.store.cost import CostSum
from step_exporter.store.filters import RunFilter
from step_exporter.store.outline import Outline
from step_exporter.store.records import RunRecord, StepRecord
from step_exporter.text import UNKNOWN, count, dollars, duration, harmless, tokens
from step_exporter.viewer import charts, waterfall
from step_exporter.viewer.api import check_parameters
from step_exporter.viewer.detail import MAX_SHOWN, Chosen, detail_of
from step_exporter.viewer.reading import MAX_NAMED, PageStore, RunPage
from step_exporter.viewer.words import flag_words

PAGE = 50
"""Runs on a page."""
MAX_GROUPS = 25
"""Rows of a table of statistics."""
WINDOWS = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
_RUN_WINDOWS = [("", "any time"), *((name, f"last {name}") for name in WINDOWS)]


class Pages:
    """Handlers of the pages. All but the live ones run in threads."""

    def __init__(self, store: PageStore, place: str) -> None:
        """
        Args:
            store: Where they read.
            place: The database's name, without its password.
        """
        self.store = store
        self._place = place
        self._templates = Environment(
            loader=PackageLoader("step_exporter.viewer"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            line=harmless,
            block=_block,
            duration=duration,
            ago=_ago,
            shell=shlex.quote,
            flag=flag_words,
            tokens=_tokens,
            usd=_usd,
            unpriced=_unpriced,
        )
        for name in self._templates.list_templates():  # compiled now, not while somebody waits for the first page
            self._templates.get_template(name)

    def render(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page. Lone surrogates, which UTF-8 cannot hold, show as their escapes."""
        text = self._templates.get_template(template).render(place=self._place, page="", **values)
        return Response(text.encode("utf-8", "backslashreplace"), status, media_type="text/html; charset=utf-8")

    # Runs

    def runs(self, request: Request) -> Response:
        """``GET /``."""
        check_parameters(request, ("q", "status", "agent", "service", "since", "after"))
        self.store.find_abandoned()
        asked = {name: request.query_params.get(name, "").strip() for name in ("q", "status", "agent", "service")}
        asked["since"] = request.query_params.get("since", "")
        after = request.query_params.get("after") or None
        traces = self._traces_named(asked["q"])
        if len(traces) == 1:
            return RedirectResponse(f"/traces/{traces[0]}", 303)
        page, sums = self.run_page(asked, after)
        kept = {name: value for name, value in asked.items() if value}
        return self._page(
            "runs.html",
            page_name="runs",
            traces=traces,
            max_named=MAX_NAMED,
            runs=[(run, sums[run.trace_id, run.id]) for run in page.items],
            asked=asked,
            windows=_RUN_WINDOWS,
            has_cost=self.store.price is not None,
            is_filtered=bool(kept),
            is_paged=after is not None,
            first_href="/?" + urlencode(kept),
            next_href="/?" + urlencode({**kept, "after": page.next}) if page.next else None,
            base_url=_base_url(request),
            events=None if after else "/live/runs?" + urlencode({**kept, "seen": seen_runs(page.items)}),
        )

    def run_page(self, asked: Mapping[str, str], after: str | None = None) -> RunPage:
        """The runs that a page shows. What is searched for is a run id, else a conversation's, else an agent's name."""
        since = asked.get("since", "")
        if since and since not in WINDOWS:
            raise InputError(f"since is one of {', '.join(WINDOWS)}, not {since!r:.40}")

        def find(**more: str) -> RunPage:
            which = {"agent_name": asked.get("agent"), "service_name": asked.get("service"), **more}
            which["status"] = asked.get("status")
            return self.store.run_page(
                RunFilter(
                    **{name: value for name, value in which.items() if value},  # pyright: ignore[reportArgumentType]
                    started_after=datetime.now(UTC) - WINDOWS[since] if since else None,
                ),
                after,
                PAGE,
            )

        query = asked.get("q", "")
        if not query:
            return find()
        for column in ("run_id", "conversation_id"):
            if len((found := find(**{column: query})).page):
                return found
        return find(agent_name=query)

    def _traces_named(self, text: str) -> Sequence[str]:
        try:
            return self.store.traces_named(text)
        except InputError:  # no beginning of an id
            return ()

    # Trace

    def trace(self, request: Request) -> Response:
        """``GET /traces/{trace_id}``."""
        self.store.find_abandoned()
        outline = self.store.outline(request.path_params["trace_id"])
        if outline.trace_id != request.path_params["trace_id"]:
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(f"/traces/{outline.trace_id}{query}", 303)
        scale = waterfall.scale_of(outline)
        chosen = _chosen(request)
        start = _start(request, outline, chosen)
        runs = {run.id for run in outline.runs}
        tops = [run for run in outline.runs if run.parent_run_id not in runs]
        names = list(dict.fromkeys(run.agent_name for run in tops if run.agent_name))
        first = outline.rows[0].span.name if outline.rows else "trace"
        return self._page(
            "trace.html",
            outline=outline,
            scale=scale,
            title=", ".join(names[:3]) or first,
            statuses=sorted(Counter(run.status for run in tops).items()),
            began=None if outline.first_ns is None else utc_datetime(outline.first_ns),
            notes=waterfall.notes_of(outline),
            tokens_total=_tokens_of(
                sum(step.prompt_tokens for step in outline.steps), sum(step.completion_tokens for step in outline.steps)
            ),
            cost=self.store.trace_cost(outline),
            lines=waterfall.lines(outline, scale, start, start + waterfall.CHUNK),
            start=start,
            chunk=waterfall.CHUNK,
            chosen=chosen,
            detail=detail_of(self.store, outline, chosen) if chosen else None,
            sql=f"SELECT * FROM steps WHERE trace_id = '{outline.trace_id}' ORDER BY created_at",  # noqa: S608  to copy
            cli=f"step-exporter trace {outline.trace_id} --db {shlex.quote(self._place)}",
            events=f"/live/traces/{outline.trace_id}?seen={seen_trace(outline.version)}",
        )

    def lines(self, request: Request) -> Response:
        """``GET /traces/{trace_id}/lines?from=…``: a chunk of the waterfall."""
        outline = self.store.outline(request.path_params["trace_id"])
        start = _start(request, outline, None)
        found = waterfall.lines(outline, waterfall.scale_of(outline), start, start + waterfall.CHUNK)
        return self.render("_lines.html", lines=found, chosen=_chosen(request))

    def detail(self, request: Request) -> Response:
        """``GET /traces/{trace_id}/detail?span=…`` or ``?step=…``: what is put beside the waterfall."""
        chosen = _chosen(request)
        if chosen is None:
            raise InputError("details of what? Give a span or a step")
        outline = self.store.outline(request.path_params["trace_id"])
        return self.render("_detail.html", detail=detail_of(self.store, outline, chosen))

    # Statistics

    def stats(self, request: Request) -> Response:
        """``GET /stats``."""
        check_parameters(request, ("since",))
        since = request.query_params.get("since", "all")
        if since not in (*WINDOWS, "all"):
            raise InputError(f"since is one of {', '.join(WINDOWS)} or all, not {since!r:.40}")
        now_ns = time.time_ns()
        since_ns = now_ns - int(WINDOWS[since].total_seconds()) * 10**9 if since in WINDOWS else None
        samples, tools = self.store.samples(since_ns)
        return self._page(
            "stats.html",
            page_name="stats",
            windows=[*((name, name) for name in WINDOWS), ("all", "all")],
            has_cost=self.store.price is not None,
            shown=MAX_GROUPS,
            since=since,
            total=charts.total(samples),
            plots=charts.plots(samples, since_ns, now_ns),
            models=charts.by(samples, lambda sample: sample.model),
            agents=charts.by(samples, lambda sample: sample.agent),
            tools=[
                (tool, charts.share(tool.count, tools[0].count), charts.percent(tool.failed, tool.count))
                for tool in tools
            ],
            base_url=_base_url(request),
        )

    # Others

    def error(self, status: int, title: str, message: str) -> Response:
        """A page that says what is wrong."""
        return self._page("error.html", status, title=title, message=message)

    def login(self, wrong: str | None, next_path: str, status: int) -> Response:
        """The page that asks for the key."""
        text = self._templates.get_template("login.html").render(page="", wrong=wrong, next=next_path)
        return Response(text, status, media_type="text/html; charset=utf-8")

    def _page(self, template: str, status: int = 200, *, page_name: str = "", **values: Any) -> Response:
        text = self._templates.get_template(template).render(place=self._place, page=page_name, **values)
        return Response(text.encode("utf-8", "backslashreplace"), status, media_type="text/html; charset=utf-8")


def _chosen(request: Request) -> Chosen | None:
    """What the address names: the ids are those of spans, a step's is its first span's."""
    for kind in ("step", "span"):
        if span_id := request.query_params.get(kind):
            return Chosen(kind, span_id)
    return None


def _start(request: Request, outline: Outline, chosen: Chosen | None) -> int:
    """The first line to make: the one asked for, else that of the chunk with what is chosen."""
    text = request.query_params.get("from", "")
    if text:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise InputError(f"from is the number of a line, not {text!r:.40}")
        return int(text)
    if chosen is None:
        return 0
    places = (at for at, row in enumerate(outline.rows) if row.span.span_id == chosen.span_id)
    return next(places, 0) // waterfall.CHUNK * waterfall.CHUNK


def _block(text: str) -> str:
    """Text of several lines, with whatever else is no character to be seen shown as its escape."""
    cut = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}\n… {len(text) - MAX_SHOWN:,} more characters"
    return "\n".join(line.replace(r"\t", "\t") for line in map(harmless, cut.split("\n")))


def _tokens(counted: RunRecord | StepRecord | charts.Group) -> str:
    return _tokens_of(counted.prompt_tokens, counted.completion_tokens)


def _tokens_of(prompt: int, completion: int) -> str:
    return tokens(prompt, completion) if prompt or completion else UNKNOWN


def _usd(cost: CostSum) -> str:
    """``$1.20``; ``$1.20+`` where some steps have no price; a dash where none has."""
    return UNKNOWN if cost.usd is None else dollars(cost.usd) + ("+" if cost.unknown else "")


def _unpriced(cost: CostSum) -> str:
    """Why some steps have no price: ``1 step: no price for my-model``."""
    return "; ".join(f"{count(number, 'step')}: {reason}" for reason, number in sorted(cost.unknown.items()))


def _ago(moment: datetime) -> str:
    """``12 s ago`` for today, else the day and time (UTC)."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if not 0 <= seconds < 86_400:
        return moment.strftime("%Y-%m-%d %H:%M")
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{int(seconds)} s ago"


def _base_url(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers.get('host', '')}"


def safe_path(text: str) -> str:
    """A path of this server to go on to; anything else becomes its first page."""
    inner = text.startswith("/") and not text.startswith(("//", "/\\"))
    return quote(text, safe="/?&=%:+-._~") if inner else "/"


def seen_runs(runs: Iterable[RunRecord]) -> str:
    """What a page of runs shows, for its stream to tell whether that is still so."""
    return _digest([(run.trace_id, run.id, run.updated_at.isoformat()) for run in runs])


def seen_trace(version: tuple[int, int], ticks: int = 0) -> str:
    """What the page of a trace shows; ``ticks`` counts as it grows with its open spans."""
    return _digest((version, ticks))


def _digest(shown: object) -> str:
    return sha256(repr(shown).encode("utf-8", "backslashreplace")).hexdigest()[:16]


__all__: Sequence[str] = ["PAGE", "WINDOWS", "Pages", "safe_path", "seen_runs", "seen_trace"]
