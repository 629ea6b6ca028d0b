"""Four processes that export into one database at once: the rows are those of one process, no error, nothing lost."""

from __future__ import annotations

import logging
import multiprocessing
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from threading import Barrier
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from dumps import clear, dump, opened
from readable import readable
from recordings import sample
from step_exporter.exporter import ExporterStats, SpanExportResult, StepSpanExporter
from step_exporter.facts import RawSpan
from step_exporter.store.rebuild import verify

PROCESSES = 4
BATCH = 16


class Outcome(NamedTuple):
    """What one process has to tell."""

    stats: ExporterStats
    failures: int
    logged: list[str]


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


begin: Barrier
"""In each of the processes: where they wait for the others."""


def begin_together(barrier: Barrier) -> None:
    global begin
    begin = barrier


def export(url: str, raws: list[RawSpan], alone: bool = False) -> Outcome:
    """Export the spans in batches, at the same time as the other processes."""
    heard = Heard()
    logging.getLogger().addHandler(heard)
    exporter = StepSpanExporter(url, record="all")
    spans = [readable(raw) for raw in raws]
    if not alone:
        begin.wait(120)
    results = [exporter.export(spans[at : at + BATCH]) for at in range(0, len(spans), BATCH)]
    exporter.shutdown()
    logging.getLogger().removeHandler(heard)
    return Outcome(exporter.stats(), results.count(SpanExportResult.FAILURE), heard.lines)


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Four new processes, that begin each job together."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, spawn, begin_together, (spawn.Barrier(PROCESSES),)) as pool:
        yield pool


def one_trace() -> list[RawSpan]:
    """An agent that makes 100 requests, each with a tool."""
    trace_id, start = "0af7651916cd43dd8448eb211c80319c", 1_764_000_000_000_000_000
    spans = [RawSpan(trace_id, f"{1:016x}", None, "invoke_agent helper", start_ns=start, end_ns=start + 10**9)]
    spans[0] = replace(spans[0], attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"})
    for turn in range(100):
        begun = start + turn * 1_000_000
        said = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": ("openai", "anthropic", "mistral_ai")[turn % 3],
            "gen_ai.response.model": "m",
            "gen_ai.response.id": f"response-{turn}",
            "gen_ai.usage.input_tokens": 101 + turn,
            "gen_ai.usage.output_tokens": 37,
            "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "go on"}]}]',
        }
        used = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}
        for number, name, after, attributes in ((2, "chat m", 0, said), (3, "execute_tool look", 500_000, used)):
            spans.append(
                RawSpan(
                    trace_id,
                    f"{10 * turn + number:016x}",
                    spans[0].span_id,
                    name,
                    start_ns=begun + after,
                    end_ns=begun + after + 400_000,
                    attributes=attributes,
                )
            )
    return spans


def many_traces() -> list[RawSpan]:
    """Recordings of 48 programs."""
    return sample(8)


@pytest.mark.parametrize("spans_of", [one_trace, many_traces])
def test_four_processes_store_the_rows_of_one(
    processes: ProcessPoolExecutor, database_url: str, spans_of: Callable[[], list[RawSpan]]
) -> None:
    raws = spans_of()
    with opened(database_url) as engine:
        alone = export(database_url, raws, alone=True)
        assert (alone.stats.committed, alone.failures) == (len(raws), 0)
        expected = dump(engine)
        clear(engine)

        common = raws[:: len(raws) // 20]  # some spans are exported by all of them, as those that were open at a fork
        shares: list[list[RawSpan]] = []
        for number in range(PROCESSES):
            share = raws[number::PROCESSES] + common
            shares.append(random.Random(number).sample(share, len(share)))
        jobs = [processes.submit(export, database_url, share) for share in shares]
        for job, share in zip(jobs, shares, strict=True):
            outcome = job.result(timeout=240)
            assert (outcome.failures, outcome.logged) == (0, [])
            assert (outcome.stats.committed, outcome.stats.seen) == (len(share), len(share))
            assert not any(outcome.stats.dropped.values())
            assert outcome.stats.collisions == outcome.stats.quarantined == 0
        assert sum(job.result().stats.duplicates for job in jobs) == sum(map(len, shares)) - len(raws)
        assert dump(engine) == expected
        assert list(verify(engine)) == []
