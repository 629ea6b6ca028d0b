"""Kill a program that exports at full speed, again and again, and look whether what it had acknowledged is there.

    python benchmarks/kills.py [--kills 1000] [--db URL]

Without ``--db`` a SQLite file in a temporary directory. Prints one line; exits with 1 if anything is missing.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

from step_exporter.store.engine import create_sync_engine
from step_exporter.store.rebuild import verify
from step_exporter.store.schema import ensure_schema

APP = """
import sys
import step_exporter
from opentelemetry import trace
from step_exporter.idgen import SecretsIdGenerator
from opentelemetry.sdk.trace import TracerProvider
provider = TracerProvider(id_generator=SecretsIdGenerator())
handle = step_exporter.configure(sys.argv[1], provider=provider)
tracer = provider.get_tracer("app")
AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 5}
while True:
    ids = []
    for _ in range(20):
        with tracer.start_as_current_span("agent", attributes=AGENT) as agent:
            for _ in range(3):
                with tracer.start_as_current_span("chat", attributes=LLM) as span:
                    ids.append(span.get_span_context())
            ids.append(agent.get_span_context())
    report = handle.flush(30)
    if not report.pending and not report.dropped:
        print(" ".join(f"{c.trace_id:032x}{c.span_id:016x}" for c in ids), flush=True)
"""


def kill_once(db: str, rng: random.Random) -> set[str]:
    """Run the program, kill it at a random moment after its first flush; what it had acknowledged."""
    process = subprocess.Popen([sys.executable, "-c", APP, db], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = set(process.stdout.readline().split())
    timer = threading.Timer(rng.uniform(0, 0.5), lambda: os.kill(process.pid, signal.SIGKILL))
    timer.start()
    for line in process.stdout:
        if line.endswith("\n"):
            acknowledged.update(line.split())
    process.wait()
    process.stdout.close()
    return acknowledged


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--db")
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_STATE_HOME"] = directory
        db = options.db or f"sqlite:///{directory}/steps.db"
        engine = create_sync_engine(db)
        ensure_schema(engine)
        acknowledged = set[str]()
        for _ in range(options.kills):
            acknowledged |= kill_once(db, rng)
        with engine.begin() as conn:
            stored = [f"{row[0]}{row[1]}" for row in conn.exec_driver_sql("SELECT trace_id, span_id FROM spans")]
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
    return int(bool(missing) or bool(differences) or sound != "ok" or len(stored) != len(set(stored)))


if __name__ == "__main__":
    sys.exit(main())
