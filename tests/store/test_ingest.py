"""From spans to rows in one transaction: exact, idempotent, order-free; a bad span costs its neighbours nothing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, select, text

from step_exporter.errors import DatabaseError
from step_exporter.facts import Event, Link, RawSpan, Resource, Scope
from step_exporter.models import Base
from step_exporter.store.bulk import time_text
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import UNDERIVED, WriteError, Writer
from step_exporter.store.load import load_spans
from step_exporter.store.rebuild import rebuild, verify
from step_exporter.store.schema import ensure_schema

TABLES = Base.metadata.tables
TRACE = "0af7651916cd43dd8448eb211c80319c"
OTHER = "1af7651916cd43dd8448eb211c80319c"
START = 1_764_000_000_123_456_789
DERIVED = ("steps", "step_metrics", "runs", "messages")


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    engine = create_sync_engine(url)
    try:
        ensure_schema(engine)
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with opened(database_url) as engine:
        yield engine


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Engine]:
    with opened(sqlite_url) as engine:
        yield engine


def span(number: int, parent: int | None = None, trace: str = TRACE, **fields: Any) -> RawSpan:
    start = START + number * 1_000_000
    given = {"name": f"span {number}", "start_ns": start, "end_ns": start + 500_000, **fields}
    return RawSpan(trace, f"{number:016x}", f"{parent:016x}" if parent is not None else None, **given)


def agent_run(trace: str = TRACE, turns: int = 3) -> list[RawSpan]:
    """An agent with one LLM request and one tool a turn, the conversation growing; ends in the order of an SDK."""
    resource = Resource({"service.name": "app", "service.instance.id": "app-1"})
    scope = Scope("tests", "1.0")
    spans: list[RawSpan] = []
    conversation: list[dict[str, Any]] = [{"role": "user", "parts": [{"type": "text", "content": "What is up?"}]}]
    for turn in range(turns):
        said = {
            "role": "assistant",
            "parts": [
                {"type": "text", "content": f"turn {turn}"},
                {"type": "tool_call", "id": f"call-{turn}", "name": "look", "arguments": {"n": turn}},
            ],
        }
        spans.append(
            span(
                10 + 2 * turn,
                1,
                trace,
                name="chat gpt-4o",
                kind="client",
                attributes={
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.request.model": "gpt-4o",
                    "gen_ai.response.id": f"{trace}-{turn}",
                    "gen_ai.usage.input_tokens": 101 + 100 * turn,
                    "gen_ai.usage.output_tokens": 37 + 10 * turn,
                    "gen_ai.response.finish_reasons": ("tool_calls",),
                    "gen_ai.input.messages": orjson.dumps(conversation).decode(),
                    "gen_ai.output.messages": orjson.dumps([said]).decode(),
                },
                resource=resource,
                scope=scope,
            )
        )
        spans.append(
            span(
                11 + 2 * turn,
                1,
                trace,
                name="execute_tool look",
                attributes={
                    "gen_ai.operation.name": "execute_tool",
                    "gen_ai.tool.name": "look",
                    "gen_ai.tool.call.id": f"call-{turn}",
                },
                resource=resource,
                scope=scope,
            )
        )
        answer = {"type": "tool_call_response", "id": f"call-{turn}", "response": f"saw {turn}"}
        conversation += [said, {"role": "tool", "parts": [answer]}]
    spans.append(
        span(
            1,
            None,
            trace,
            name="invoke_agent helper",
            end_ns=START + 100_000_000,
            attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"},
            resource=resource,
            scope=scope,
        )
    )
    return spans


def rows(engine: Engine, table: str, *columns: str) -> list[tuple[Any, ...]]:
    names = columns or tuple(
        column.name for column in TABLES[table].columns if column.name not in ("updated_at", "epoch", "changed_at")
    )
    with engine.connect() as conn:
        found = conn.execute(text(f"SELECT {', '.join(names)} FROM {table}")).all()
    return sorted((tuple(row) for row in found), key=repr)


def derived(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    return {table: rows(engine, table) for table in DERIVED}


def stored(engine: Engine, trace: str = TRACE) -> dict[str, RawSpan]:
    with engine.connect() as conn:
        return {found.raw.span_id: found.raw for found in load_spans(conn, trace)}


# --- what is stored


def test_every_span_comes_back_as_it_was(engine: Engine) -> None:
    spans = agent_run()
    spans.append(
        span(
            99,
            1,
            kind="producer",
            status_code="error",
            status_message="broken",
            attributes={"a": 1.5, "b": (True, None), "c": {"d": b"\0"}, "e": 2**70, "f": "\ud800"},
            events=(Event("gen_ai.choice", START, {"message": "hello", "index": 0}, 1),),
            links=(Link(OTHER, f"{7:016x}", "k=v", {"x": 1}, 2, 1),),
            trace_flags=3,
            trace_state="a=b",
            parent_is_remote=False,
            dropped_attributes=1,
            dropped_events=2,
            dropped_links=3,
        )
    )
    result = Writer(engine).write(spans)
    assert (result.new, result.committed) == (len(spans), len(spans))
    assert stored(engine) == {raw.span_id: raw for raw in spans}


def test_steps_runs_and_messages_are_there_when_write_returns(engine: Engine) -> None:
    Writer(engine).write(agent_run())
    steps = rows(engine, "steps", "prompt_tokens", "completion_tokens", "status", "model")
    assert steps == [(101, 37, "success", "gpt-4o"), (201, 47, "success", "gpt-4o"), (301, 57, "success", "gpt-4o")]
    assert rows(engine, "runs", "agent_name", "step_count", "prompt_tokens") == [("helper", 3, 603)]
    assert rows(engine, "step_metrics", "llm_request_count", "tool_call_count", "step_start_ns") == [
        (1, 1, START + number * 1_000_000) for number in (10, 12, 14)
    ]
    assert len(rows(engine, "messages")) == 6  # the question, three replies, the answers of two tools
    assert [name for _, name in rows(engine, "providers")] == ["openai"]


def test_nanoseconds_and_times_are_exact(engine: Engine) -> None:
    Writer(engine).write(agent_run())
    assert (START, START + 100_000_000) not in rows(engine, "spans", "start_ns", "end_ns")
    assert rows(engine, "traces", "first_ns", "last_ns") == [(START + 1_000_000, START + 100_000_000)]
    with engine.connect() as conn:
        created = conn.execute(select(TABLES["steps"].c.created_at).order_by("created_at")).scalars().first()
    assert created is not None
    assert time_text(START + 10_000_000) == created.strftime("%Y-%m-%d %H:%M:%S.%f")


def test_a_growing_conversation_is_stored_once(engine: Engine) -> None:
    Writer(engine).write(agent_run(turns=10))
    # per turn: the reply as output, the reply as input, the tool's answer; and the question
    assert len(rows(engine, "contents", "hash")) == 1 + 9 * 2 + 10


# --- the same again, any order, any batches


def test_the_same_spans_again_change_nothing(engine: Engine) -> None:
    spans = agent_run()
    Writer(engine).write(spans)
    before = {table: rows(engine, table) for table in TABLES if table != "step_exporter_version"}
    for writer in (Writer(engine), Writer(engine)):
        result = writer.write(spans)
        assert (result.new, result.duplicates) == (0, len(spans))
        assert writer.write(spans + spans).duplicates == 2 * len(spans)
    assert {table: rows(engine, table) for table in TABLES if table != "step_exporter_version"} == before


def test_a_span_twice_in_one_batch_is_one_row(engine: Engine) -> None:
    result = Writer(engine).write([span(1), span(1), span(2)])
    assert (result.new, result.duplicates) == (2, 1)
    assert len(rows(engine, "spans")) == 2


@pytest.mark.parametrize("seed", range(4))
def test_any_order_in_any_batches_by_several_writers_gives_the_same_rows(sqlite: Engine, seed: int) -> None:
    spans = agent_run() + agent_run(OTHER, turns=2)
    spans += [span(50, 10, attributes={"gen_ai.operation.name": "execute_tool"}), span(51, 77)]
    Writer(sqlite).write(spans)
    expected = derived(sqlite)
    with sqlite.begin() as conn:
        for table in (*DERIVED, "spans", "contents", "resources", "traces"):
            conn.execute(text(f"DELETE FROM {table}"))
    shuffled = spans * 2
    rng = random.Random(seed)
    rng.shuffle(shuffled)
    writers = [Writer(sqlite), Writer(sqlite, max_known_spans=0), Writer(sqlite)]
    at = 0
    while at < len(shuffled):
        size = rng.randint(1, 7)
        rng.choice(writers).write(shuffled[at : at + size])
        at += size
    assert derived(sqlite) == expected
    assert list(verify(sqlite)) == []


def test_one_span_id_in_two_traces_is_two_spans(engine: Engine) -> None:
    Writer(engine).write([span(1, trace=TRACE), span(1, trace=OTHER)])
    assert len(rows(engine, "spans")) == 2


# --- two facts under one key


def test_an_end_replaces_the_open_span_whatever_comes_first(engine: Engine) -> None:
    ended = span(1, attributes={"gen_ai.operation.name": "invoke_agent"})
    begun = replace(ended, end_ns=None, ended=False)
    for trace, order in ((TRACE, [begun, ended]), (OTHER, [ended, begun])):
        for raw in order:
            Writer(engine).write([replace(raw, trace_id=trace)])
    assert rows(engine, "spans", "state", "collisions") == [("ended", 0), ("ended", 0)]
    assert rows(engine, "quarantine") == []


def test_a_pending_span_and_its_end_in_one_batch_are_one(engine: Engine) -> None:
    ended = span(1, attributes={"gen_ai.operation.name": "invoke_agent"})
    Writer(engine).write([replace(ended, end_ns=None, ended=False), ended])
    assert rows(engine, "spans", "state", "collisions") == [("ended", 0)]
    assert rows(engine, "steps", "status") == [("success",)]


def test_of_different_spans_with_one_id_the_facts_decide_not_the_order(sqlite: Engine) -> None:
    versions = [
        span(1, end_ns=START + 5_000_000),
        span(1, end_ns=START + 9_000_000),
        span(1, end_ns=START + 9_000_000, attributes={"a": 1}),
        span(1, end_ns=None, ended=False),
    ]
    outcomes = set[str]()
    for number, order in enumerate(itertools.permutations(versions)):
        trace = f"{number + 1:032x}"
        writer = Writer(sqlite)
        for raw in order:
            writer.write([replace(raw, trace_id=trace)])
        result = writer.write([replace(raw, trace_id=trace) for raw in order])
        assert result.new == 0
        raw = stored(sqlite, trace)[f"{1:016x}"]
        outcomes.add(repr(replace(raw, trace_id="")))
        assert raw.collisions == 2
    assert len(outcomes) <= 2  # the smaller hash wins, and it covers the trace id
    assert all("end_ns=1764000000132456789" in outcome for outcome in outcomes)
    reasons = rows(sqlite, "quarantine", "reason")
    assert reasons == [("id_collision",)] * 2 * 24
    assert list(verify(sqlite)) == []


def test_a_collision_is_counted_kept_and_flagged_on_the_step(engine: Engine) -> None:
    spans = agent_run(turns=1)
    writer = Writer(engine)
    writer.write(spans)
    result = writer.write([replace(spans[0], end_ns=spans[0].end_ns + 1)])  # type: ignore[operator]
    assert (result.collisions, result.committed) == (1, 1)
    ((flags,),) = rows(engine, "steps", "flags")
    assert "id_collision" in flags
    with engine.connect() as conn:
        body = conn.execute(select(TABLES["quarantine"].c.body)).scalar_one()
    assert orjson.loads(body)["end_ns"] == spans[0].end_ns


# --- bad spans among good ones

BAD: dict[str, Callable[[RawSpan], RawSpan]] = {
    "NUL": lambda raw: replace(raw, name="a\0b", attributes={"k\0": "v\0"}, status_message="\0"),
    "lone surrogate": lambda raw: replace(raw, name="\ud800", attributes={"gen_ai.request.model": "\udfff"}),
    "surrogate in JSON": lambda raw: replace(
        raw,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.output.messages": '[{"role":"assistant","parts":[{"type":"text","content":"\\ud800 \\u0000"}]}]',
        },
    ),
    "NaN": lambda raw: replace(
        raw, attributes={"n": float("nan"), "i": float("-inf"), "gen_ai.usage.input_tokens": 1e999}
    ),
    "int": lambda raw: replace(raw, attributes={"n": 2**63, "m": -(10**400), "gen_ai.usage.input_tokens": 2**63}),
    "bytes": lambda raw: replace(raw, attributes={"n": b"\xff\0"}),
    "nested": lambda raw: replace(raw, attributes={"n": {"a": {"b": [1, {"c": object()}]}}}),
    "10 MB": lambda raw: replace(raw, attributes={"n": "x" * 10_000_000}),
    "100,000 attributes": lambda raw: replace(raw, attributes={f"key{n}": n for n in range(100_000)}),
    "times": lambda raw: replace(raw, start_ns=2**63, end_ns=-1),
    "types": lambda raw: replace(raw, name=None, kind="?", trace_state=7, dropped_events=-1),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_span_costs_its_511_neighbours_nothing(engine: Engine, kind: str) -> None:
    spans = [span(number, 1) for number in range(1, 512)]
    bad = BAD[kind](span(600, 1))
    result = Writer(engine).write([*spans[:256], bad, *spans[256:]])
    assert (result.new, result.quarantined) == (512, 0)
    assert len(rows(engine, "spans", "span_id")) == 512
    flags = dict(rows(engine, "spans", "span_id", "flags"))[bad.span_id]
    doubtful = {
        "nested": "unsafe_value",
        "10 MB": "truncated",
        "100,000 attributes": "truncated",
        "times": "clock_skew",
    }
    assert doubtful.get(kind, "") in (flags or "")
    assert list(verify(engine)) == []


@pytest.mark.parametrize("trace_id", ["0" * 32, "short", "\0" * 32, "\ud800" * 32, None])
def test_a_span_without_a_valid_id_goes_to_quarantine(engine: Engine, trace_id: Any) -> None:
    result = Writer(engine).write([span(1), replace(span(2), trace_id=trace_id), span(3)])
    assert (result.new, result.quarantined, result.committed) == (2, 1, 3)
    assert rows(engine, "quarantine", "reason") == [("invalid_id",)]


def test_ids_in_upper_case_are_the_same_span(engine: Engine) -> None:
    raw = span(0xABC, 0xDEF)
    upper = replace(raw, trace_id=raw.trace_id.upper(), span_id=raw.span_id.upper(), parent_span_id=f"{0xDEF:016X}")
    assert Writer(engine).write([raw, upper]).duplicates == 1


def test_a_span_that_the_database_refuses_is_found_by_halving(sqlite: Engine) -> None:
    with sqlite.begin() as conn:
        conn.execute(
            text(
                "CREATE TRIGGER refuse BEFORE INSERT ON spans WHEN NEW.name = 'poison'"
                " BEGIN SELECT RAISE(ABORT, 'no poison'); END"
            )
        )
    spans = [span(number, name="poison" if number in (77, 300) else "fine") for number in range(512)][1:]
    result = Writer(sqlite).write(spans)
    assert (result.new, result.quarantined) == (509, 2)
    assert rows(sqlite, "quarantine", "span_id", "reason", "detail") == [
        (f"{77:016x}", "unstorable", "no poison"),
        (f"{300:016x}", "unstorable", "no poison"),
    ]


def test_facts_are_kept_where_deriving_fails_and_rebuild_catches_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step_exporter.derive import Derivation

    apply = Derivation.apply

    def broken(self: Derivation, facts: Any) -> Any:
        if self.trace_id == TRACE:
            raise RuntimeError("a bug")
        return apply(self, facts)

    monkeypatch.setattr(Derivation, "apply", broken)
    writer = Writer(engine)
    result = writer.write(agent_run() + agent_run(OTHER))
    assert (result.new, result.quarantined) == (14, 0)
    assert writer.write([span(40)]).new == 1
    assert rows(engine, "quarantine", "trace_id", "reason") == [(TRACE, UNDERIVED)]
    assert {trace for (trace,) in rows(engine, "steps", "trace_id")} == {OTHER}
    assert {reason for (reason,) in rows(engine, "quarantine", "detail")} == {"a bug"}
    with engine.begin() as conn:
        conn.execute(text("UPDATE steps SET model = 'x'"))
    with pytest.raises(DatabaseError, match=f"1 of 2 traces .* the others were: a bug .*{TRACE}"):
        rebuild(engine)
    assert "x" not in {model for (model,) in rows(engine, "steps", "model")}
    monkeypatch.undo()
    assert list(verify(engine)) != []
    assert rebuild(engine) == 2
    assert list(verify(engine)) == []
    assert rows(engine, "quarantine") == []
    assert len(rows(engine, "steps")) == 6


# --- what a writer remembers


def test_writers_that_take_turns_agree(engine: Engine) -> None:
    writers = Writer(engine), Writer(engine)
    for number, raw in enumerate(agent_run(turns=6)):
        writers[number % 2].write([raw])
    assert rows(engine, "runs", "step_count", "prompt_tokens") == [(6, sum(101 + 100 * n for n in range(6)))]
    assert list(verify(engine)) == []


def test_a_trace_that_was_deleted_and_made_again_is_not_mixed_up_with_what_is_remembered(engine: Engine) -> None:
    first, second = Writer(engine), Writer(engine)
    first.write(agent_run()[:2])
    with engine.begin() as conn:
        for table in (*DERIVED, "spans", "contents", "resources", "traces"):
            conn.execute(text(f"DELETE FROM {table}"))
    second.write(agent_run()[2:4])
    first.write(agent_run()[4:])
    assert len(rows(engine, "steps")) == 2
    assert list(verify(engine)) == []


def test_a_provider_and_an_organization_that_are_gone_are_put_back(engine: Engine) -> None:
    writer = Writer(engine)
    of_acme = {"step.organization_id": "acme"}
    runs = [
        [replace(raw, attributes={**raw.attributes, **of_acme}) for raw in agent_run(f"{number:032x}")]
        for number in (1, 2, 3)
    ]
    writer.write(runs[0])
    with engine.begin() as conn:  # in use by nothing any more, as another server's after a failover
        for table in (*DERIVED, "spans", "contents", "resources", "traces", "providers", "organizations"):
            conn.execute(text(f"DELETE FROM {table}"))
    for run in runs[1:]:
        for raw in run:
            writer.write([raw])
    assert len(rows(engine, "steps")) == 6
    assert rows(engine, "quarantine") == []
    assert rows(engine, "organizations", "id") == [("acme",)]
    assert rows(engine, "providers", "name") == [("openai",)]
    assert list(verify(engine)) == []


def test_an_id_that_no_index_takes_is_cut_alike_and_costs_nothing_else(engine: Engine) -> None:
    writer = Writer(engine)
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-5"}
    names = ("step.id", "step.run_id", "step.organization_id", "step.provider_id", "gen_ai.agent.id", "session.id")
    for number, name in enumerate(names, 1):
        spans = [span(at, None, attributes={**chat, name: "ä" * 1500 + letter}) for at, letter in enumerate("aab", 1)]
        spans.append(span(4, None, attributes=chat))
        assert writer.write([replace(item, trace_id=f"{number:032x}") for item in spans]).new == 4, name
    with engine.connect() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM quarantine").scalar() == 0
        assert {len(id_) for (id_,) in conn.exec_driver_sql("SELECT agent_id FROM steps") if id_} == {256}
        count = "SELECT count(*) FROM steps GROUP BY trace_id ORDER BY trace_id"
        assert [found for (found,) in conn.exec_driver_sql(count)] == [3, 4, 4, 4, 4, 4]  # one id is one step
    assert rebuild(engine) == 6
    assert list(verify(engine)) == []


def test_texts_count_towards_what_a_writer_remembers(sqlite: Engine) -> None:
    writer = Writer(sqlite, max_known_spans=100)
    for number in range(1, 41):
        said = [{"role": "user", "parts": [{"type": "text", "content": f"{number}" * 50_000}]}]
        chat = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": orjson.dumps(said).decode()}
        writer.write([replace(span(3, 1, attributes=chat), trace_id=f"{number:032x}")])
    assert len(writer._known) < 10


def test_what_a_writer_remembers_is_bounded(sqlite: Engine) -> None:
    writer = Writer(sqlite, max_known_spans=20)
    for number in range(1, 30):
        writer.write([replace(raw, trace_id=f"{number:032x}") for raw in agent_run()])
    assert len(writer._known) <= 2
    assert list(verify(sqlite)) == []


def test_a_failed_transaction_is_forgotten_and_can_be_tried_again(sqlite: Engine) -> None:
    writer = Writer(sqlite)
    spans = agent_run()
    writer.write(spans[:3])
    with sqlite.begin() as conn:
        conn.execute(text("ALTER TABLE traces RENAME TO hidden"))
    with pytest.raises(WriteError) as raised:
        writer.write(spans[3:])
    assert raised.value.result.committed == 0
    with sqlite.begin() as conn:
        conn.execute(text("ALTER TABLE hidden RENAME TO traces"))
    assert writer.write(spans[3:]).new == 4
    assert list(verify(sqlite)) == []


# --- derive again


def test_rebuild_makes_the_same_rows_from_the_facts_alone(engine: Engine) -> None:
    Writer(engine).write(agent_run() + agent_run(OTHER))
    before = derived(engine)
    with engine.begin() as conn:
        for table in ("messages", "steps", "runs"):
            conn.execute(text(f"DELETE FROM {table}"))
        conn.execute(text("UPDATE spans SET role = 'other', convention = NULL"))
    missing = list(verify(engine))
    assert {difference.table for difference in missing} == {*DERIVED, "spans"}
    seen: list[tuple[int, int]] = []
    assert rebuild(engine, progress=lambda done, total: seen.append((done, total))) == 2
    assert seen == [(1, 2), (2, 2)]
    assert derived(engine) == before
    assert list(verify(engine)) == []


def test_verify_names_the_columns_that_differ(engine: Engine) -> None:
    Writer(engine).write(agent_run(turns=1))
    with engine.begin() as conn:
        conn.execute(text("UPDATE steps SET prompt_tokens = 1"))
        conn.execute(text("UPDATE runs SET status = 'failed'"))
    differences = list(verify(engine, [TRACE]))
    assert [(found.table, found.stored, found.derived) for found in differences] == [
        ("steps", {"prompt_tokens": 1}, {"prompt_tokens": 101}),
        ("runs", {"status": "failed"}, {"status": "completed"}),
    ]


def test_a_writer_notices_a_rebuild(engine: Engine) -> None:
    writer = Writer(engine)
    spans = agent_run()
    writer.write(spans[:4])
    rebuild(engine, [TRACE])
    writer.write(spans[4:])
    assert list(verify(engine)) == []
