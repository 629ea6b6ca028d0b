"""Make the pictures of the pages in ``docs/images``: ``python docs/make_images.py``; needs Debian's chromium.

A day of made-up runs of three agents, and the demo's, shown by a real server in a real browser.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import Browser, sync_playwright

from step_exporter.demo import run_demo
from step_exporter.facts import RawSpan, Resource
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.schema import ensure_schema
from step_exporter.viewer.app import create_app
from step_exporter.viewer.security import Sessions, make_access

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1360, "height": 800}
S, MS = 10**9, 10**6
DAY_S = 86_400
SERVICE = Resource({"service.name": "helpdesk"})
AGENTS = {
    "support": ("gemini-2.5-flash", "google", ("search_tickets", "read_manual")),
    "researcher": ("claude-sonnet-4-5", "anthropic", ("web_search", "fetch_page")),
    "coder": ("gpt-5-mini", "openai", ("read_file", "run_tests", "web_search")),
}


def day(now_ns: int) -> Iterator[RawSpan]:
    """The spans of 240 runs in the day before."""
    chance = random.Random(7)
    for number in range(240):
        agent = chance.choice(list(AGENTS))
        start = now_ns - int((number + 1) / 240 * DAY_S * chance.uniform(0.95, 1.0)) * S - 300 * S
        yield from run(chance, number, agent, start)


def run(chance: random.Random, number: int, agent: str, at: int) -> Iterator[RawSpan]:
    """One run: requests, each but the last followed by a tool call."""
    model, provider, tools = AGENTS[agent]
    start, failed, next_id, prompt = at, False, iter(range(2, 100)), chance.randint(800, 2500)
    turns = chance.randint(1, 4)
    for turn in range(turns):
        failed = chance.random() < 0.03
        took = int(chance.lognormvariate(0, 0.45) * S)
        answer = chance.randint(60, 420)
        chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "gen_ai.provider.name": provider}
        used = {} if failed else {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": answer}
        error = {"error.type": "RateLimitError"} if failed else {}
        yield span(number, next(next_id), f"chat {model}", at, took, {**chat, **used, **error}, failed)
        at += took + 5 * MS
        if failed:
            break
        if turn < turns - 1:
            tool = chance.choice(tools)
            took, broken = int(chance.lognormvariate(-0.9, 0.5) * S), chance.random() < 0.06
            called = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool}
            yield span(number, next(next_id), f"execute_tool {tool}", at, took, called, broken)
            at += took + 5 * MS
        prompt += answer + chance.randint(100, 600)
    invoke = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent}
    error = {"error.type": "RateLimitError"} if failed else {}
    yield span(number, 1, f"invoke_agent {agent}", start, at - start, {**invoke, **error}, failed)


def span(number: int, id_: int, name: str, start: int, took: int, has: dict[str, Any], failed: bool) -> RawSpan:
    """One span; the first of a run is the parent of the others."""
    return RawSpan(
        trace_id=random.Random(number).randbytes(16).hex(),
        span_id=f"{id_:016x}",
        parent_span_id=None if id_ == 1 else f"{1:016x}",
        name=name,
        start_ns=start,
        end_ns=start + took,
        ended=True,
        status_code="error" if failed else "unset",
        attributes=has,
        resource=SERVICE,
    )


def take(browser: Browser, base: str, code: str, trace_id: str, scheme: str, folder: Path) -> None:
    """The three pages in one colour scheme."""
    context = browser.new_context(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{base}/login?code={code}")
    for name, path in {"runs": "/", "trace": f"/traces/{trace_id}", "statistics": "/stats?since=24h"}.items():
        page.goto(base + path)
        if name == "trace":
            page.click(".row >> text=Step 2")
            page.wait_for_selector("#detail h3")
        page.mouse.move(0, 0)
        page.wait_for_timeout(700)
        page.screenshot(path=folder / f"{name}-{scheme}.png")
    context.close()


def main(folder: Path = IMAGES) -> None:
    """Fill a database, serve it, and take the pictures."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        url = "sqlite:///steps.db"
        engine = create_sync_engine(url)
        ensure_schema(engine)
        Writer(engine).write(list(day(time.time_ns())))
        engine.dispose()
        trace_id = run_demo(url)
        with serving(url) as (base, sessions), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for scheme in ("light", "dark"):
                take(browser, base, sessions.new_code(), trace_id, scheme, folder)
            browser.close()


@contextlib.contextmanager
def serving(url: str) -> Iterator[tuple[str, Sessions]]:
    """A server on a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        access = make_access("127.0.0.1", port)
        sessions = Sessions(access.key)
        config = uvicorn.Config(create_app(url, access, sessions), log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}", sessions
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
