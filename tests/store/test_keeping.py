"""What both stores change on both engines: feedback, tags, transaction ids, deletions, pruning, rebuilding."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from in_loop import InLoop
from msgspec.structs import replace
from query_seeds import DAY_NS, TABLES, trace_id
from sqlalchemy import Engine, func, select, text

from step_exporter.errors import AmbiguousIdError, InputError, NotFoundError
from step_exporter.facts import RawSpan
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.query import RunFilter, StepFilter, StepStore
from step_exporter.store.retention import as_bytes
from step_exporter.store.schema import ensure_schema

pytestmark = pytest.mark.once

SECOND = 10**9


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def writer(engine: Engine) -> Writer:
    return Writer(engine)


@pytest.fixture(params=[StepStore, InLoop], ids=["sync", "async"])
def store(request: pytest.FixtureRequest, database_url: str, engine: Engine) -> Iterator[Any]:
    store = request.param(database_url)
    yield store
    store.close()


def span(number: int, parent: int | None, attributes: dict[str, Any], trace: int = 1, at: int = 0) -> RawSpan:
    start = DAY_NS + at * SECOND + number
    return RawSpan(
        trace_id(trace),
        f"{number:016x}",
        None if parent is None else f"{parent:016x}",
        "span",
        start_ns=start,
        end_ns=start + SECOND,
        attributes=attributes,
    )


def agent_trace(trace: int = 1, at: int = 0, size: int = 0, run_id: str | None = None) -> list[RawSpan]:
    """An agent with two LLM requests and a tool. ``size`` bytes of text make it heavy."""
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "weather"}
    if run_id:
        agent["step.run_id"] = run_id
    said = [{"role": "user", "parts": [{"type": "text", "content": f"{trace} " + "x" * size}]}]
    chat = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": 60,
        "gen_ai.usage.output_tokens": 40,
        "gen_ai.input.messages": json.dumps(said),
    }
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}
    return [
        span(2, 1, chat, trace, at),
        span(3, 1, tool, trace, at),
        span(4, 1, chat, trace, at),
        span(1, None, agent, trace, at),
    ]


def count(engine: Engine, table: str) -> int:
    with engine.connect() as conn:
        return conn.execute(select(func.count()).select_from(TABLES[table])).scalar_one()


def updated(store: Any) -> dict[str, datetime]:
    return {step.id: step.updated_at for step in store.steps()}


# Feedback, tags, transactions


def test_feedback_is_set_changed_and_taken_back(store: Any, writer: Writer) -> None:
    writer.write(agent_trace())
    second, first = store.steps()
    store.feedback(first.id, "positive", by="ann")
    assert [step.feedback for step in store.steps()] == [None, "positive"]
    assert [step.id for step in store.steps(StepFilter(has_feedback=True))] == [first.id]
    store.feedback(first.span_id, "negative", ["slow", "wrong"], trace_id=first.trace_id[:8])
    assert [(step.feedback, step.tags) for step in store.steps()] == [(None, None), ("negative", ["slow", "wrong"])]
    store.feedback(first.id, None)
    assert store.step(first.id).feedback is None
    assert store.step(first.id).tags == ["slow", "wrong"]
    assert store.step(second.id).tags is None
    assert store.verify() == []


def test_tags_and_a_transaction_id_replace_what_was_there(store: Any, writer: Writer) -> None:
    writer.write(agent_trace())
    step = store.steps().items[0]
    store.tags(step.id, ["b", "a", "b"])
    store.transaction(step.id, "tx-1")
    found = store.step(step.id)
    assert (found.tags, found.tid) == (["a", "b"], "tx-1")
    store.tags(step.id, [])
    store.transaction(step.id, None)
    found = store.step(step.id)
    assert (found.tags, found.tid) == (None, None)


def test_only_the_row_that_changed_is_written(store: Any, writer: Writer) -> None:
    writer.write(agent_trace())
    before = updated(store)
    step = store.steps().items[0]
    store.feedback(step.id, "positive")
    after = updated(store)
    assert {id_ for id_ in before if after[id_] != before[id_]} == {step.id}


def test_what_people_set_stays_through_late_spans_and_rebuilds(store: Any, writer: Writer) -> None:
    spans = agent_trace()
    writer.write(spans[:2])
    step = store.steps().items[0]
    store.feedback(step.id, "positive", ["kept"])
    writer.write(spans[2:])  # the writer remembers the trace from before the feedback
    assert store.step(step.id).feedback == "positive"
    assert store.rebuild() == 1
    assert (store.step(step.id).feedback, store.step(step.id).tags) == ("positive", ["kept"])
    assert store.verify() == []


def test_feedback_is_positive_negative_or_none(store: Any) -> None:
    for value in ("good", "", 1, True):
        with pytest.raises(InputError, match="feedback"):
            store.feedback("step-1", value)


def test_what_is_not_there_cannot_be_changed(store: Any, engine: Engine, writer: Writer) -> None:
    writer.write(agent_trace())
    for change in (
        lambda: store.feedback("step-unknown", "positive"),
        lambda: store.tags("step-unknown", []),
        lambda: store.transaction("step-unknown", "t"),
        lambda: store.delete(trace_id=trace_id(9)),
        lambda: store.delete(run_id="run-unknown"),
        lambda: store.rebuild([trace_id(9)]),
        lambda: store.verify([trace_id(9)]),
    ):
        with pytest.raises(NotFoundError):
            change()
    assert (count(engine, "traces"), count(engine, "annotations"), count(engine, "deletions")) == (1, 0, 0)


def test_a_change_by_an_id_that_several_traces_have_is_refused(store: Any, writer: Writer) -> None:
    for trace in (1, 2):
        writer.write([span(1, None, {"step.id": "step-1", "step.run_id": "run-1"}, trace)])
    with pytest.raises(AmbiguousIdError, match=trace_id(2)):
        store.feedback("step-1", "positive")
    with pytest.raises(AmbiguousIdError, match=trace_id(2)):
        store.delete(run_id="run-1")
    store.feedback("step-1", "positive", trace_id=trace_id(2))
    assert [step.trace_id for step in store.steps(StepFilter(feedback="positive"))] == [trace_id(2)]


def test_tags_and_people_have_names(store: Any, writer: Writer) -> None:
    writer.write(agent_trace())
    step = store.steps().items[0].id
    for change in (
        lambda: store.tags(step, [" "]),
        lambda: store.feedback(step, "positive", [""]),
        lambda: store.feedback(step, "positive", by=""),
    ):
        with pytest.raises(InputError, match="empty"):
            change()


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with StepStore(tmp_path / "no.db") as store, pytest.raises(NotFoundError):
        store.feedback("step-1", "positive")
    assert not list(tmp_path.iterdir())


# Deleting


def test_a_deleted_run_keeps_its_steps_and_does_not_come_back(store: Any, writer: Writer) -> None:
    spans = agent_trace()
    writer.write(spans)
    [run] = store.runs()
    assert store.delete(run_id=run.id, by="ann") == 1
    assert list(store.runs()) == []
    assert [step.run_id for step in store.steps()] == [None, None]
    assert store.verify() == []
    late = span(9, 1, spans[0].attributes, at=5)
    writer.write([late])
    assert [step.run_id for step in store.steps()] == [None, None, None]
    store.rebuild()
    assert list(store.runs()) == []
    assert store.verify() == []


def test_a_deleted_step_keeps_its_messages_and_does_not_come_back(store: Any, engine: Engine, writer: Writer) -> None:
    spans = agent_trace()
    writer.write(spans)
    first, second = (store.step(one.span_id) for one in (spans[0], spans[2]))
    said = [message.id for message in store.messages(trace_id=trace_id(1))]
    assert store.delete(step_id=first.id, trace_id=first.trace_id[:8], by="ann") == 1
    assert [step.id for step in store.steps()] == [second.id]
    assert count(engine, "step_metrics") == 1
    assert [message.id for message in store.messages(trace_id=trace_id(1))] == said
    assert {message.step_id for message in store.messages(trace_id=trace_id(1))} == {None}
    assert [run.step_count for run in store.runs()] == [1]
    assert [(entry.subject, entry.details) for entry in store.audit()] == [(first.id, {"kind": "step"})]
    writer.write([replace(spans[0], end_ns=(spans[0].end_ns or 0) + 1)])  # the same span once more, another end
    store.rebuild()
    assert [step.id for step in store.steps()] == [second.id]
    assert store.verify() == []


def test_a_deleted_trace_leaves_nothing_and_does_not_come_back(store: Any, engine: Engine, writer: Writer) -> None:
    writer.write(agent_trace(1) + agent_trace(2))
    assert store.delete(trace_id=trace_id(1)[:8]) == 1
    with pytest.raises(NotFoundError):
        store.trace(trace_id(1))
    with engine.connect() as conn:
        for table in TABLES.values():
            if "trace_id" in table.c and table.name not in ("deletions", "audit"):
                assert not conn.execute(select(table).where(table.c.trace_id == trace_id(1))).all(), table.name
    writer.write(agent_trace(1))
    assert {step.trace_id for step in store.steps()} == {trace_id(2)}
    assert store.verify() == []
    store.rebuild()
    assert {step.trace_id for step in store.steps()} == {trace_id(2)}


def test_what_ended_before_a_moment_is_deleted(store: Any, engine: Engine, writer: Writer) -> None:
    for trace in range(1, 5):
        writer.write(agent_trace(trace, at=trace * 100))
    assert store.delete(before=DAY_NS + 250 * SECOND) == 2
    assert sorted({step.trace_id for step in store.steps()}) == [trace_id(3), trace_id(4)]
    assert store.delete(before=datetime.fromtimestamp(DAY_NS / SECOND + 350, UTC)) == 1
    assert count(engine, "deletions") == 3


def test_deleting_and_pruning_say_what(store: Any) -> None:
    for asked in (
        {},
        {"before": 1, "run_id": "r"},
        {"before": datetime(2026, 1, 1)},
        {"run_id": "r", "step_id": "s"},
        {"before": 1, "step_id": "s"},
    ):
        with pytest.raises(InputError):
            store.delete(**asked)
    for asked in ({}, {"max_bytes": -1}, {"max_bytes": "1"}, {"older_than": datetime(2026, 1, 1)}, {"older_than": 30}):
        with pytest.raises(InputError):
            store.prune(**asked)


# Pruning


@pytest.mark.parametrize(
    ("size", "many"),
    [("500MB", 500 * 1000**2), ("2 gib", 2 * 1024**3), ("2g", 2 * 1000**3), ("7", 7), ("7B", 7), (7, 7), ("3Ki", 3072)],
)
def test_a_size_is_of_thousands_or_where_it_says_so_of_1024(size: object, many: int) -> None:
    assert as_bytes("a size", size) == many


@pytest.mark.parametrize("size", ["", "MB", "-1", "1.5GB", "2iB", "1 PB", True, -1, None])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(InputError, match="such as 500MB"):
        as_bytes("a size", size)


def test_prune_by_age_takes_whole_traces_and_they_may_begin_anew(store: Any, engine: Engine, writer: Writer) -> None:
    for trace in range(1, 31):
        writer.write(agent_trace(trace, at=trace * 100))
    done: list[int] = []
    cutoff = datetime.fromtimestamp(DAY_NS // SECOND + 2050, UTC)
    pruned = store.prune(older_than=cutoff, progress=done.append)
    assert pruned.traces == 20
    assert done[-1] == 20
    assert count(engine, "traces") == 10
    assert count(engine, "spans") == 40
    assert count(engine, "steps") == count(engine, "step_metrics") == 20
    writer.write(agent_trace(1))
    assert len(store.steps(StepFilter(trace_ids=[trace_id(1)]))) == 2
    assert store.verify() == []
    assert store.prune(older_than=timedelta(days=20_000)).traces == 0


def test_prune_without_steps_sweeps_only_what_no_step_follows_from(store: Any, engine: Engine, writer: Writer) -> None:
    for trace in range(1, 31):
        writer.write(agent_trace(trace, at=trace) if trace % 3 else [span(1, None, {}, trace, trace)])
    cutoff = datetime.fromtimestamp(DAY_NS / SECOND + 16, UTC)
    assert store.prune(without_steps=True, older_than=cutoff).traces == 4
    assert store.prune(without_steps=True).traces == 6
    assert count(engine, "traces") == count(engine, "runs") == 20
    assert store.prune(without_steps=True).traces == 0
    assert store.verify() == []


def test_prune_by_size_takes_the_oldest(store: Any, engine: Engine, writer: Writer) -> None:
    for trace in range(1, 41):
        writer.write(agent_trace(trace, at=trace * 100, size=20_000))
    used = store.prune(max_bytes=10**12).bytes_before
    pruned = store.prune(max_bytes=used // 2)
    assert pruned.bytes_after <= used // 2
    left = sorted({step.trace_id for step in store.steps(limit=1000)})
    assert 0 < len(left) < 40
    assert left == [trace_id(trace) for trace in range(41 - len(left), 41)]
    assert store.prune(max_bytes=used // 2).traces == 0
    assert store.verify() == []


def test_a_pruned_sqlite_file_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "steps.db"
    engine = create_sync_engine(path)
    ensure_schema(engine)
    writer = Writer(engine)
    for trace in range(1, 101):
        writer.write(agent_trace(trace, at=trace * 100, size=20_000))
    engine.dispose()
    before = path.stat().st_size
    with StepStore(path) as store:
        store.prune(older_than=datetime.fromtimestamp(DAY_NS // SECOND + 5050, UTC))
        assert path.stat().st_size < 0.6 * before
        assert store.verify() == []
    with sqlite3.connect(path) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    conn.close()


def test_prune_passes_over_traces_that_a_writer_holds(postgres_url: str) -> None:
    engine = create_sync_engine(postgres_url)
    ensure_schema(engine)
    Writer(engine).write(agent_trace(1) + agent_trace(2))
    with StepStore(postgres_url) as store, engine.begin() as conn:
        conn.execute(text("SELECT 1 FROM traces WHERE trace_id = :id FOR UPDATE"), {"id": trace_id(1)})
        assert store.prune(older_than=datetime.now(UTC) + timedelta(days=1)).traces == 1
        assert {step.trace_id for step in store.steps()} == {trace_id(1)}
    engine.dispose()


def test_pruning_while_writers_go_on_loses_nothing_new(store: Any, engine: Engine, writer: Writer) -> None:
    for trace in range(1, 61):
        writer.write(agent_trace(trace, at=trace))
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for trace in range(1000, 1030):
                writer.write(agent_trace(trace, at=10_000 + trace))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    store.prune(older_than=datetime.fromtimestamp(DAY_NS // SECOND + 5000, UTC))
    thread.join()
    assert not failed
    assert sorted({run.trace_id for run in store.runs(limit=1000)}) == [trace_id(n) for n in range(1000, 1030)]
    assert store.verify() == []


# Verify and rebuild

DAMAGE = {
    "a step changed": "UPDATE steps SET prompt_tokens = 1",
    "a status changed": "UPDATE steps SET status = 'success', error_type = 'x'",
    "a step deleted": "DELETE FROM steps WHERE id = (SELECT min(id) FROM steps)",
    "a step made up": "INSERT INTO steps (trace_id, id, span_id, status, created_at, updated_at)"
    " SELECT trace_id, 'step-x', span_id, status, created_at, updated_at FROM steps LIMIT 1",
    "metrics changed": "UPDATE step_metrics SET step_ns = 1",
    "metrics deleted": "DELETE FROM step_metrics",
    "a run changed": "UPDATE runs SET step_count = 7",
    "a run deleted": "DELETE FROM runs",
    "a message changed": "UPDATE messages SET role = 'system'",
    "a message deleted": "DELETE FROM messages",
    "feedback that nobody gave": "UPDATE steps SET feedback = 'positive'",
    "a role changed": "UPDATE spans SET role = 'other'",
}


def test_verify_finds_each_damage_and_rebuild_mends_it(database_url: str, engine: Engine, writer: Writer) -> None:
    writer.write(agent_trace(1) + agent_trace(2))
    with StepStore(database_url) as store:
        store.tags(store.steps().items[0].id, ["kept"])
        assert store.verify() == []
        for damage, statement in DAMAGE.items():
            with engine.begin() as conn:
                conn.execute(text(statement))
            assert store.verify(), damage
            seen: list[tuple[int, int]] = []
            assert store.rebuild(progress=lambda done, total: seen.append((done, total))) == 2  # noqa: B023
            assert seen == [(1, 2), (2, 2)]
            assert store.verify() == [], damage
        assert len(store.steps(StepFilter(tags_all=["kept"]))) == 1


def test_one_trace_can_be_verified_and_rebuilt(store: Any, engine: Engine, writer: Writer) -> None:
    writer.write(agent_trace(1) + agent_trace(2))
    with engine.begin() as conn:
        conn.execute(text("UPDATE runs SET step_count = 7"))
    assert store.rebuild([trace_id(1)]) == 1
    assert store.verify([trace_id(1)]) == []
    assert [difference.trace_id for difference in store.verify()] == [trace_id(2)]
    assert len(store.runs(RunFilter(trace_ids=[trace_id(1)]))) == 1
