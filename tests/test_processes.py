"""Several processes that write into one database at once: exact rows, no error, nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import text

from step_exporter.store.engine import create_sync_engine
from step_exporter.store.rebuild import verify

pytestmark = pytest.mark.once

PROCESSES = 4
TURNS = 30

WORKER = """
import random, sys, time
from step_exporter.facts import RawSpan
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.schema import ensure_schema

url, worker, traces, begin = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
TURNS, PROCESSES = {TURNS}, {PROCESSES}
CHAT = {{"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 1, "gen_ai.input.messages": '[{{"role": "user", "content": "the same"}}]'}}

def span(trace, number, parent, attributes):
    start = 1_764_000_000_000_000_000 + number * 1_000
    return RawSpan(f"{{trace + 1:032x}}", f"{{number:016x}}", parent and f"{{parent:016x}}", "work", start_ns=start,
                   end_ns=start + 500, attributes=attributes)

spans = []
for trace in range(traces):
    # one agent above all, that every process reports; and each process's own LLM requests below it
    spans.append(span(trace, 1, None, {{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"}}))
    for turn in range(TURNS // traces):
        provider = "provider-%d" % ((turn * (worker + 1)) % 5)
        own = {{**CHAT, "gen_ai.provider.name": provider, "gen_ai.response.id": f"{{worker}}-{{trace}}-{{turn}}"}}
        spans.append(span(trace, 10 + turn * PROCESSES + worker, 1, own))
random.Random(worker).shuffle(spans)
engine = create_sync_engine(url)
time.sleep(max(0, begin - time.time()))
ensure_schema(engine)
writer = Writer(engine, patience_s=60)
for at in range(0, len(spans), 4):
    result = writer.write(spans[at : at + 4] + spans[:1])
    assert result.quarantined == result.collisions == 0, result
engine.dispose()
"""


def work(url: str, traces: int) -> None:
    import time

    code = WORKER.format(TURNS=TURNS, PROCESSES=PROCESSES)
    begin = str(time.time() + 3)
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, url, str(worker), str(traces), begin],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        for worker in range(PROCESSES)
    ]
    try:
        outcomes = [(worker.communicate(timeout=240)[1], worker.returncode) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert outcomes == [("", 0)] * PROCESSES


def values(url: str, sql: str) -> list[tuple[Any, ...]]:
    engine = create_sync_engine(url)
    try:
        with engine.connect() as conn:
            return [tuple(row) for row in conn.execute(text(sql))]
    finally:
        engine.dispose()


@pytest.mark.parametrize("traces", [1, 10])
def test_four_processes_write_exact_rows(database_url: str, traces: int) -> None:
    work(database_url, traces)
    requests = PROCESSES * TURNS
    assert values(database_url, "SELECT count(*) FROM spans") == [(requests + traces,)]
    assert values(database_url, "SELECT count(*), sum(prompt_tokens), sum(total_tokens) FROM steps") == [
        (requests, 10 * requests, 11 * requests)
    ]
    runs = values(database_url, "SELECT agent_name, status, step_count, prompt_tokens FROM runs")
    assert runs == [("helper", "completed", requests // traces, 10 * requests // traces)] * traces
    assert values(database_url, "SELECT count(*) FROM quarantine") == [(0,)]
    assert values(database_url, "SELECT count(*) FROM contents") == [(traces,)]
    assert values(database_url, "SELECT count(*) FROM providers") == [(5,)]
    engine = create_sync_engine(database_url)
    try:
        assert list(verify(engine)) == []
    finally:
        engine.dispose()
