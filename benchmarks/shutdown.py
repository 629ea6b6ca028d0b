"""Shut a program down with its queue full and its database away, and let the next one bring the spans in.

    python -m benchmarks.shutdown --spans 100000

Each case runs a program that ends ``--spans`` spans while the database does not answer, and is then shut down: by
``shutdown(--seconds)``, or by SIGTERM (5 s). Then the database comes back, and the next program runs until the spool is
empty. Prints a table; exits with 1 if a shutdown took over a second longer than it may, or a span is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness
from step_exporter.processor import SIGTERM_S
from step_exporter.spool import spool_directory, spool_files
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.rebuild import verify

APP = """
import json, sys, time
import step_exporter
from opentelemetry.sdk.trace import TracerProvider
url, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
provider = TracerProvider(shutdown_on_exit=False)
handle = step_exporter.configure(url, provider=provider, max_queue=count + 10)
tracer = provider.get_tracer("app")
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 5}
def end(count):
    for _ in range(count // 5):
        with tracer.start_as_current_span("agent", attributes=AGENT):
            for _ in range(4):
                tracer.start_span("chat", attributes=LLM).end()
def say(**what):
    print(json.dumps(what), flush=True)
"""
VICTIM = """
end(5)
handle.flush(0.1 if "/away/" in url else 30)
say()
sys.stdin.readline()
end(count)
say(queued=handle.stats().queued)
sys.stdin.readline()
began = time.monotonic()
report = handle.shutdown(seconds)
say(took=time.monotonic() - began, **report._asdict(), seen=report.seen)
"""
NEXT = """
began = time.monotonic()
end(5)
while handle.stats().adopted < count and time.monotonic() < began + seconds:
    handle.flush(1)
say(took=time.monotonic() - began, adopted=handle.stats().adopted)
handle.shutdown(60)
"""


class Outcome(NamedTuple):
    """What became of one program's spans."""

    seconds: float
    """From the call, or the signal, to the end of the process."""
    queued: int
    committed: int
    spooled: int
    dropped: int
    adopted: int
    adopting_s: float
    missing: int
    differences: int
    """Rows that differ from what their facts give."""


class Program:
    """One of the programs, which tells what it does in lines of JSON."""

    def __init__(self, code: str, url: str, count: int, seconds: float) -> None:
        arguments = [sys.executable, "-c", APP + code, url, str(count), str(seconds)]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def hears(self) -> dict[str, Any]:
        """Its next line; nothing if it has ended."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline() or "{}")

    def go_on(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ends(self) -> str:
        """Wait for it; what it said on standard error."""
        return self.process.communicate()[1]


Away = Callable[[], Any]
"""A context manager in which the database does not answer."""


def shut_down(url: str, away: Away, count: int, seconds: float, *, by_signal: bool) -> Outcome:
    """One case."""
    victim = Program(VICTIM, url, count, seconds)
    victim.hears()
    with away():
        victim.go_on()
        queued = victim.hears()["queued"]
        began = time.monotonic()
        if by_signal:
            victim.process.send_signal(signal.SIGTERM)
        else:
            victim.go_on()
        said = victim.hears()
        logged = victim.ends()
        took = time.monotonic() - began
    directory = spool_directory(url)
    assert directory is not None
    spooled = sum(file.facts or 0 for file in spool_files(directory))
    following = Program(NEXT, url, spooled, 600)
    adoption = following.hears()
    following.ends()
    engine = create_sync_engine(url)
    with engine.begin() as conn:
        stored = conn.exec_driver_sql("SELECT count(*) FROM spans WHERE state = 'ended'").scalar_one()
    differences = sum(1 for _ in verify(engine))
    engine.dispose()
    # After a signal nobody is there to say it but the log.
    told = re.findall(r"\b(\d+) dropped\)", logged)
    dropped = sum(said["dropped"].values()) if said else int(told[-1]) if told else 0
    missing = count + 10 - stored - dropped
    committed = said.get("committed", count + 5 - spooled - dropped)
    return Outcome(
        took, queued, committed, spooled, dropped, adoption["adopted"], adoption["took"], missing, differences
    )


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Another connection holds the file."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("COMMIT")
        other.close()


@contextmanager
def absent(path: Path) -> Generator[None]:
    """The directory is not there."""
    yield
    path.parent.mkdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="the deadline of shutdown()")
    parser.add_argument("--only", help="comma-separated words of cases")
    options = parser.parse_args()
    columns: dict[str, dict[str, str]] = {}
    is_fine = True
    cases = [
        f"{case} {ending}"
        for case in ("SQLite locked", "SQLite absent", "PostgreSQL stopped")
        for ending in ("shutdown", "SIGTERM")
    ]
    with tempfile.TemporaryDirectory() as home:
        os.environ["XDG_STATE_HOME"] = home
        for case in harness.selected(cases, options.only):
            by_signal = case.endswith("SIGTERM")
            allowed = SIGTERM_S if by_signal else options.seconds
            with tempfile.TemporaryDirectory() as directory, _case(case, Path(directory)) as (url, away):
                outcome = shut_down(url, away, options.spans, allowed, by_signal=by_signal)
            is_fine &= outcome.seconds < allowed + 1 and not outcome.missing and not outcome.differences
            columns[f"{case} ({allowed:g} s)"] = {
                name: f"{value:.1f}" if isinstance(value, float) else f"{value:,}"
                for name, value in outcome._asdict().items()
            }
    print(harness.table(columns))
    return int(not is_fine)


@contextmanager
def _case(case: str, directory: Path) -> Generator[tuple[str, Away]]:
    if case.startswith("SQLite locked"):
        path = directory / "steps.db"
        yield f"sqlite:///{path}", lambda: locked(path)
    elif case.startswith("SQLite absent"):
        path = directory / "away" / "steps.db"
        yield f"sqlite:///{path}", lambda: absent(path)
    else:
        from benchmarks.postgres import Server

        server = Server()
        try:
            yield server.database(), server.stopped
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
