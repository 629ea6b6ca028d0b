"""D: spans that nobody should send."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from fault_apps import LLM, ended, rows

from step_exporter.exporter import StepSpanExporter
from step_exporter.facts import RawSpan
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.schema import ensure_schema

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
T, S = f"{0xABC:032x}", f"{7:016x}"


def stored(db: Path, *batches: list[Any]) -> StepSpanExporter:
    exporter = StepSpanExporter(db, record="all")
    for batch in batches:
        exporter.export(batch)
    exporter.shutdown()
    return exporter


def test_d1_the_same_span_twice(db: Path, assert_invariants: Any) -> None:
    exporter = stored(db, [ended(), ended()], [ended()])
    assert exporter.stats().duplicates == 2
    assert_invariants(db, exporter.stats(), spans=1)


def test_d2_an_open_span_after_its_end_changes_nothing(db: Path, assert_invariants: Any) -> None:
    engine = create_sync_engine(db)
    ensure_schema(engine)
    done = RawSpan(T, S, None, "chat", start_ns=1, end_ns=9, attributes=LLM)
    begun = done._replace(ended=False, end_ns=None, process_id="p")
    older = done._replace(end_ns=5)
    for order in itertools.permutations([done, begun, older]):
        with engine.begin() as conn:
            for table in ("spans", "traces", "steps", "runs", "messages", "quarantine"):
                conn.exec_driver_sql(f"DELETE FROM {table}")
        writer = Writer(engine)
        for raw in order:
            writer.write([raw])
        assert rows(db, "SELECT state, end_ns, collisions FROM spans") == [("ended", 9, 1)]
        assert_invariants(db, spans=1)
    engine.dispose()


def test_d3_every_order_of_a_trace_ends_in_the_same_rows(tmp_path: Path) -> None:
    spans = [ended(1, AGENT), *(ended(n, parent=1, start_time=n * 100, end_time=n * 100 + 50) for n in range(2, 5))]
    tables = set[str]()
    for number, order in enumerate(itertools.permutations(spans)):
        db = tmp_path / f"{number}.db"
        stored(db, *([span] for span in order))
        columns = "trace_id, id, status, total_tokens, step_count, start_ns, total_duration_ns"
        found = rows(db, f"SELECT {columns} FROM runs"), rows(db, "SELECT id, run_id, status FROM steps ORDER BY id")
        tables.add(repr(found))
    assert len(tables) == 1


def test_d4_one_span_id_in_two_traces_is_two_rows(db: Path, assert_invariants: Any) -> None:
    exporter = stored(db, [ended(7, trace_id=1), ended(7, trace_id=2)])
    assert_invariants(db, exporter.stats(), spans=2)


def test_d5_and_d6_cycles_orphans_and_two_roots(db: Path, assert_invariants: Any) -> None:
    batch = [
        ended(1, parent=1, trace_id=1),
        ended(1, parent=2, trace_id=2),
        ended(2, parent=1, trace_id=2),
        *(ended(n, parent=n % 1000 + 1, trace_id=3) for n in range(1, 1001)),
        ended(1, parent=99, trace_id=4),
        ended(1, trace_id=5),
        ended(2, trace_id=5),
    ]
    exporter = stored(db, batch)
    assert_invariants(db, exporter.stats(), spans=len(batch))


def test_d7_a_deep_chain_and_a_wide_tree(db: Path, assert_invariants: Any) -> None:
    deep = [ended(n, {}, parent=n - 1 if n > 1 else None, trace_id=1) for n in range(1, 3001)]
    wide = [ended(1, AGENT, trace_id=2), *(ended(n, {}, parent=1, trace_id=2) for n in range(2, 3001))]
    exporter = stored(db, deep, wide)
    assert_invariants(db, exporter.stats(), spans=6000)


@pytest.mark.parametrize(
    "times", [(5, 3), (5, None), (0, 0), (-5, 5), (2**63, 2**64), (10**400, 1), (1.5, 2.5), (None, None)]
)
def test_d8_times_that_cannot_be(db: Path, times: tuple[Any, Any], assert_invariants: Any) -> None:
    exporter = stored(db, [ended(1, start_time=times[0], end_time=times[1])])
    assert_invariants(db, exporter.stats(), spans=1)
    assert all(value is None or value >= 0 for (value,) in rows(db, "SELECT step_ns FROM step_metrics"))


class Broken:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        "a\0b",
        "\ud800",
        "\u202egnirts",
        2**63,
        -(2**63) - 1,
        10**400,
        float("nan"),
        float("-inf"),
        -0.0,
        b"\xff\x00",
        {"nested": ["a\0", {"b": float("inf")}]},
        Broken(),
        [None, True, Broken()],
    ],
    ids=lambda value: type(value).__name__,
)
def test_d10_to_d20_a_bad_value_costs_its_neighbours_nothing(db: Path, value: Any, assert_invariants: Any) -> None:
    bad = ended(1, {**LLM, "bad": value, "gen_ai.usage.output_tokens": value})
    exporter = stored(db, [*(ended(n) for n in range(2, 52)), bad])
    assert_invariants(db, exporter.stats(), spans=51)


def test_d10_ten_thousand_events_and_attributes(db: Path, assert_invariants: Any) -> None:
    from opentelemetry.sdk.trace import Event

    events = [Event(f"e{n}", {"n": n}, n) for n in range(10_001)]
    many = ended(1, {f"a{n}": n for n in range(10_001)}, events=events)
    exporter = stored(db, [many, ended(2)])
    assert_invariants(db, exporter.stats(), spans=2)


def test_d16_to_d18_counts_that_do_not_agree(db: Path, assert_invariants: Any) -> None:
    usage = {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 1, "llm.token_count.prompt": 500}
    exporter = stored(db, [ended(1, {**AGENT, **usage}), ended(2, {**LLM, **usage}, parent=1)])
    assert rows(db, "SELECT sum(prompt_tokens) FROM steps") == [(5,)]
    assert_invariants(db, exporter.stats(), spans=2)


def test_d19_ids_that_cannot_be_go_to_the_quarantine(db: Path, assert_invariants: Any) -> None:
    engine = create_sync_engine(db)
    ensure_schema(engine)
    bad = [RawSpan("0" * 32, S, None, "a"), RawSpan("xyz", S, None, "a"), RawSpan(T, "0" * 16, None, "a")]
    result = Writer(engine).write([*bad, RawSpan(T.upper(), S, None, "chat")])
    assert (result.quarantined, result.new) == (3, 1)
    assert rows(db, "SELECT reason FROM quarantine") == [("invalid_id",)] * 3
    assert rows(db, "SELECT trace_id FROM spans") == [(T,)]
    engine.dispose()
    assert_invariants(db, spans=1)


def test_d25_a_poison_span_is_found_and_its_neighbours_are_stored(
    db: Path, assert_invariants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = Writer._transact

    def refuse(self: Writer, batch: Any) -> Any:
        if any(item.encoded.raw.name == "poison" for item in batch):
            raise ValueError("poison")
        return transact(self, batch)

    monkeypatch.setattr(Writer, "_transact", refuse)
    exporter = stored(db, [*(ended(n) for n in range(1, 512)), ended(999, name="poison")])
    assert (exporter.stats().committed, exporter.stats().quarantined) == (512, 1)
    assert_invariants(db, exporter.stats(), spans=511)
    monkeypatch.undo()
    from step_exporter.cli import main

    assert main(["doctor", "--db", str(db), "--requeue", "--json"]) == 0
    assert rows(db, "SELECT count(*) FROM quarantine") == [(0,)]
    assert_invariants(db, spans=512)
