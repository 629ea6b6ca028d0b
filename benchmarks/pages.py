"""The pages of ``step-exporter serve`` under load: a long trace in a real browser, and writers beside readers.

    python -m benchmarks.pages --spans 50000 --seconds 10

Needs Debian's chromium and the ``dev`` extra. The server is a process of its own, started as people start it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Page, sync_playwright

from step_exporter.facts import RawSpan
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.query import StepStore
from step_exporter.store.schema import ensure_schema

KEY = "a-key-of-the-benchmark"
SERVE = "import sys; from step_exporter.cli import main; sys.exit(main())"
MS = 10**6
TRACE = f"{1:032x}"
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("chat gpt-5-mini", {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-5-mini",
                         "gen_ai.provider.name": "openai", "gen_ai.usage.input_tokens": 1200,
                         "gen_ai.usage.output_tokens": 80}),
    ("execute_tool fetch", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "fetch"}),
    ("execute_tool parse", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "parse"}),
    ("GET", {"http.request.method": "GET"}),
)  # fmt: skip
"""A turn of the agent: a request, two tools, and what the second of them asks the web."""
FRAMES = """() => new Promise((done) => {
  const frames = []; let last = performance.now(), left = 120;
  const step = (now) => {
    frames.push(now - last); last = now; scrollBy(0, 400);
    left-- ? requestAnimationFrame(step) : done(frames.slice(1));
  };
  requestAnimationFrame(step);
})"""


def trace(spans: int, number: int = 1, start_ns: int = 1_795_000_000 * 10**9) -> Iterator[RawSpan]:
    """An agent's run of so many spans."""
    invoke = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "crawler"}
    yield _span(number, 1, None, "invoke_agent crawler", start_ns, spans * 45 * MS, invoke)
    for at in range(2, spans + 1):
        name, has = KINDS[(at - 2) % 4]
        yield _span(number, at, at - 1 if name == "GET" else 1, name, start_ns + at * 45 * MS, 40 * MS, has)


def _span(trace: int, id_: int, parent: int | None, name: str, start: int, took: int, has: dict[str, Any]) -> RawSpan:
    return RawSpan(
        trace_id=f"{trace:032x}",
        span_id=f"{id_:016x}",
        parent_span_id=None if parent is None else f"{parent:016x}",
        name=name,
        start_ns=start,
        end_ns=start + took,
        ended=True,
        attributes=has,
    )


@contextlib.contextmanager
def served(path: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A server of the database, on a free port; and its process."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", "--db", str(path), "--port", str(port)]
    with subprocess.Popen(command, env={**os.environ, "STEP_EXPORTER_TOKEN": KEY}) as process:
        try:
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    get(port, "/login")
                    break
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def get(port: int, path: str) -> int:
    """The status of a page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def paint(page: Page, port: int, path: str) -> str:
    """Open a page; when its first byte came and when something was painted, after the request."""
    page.goto(f"http://127.0.0.1:{port}{path}")
    page.wait_for_selector(".row, .list")
    first_byte = page.evaluate("performance.getEntriesByType('navigation')[0].responseStart")
    painted = page.evaluate("""new Promise((done) => new PerformanceObserver((list) => done(
        list.getEntriesByName('first-contentful-paint')[0].startTime)).observe({type: 'paint', buffered: true}))""")
    return f"first byte {first_byte:,.0f} ms, first paint {painted:,.0f} ms"


def look(path: Path, spans: int) -> None:
    """The long trace in a browser."""
    with served(path) as (port, server), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 1360, "height": 800}, extra_http_headers={"Authorization": f"Bearer {KEY}"}
        )
        for which in (f"{spans:,} spans, first request to a new server", "again"):
            used = sum(server.cpu_times()[:2])
            said = paint(page, port, f"/traces/{TRACE}")
            print(f"{which}: {said}; {(sum(server.cpu_times()[:2]) - used) * 1000:,.0f} ms CPU of the server")
        frames = sorted(page.evaluate(FRAMES))
        print(f"scrolling: frame median {statistics.median(frames):.1f} ms, 95th {frames[len(frames) * 95 // 100]:.1f}")
        began = time.perf_counter()
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_selector(f"[data-key='span={spans:016x}']")
        took = time.perf_counter() - began
        rows = page.evaluate("document.querySelectorAll('.row').length")
        print(f"to the end: {took * 1000:,.0f} ms, {rows} lines in the page")
        print(f"statistics: {paint(page, port, '/stats')}")
        print(f"runs: {paint(page, port, '/')}")
        browser.close()


def write(path: Path, seconds: float) -> list[float]:
    """How long each commit of 100 spans took, in ms."""
    engine = create_sync_engine(f"sqlite:///{path}")
    writer, took = Writer(engine), []
    until = time.perf_counter() + seconds
    for number in itertools.count(time.time_ns()):
        spans = list(trace(100, number, time.time_ns()))
        began = time.perf_counter()
        if began > until:
            break
        writer.write(spans)
        took.append((time.perf_counter() - began) * 1000)
        time.sleep(0.02)
    engine.dispose()
    return took


def beside(path: Path, seconds: float) -> None:
    """Commits alone, beside four readers of all pages, and beside a retention that deletes as well."""
    with served(path) as (port, _), StepStore(f"sqlite:///{path}") as store:
        done = threading.Event()
        pages = 0

        def read(paths: Iterator[str]) -> None:
            nonlocal pages
            while not done.is_set():
                assert get(port, next(paths)) in (200, 404)
                pages += 1

        def prune() -> None:
            while not done.wait(1):
                store.prune(older_than=datetime.fromtimestamp(time.time() - 2, UTC))

        say("commits alone", write(path, seconds))
        asked = ("/", "/stats", f"/traces/{TRACE}", "/api/steps?limit=1000")
        readers = [threading.Thread(target=read, args=(itertools.cycle(asked[at:] + asked[:at]),)) for at in range(4)]
        for reader in readers:
            reader.start()
        say("beside four readers", write(path, seconds))
        pruner = threading.Thread(target=prune)
        pruner.start()
        say("and a retention", write(path, seconds))
        done.set()
        for thread in (*readers, pruner):
            thread.join()
        print(f"pages read meanwhile: {pages}")


def say(name: str, took: list[float]) -> None:
    """Median, 99th and longest of some times."""
    took = sorted(took)
    print(f"{name}: median {statistics.median(took):.1f} ms, 99th {took[len(took) * 99 // 100]:.1f}, "
          f"longest {took[-1]:.1f} ({len(took)} commits of 100 spans)", flush=True)  # fmt: skip


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spans", type=int, default=50_000, help="of the long trace")
    parser.add_argument("--seconds", type=float, default=10, help="of each of the three times that are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.db"
        engine = create_sync_engine(f"sqlite:///{path}")
        ensure_schema(engine)
        writer, spans = Writer(engine), trace(options.spans)
        while batch := list(itertools.islice(spans, 5000)):
            writer.write(batch)
        engine.dispose()
        look(path, options.spans)
        beside(path, options.seconds)


if __name__ == "__main__":
    main()
