"""What readers get: the same records, pages and errors from both stores on both engines."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from in_loop import InLoop
from query_seeds import (
    DAY,
    DAY_NS,
    TABLES,
    at,
    llm_span,
    put,
    put_facts,
    put_message,
    put_run,
    put_spans,
    put_step,
    put_trace,
    trace_id,
)
from sqlalchemy import Connection, Engine, text

from step_exporter.errors import (
    AmbiguousIdError,
    ConfigurationError,
    DatabaseError,
    InputError,
    NotFoundError,
    SchemaError,
)
from step_exporter.facts import RawSpan
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.query import AsyncStepStore, RunFilter, StepFilter, StepStore
from step_exporter.store.records import MessageRecord, RunRecord, StepMetricsRecord, StepRecord
from step_exporter.store.schema import ensure_schema

pytestmark = pytest.mark.once

Seed = Callable[[], AbstractContextManager[Connection]]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def write(engine: Engine) -> Seed:
    return engine.begin


@contextmanager
def opened(kind: type[Any], url: str) -> Iterator[Any]:
    store = kind(url)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture(params=[StepStore, InLoop], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> type[Any]:
    return request.param


@pytest.fixture
def store(kind: type[Any], database_url: str, engine: Engine) -> Iterator[Any]:
    with opened(kind, database_url) as store:
        yield store


def ids(rows: Any) -> list[str]:
    return [row.id for row in rows]


# A trace


def test_a_trace_has_its_runs_steps_spans_and_messages(store: Any, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        put_run(conn, trace, "run-1", span_id=f"{1:016x}", step_count=2)
        put_step(conn, trace, "step-2", 2, span_id=f"{4:016x}", run_id="run-1")
        put_step(conn, trace, "step-1", 1, span_id=f"{2:016x}", run_id="run-1", model="gpt-5", tags=["a"])
        put_message(conn, trace, "m2", 2, '{"role":"assistant","content":"Rain."}', run_id="run-1", step_id="step-1")
        put_message(conn, trace, "m1", 1, "Weather?", run_id="run-1", step_id="step-1")
        prompt = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "Weather?"}]}])
        put_spans(
            conn, [llm_span(trace, 2, 1, attributes={"gen_ai.input.messages": prompt, "n": 1}), llm_span(trace, 1)]
        )
    found = store.trace(trace)
    assert (found.trace_id, found.first_ns, found.last_ns) == (trace, DAY_NS, DAY_NS + 10**9)
    assert ids(found.runs) == ["run-1"]
    assert [(step.id, step.position) for step in found.steps] == [("step-1", 1), ("step-2", 2)]
    assert found.steps[0].metrics.step_start_ns == DAY_NS + 10**9
    assert (found.steps[0].model, found.steps[0].tags, found.steps[0].created_at) == ("gpt-5", ["a"], at(1))
    assert [message.content for message in found.messages] == ["Weather?", {"role": "assistant", "content": "Rain."}]
    assert [span.span_id for span in found.spans] == [f"{1:016x}", f"{2:016x}"]
    assert found.spans[1].attributes == {"gen_ai.input.messages": prompt, "n": 1}


def test_a_trace_is_found_by_a_unique_prefix_in_either_case(store: Any, write: Seed) -> None:
    with write() as conn:
        trace, other = put_trace(conn, 0xABCD), put_trace(conn, 0xABCE)
    for given in (trace, trace[:4], "ABCD", f" {trace.upper()}\n"):
        assert store.trace(given).trace_id == trace
    assert store.find_trace(other[:9]) == other


def test_an_ambiguous_prefix_lists_the_candidates(store: Any, write: Seed) -> None:
    with write() as conn:
        put(conn, "traces", [{"trace_id": "beef" + f"{number:028x}"} for number in range(15)])
    with pytest.raises(AmbiguousIdError, match=f"beef{0:028x}, beef{1:028x}.*, …$") as raised:
        store.trace("beef")
    assert str(raised.value).count(", ") == 10


def test_an_unknown_trace_is_not_found_and_a_malformed_id_is_refused(store: Any) -> None:
    with pytest.raises(NotFoundError, match="0123…"):
        store.trace("0123")
    with pytest.raises(NotFoundError, match=trace_id(1) + "$"):
        store.trace(trace_id(1))
    for given in ("abc", "", "0" * 33, "xyzw", "%%%%", "' OR 1=1 --", "\0" * 4, "٣٣٣٣"):
        with pytest.raises(InputError, match="32 hexadecimal digits"):
            store.trace(given)


# The tree of a trace


def agents(trace: str) -> list[RawSpan]:
    """An agent whose first request asks for a tool, which invokes another agent; its second request answers."""
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-5"}
    return [
        llm_span(trace, 1, name="POST /chat"),
        llm_span(trace, 2, 1, attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "boss"}),
        llm_span(trace, 3, 2, attributes=chat),
        llm_span(trace, 4, 2, attributes={"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "ask"}),
        llm_span(trace, 5, 4, attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "expert"}),
        llm_span(trace, 6, 5, attributes=chat),
        llm_span(trace, 7, 6, name="POST /v1/chat"),
        llm_span(trace, 8, 2, attributes=chat),
    ]


def test_the_tree_goes_from_runs_to_steps_to_spans_and_nested_runs_stand_below_their_step(
    store: Any, write: Seed
) -> None:
    with write() as conn:
        put_facts(conn, agents(trace_id(1)))
    found = store.trace(trace_id(1))
    labels = {
        **{span.span_id: f"span {int(span.span_id, 16)}" for span in found.spans},
        **{step.id: f"step {int(step.span_id, 16)}" for step in found.steps},
        **{run.id: f"run {run.agent_name}" for run in found.runs},
    }
    assert ["  " * node.depth + labels[node.id] for node in found.tree] == [
        "span 1",
        "run boss",
        "  span 2",
        "  step 3",
        "    span 3",
        "    span 4",
        "    run expert",
        "      span 5",
        "      step 6",
        "        span 6",
        "          span 7",
        "  step 8",
        "    span 8",
    ]
    for step in found.steps:
        for span in (span for span in found.spans if span.step_id == step.id):
            assert store.step(span.span_id).id == step.id


def test_a_trace_of_orphans_cycles_and_self_parents_shows_every_row_once(store: Any, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        put_run(conn, trace, "r1", parent_run_id="r2")
        put_run(conn, trace, "r2", parent_run_id="r1")
        put_run(conn, trace, "r3", parent_run_id="r3")
        put_step(conn, trace, "s1", run_id="gone", parent_step_id="s1")
        put_step(conn, trace, "s2", run_id="r1", parent_step_id="s3")
        put_step(conn, trace, "s3", run_id="r1", parent_step_id="s2")
        put_spans(conn, [llm_span(trace, 1, 2), llm_span(trace, 2, 3), llm_span(trace, 3, 1), llm_span(trace, 4, 99)])
        put_spans(conn, [llm_span(trace, 5, 5), llm_span(trace, 6, 3)])
    nodes = store.trace(trace).tree
    assert sorted((node.kind, node.id.lstrip("0")) for node in nodes) == [
        *(("run", name) for name in ("r1", "r2", "r3")),
        *(("span", name) for name in "123456"),
        *(("step", name) for name in ("s1", "s2", "s3")),
    ]
    for place, node in enumerate(nodes):
        assert node.parent is None or node.parent < place
        assert node.depth == (0 if node.parent is None else nodes[node.parent].depth + 1)


def test_a_chain_of_ten_thousand_spans_is_read_and_written_as_json(database_url: str, engine: Engine) -> None:
    with engine.begin() as conn:
        trace = put_trace(conn, 1)
        put_spans(conn, [llm_span(trace, number, number - 1 or None) for number in range(10_000, 0, -1)])
    with StepStore(database_url) as store:
        found = store.trace(trace)
    assert [node.depth for node in found.tree] == list(range(10_000))
    assert json.loads(json.dumps(found.to_dict()))["tree"][-1] == {
        "kind": "span",
        "id": f"{10_000:016x}",
        "depth": 9_999,
        "parent": 9_998,
    }
    assert found == found
    assert hash(found.tree)


# A step


def test_a_step_is_found_by_its_id_and_by_any_of_its_spans(store: Any, write: Seed) -> None:
    with write() as conn:
        for number in range(3):
            trace = put_trace(conn, number)
            put_run(conn, trace, "run")
            put_step(conn, trace, f"before-{number}", 1, run_id="run")
            put_step(conn, trace, f"step-{number}", 2, run_id="run", span_id=f"{0xA0 + number:016x}")
            step = llm_span(trace, 0xA0 + number, name="agent_step", attributes={"step.id": f"step-{number}"})
            tool = llm_span(trace, 0xB0 + number, 0xA0 + number, attributes={"gen_ai.operation.name": "execute_tool"})
            put_spans(conn, [step, tool, llm_span(trace, 0xC0 + number, name="GET /")])
    found = store.step("step-1")
    assert (found.trace_id, found.id, found.position) == (trace_id(1), "step-1", 2)
    for span in (0xA1, 0xB1):
        assert store.step(f"{span:016x}") == store.step(f"{span:016X}") == found
        assert store.step(f"{span:016x}", trace_id(1)[:4]) == found
    assert store.step("step-1", trace_id(1)) == found
    for missing in ("step-9", f"{0xC1:016x}", "f" * 16, "no step"):
        with pytest.raises(NotFoundError, match=missing):
            store.step(missing)
    with pytest.raises(NotFoundError, match=f"in trace {trace_id(2)}"):
        store.step("step-1", trace_id(2))


def test_a_step_id_of_several_traces_is_an_error_that_lists_them(store: Any, write: Seed) -> None:
    with write() as conn:
        for number in (1, 2):
            trace = put_trace(conn, number)
            put_step(conn, trace, "step-1", span_id=f"{0xA:016x}")
            put_spans(conn, [llm_span(trace, 0xA, name="agent_step", attributes={"step.id": "step-1"})])
    for given in ("step-1", f"{0xA:016x}"):
        with pytest.raises(AmbiguousIdError, match=f"{trace_id(1)}, {trace_id(2)}"):
            store.step(given)
        assert store.step(given, trace_id(2)).trace_id == trace_id(2)


def test_the_spans_of_a_deleted_step_belong_to_none(store: Any, write: Seed) -> None:
    with write() as conn:
        put_facts(conn, agents(trace_id(1)))
    gone = store.step(f"{8:016x}")
    with write() as conn:
        put(conn, "deletions", [{"trace_id": gone.trace_id, "kind": "step", "id": gone.id}])
        conn.execute(text("DELETE FROM steps WHERE id = :id"), {"id": gone.id})
    assert {span.span_id: span.step_id for span in store.trace(gone.trace_id).spans}[f"{8:016x}"] is None
    with pytest.raises(NotFoundError):
        store.step(f"{8:016x}")


def test_a_steps_position_counts_by_start_to_the_nanosecond_then_by_span_id(store: Any, write: Seed) -> None:
    start = DAY_NS + 10**9
    with write() as conn:
        trace = put_trace(conn, 1)
        for id_, later_ns, span in (("third", 2, "b"), ("second", 2, "a"), ("first", 1, "c"), ("fourth", 3, "0")):
            put_step(conn, trace, id_, 1, run_id="run", span_id=span * 16, step_start_ns=start + later_ns)
        put_step(conn, trace, "another run's", 0, run_id="another")
    counted = {step.id: step.position for step in store.trace(trace).steps}
    assert counted == {"first": 1, "second": 2, "third": 3, "fourth": 4, "another run's": 1}
    assert {id_: store.step(id_).position for id_ in counted} == counted
    assert {step.position for step in store.steps()} == {None}


def test_a_step_without_metrics_or_run_is_a_step(store: Any, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        put_step(conn, trace, "step")
        conn.execute(text("DELETE FROM step_metrics"))
    found = store.step("step")
    assert (found.metrics, found.run_id, found.position) == (None, None, None)
    assert store.trace(trace).steps == (found,)


def test_a_step_is_the_same_in_a_page_by_its_id_and_in_its_trace(store: Any, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        json_columns: dict[str, Any] = {
            "tags": ["a", "ä"],
            "flags": [],
            "error_data": {"message": "no"},
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {},
        }
        at_once = DAY + timedelta(microseconds=1)
        put_step(conn, trace, "full", 1, **json_columns, model="gpt-5", step_ns=2**62, updated_at=at_once)
        put_step(conn, trace, "bare", 2, span_id="00000000000000a2")
        conn.execute(text("DELETE FROM step_metrics WHERE id = 'bare'"))
    page = store.steps(StepFilter(trace_ids=[trace]), order="oldest").items
    assert page == store.steps(order="oldest").items == (store.step("full"), store.step("bare"))
    assert {step.id: step for step in page} == {step.id: step for step in store.trace(trace).steps}
    full, bare = page
    assert {name: getattr(full, name) for name in json_columns} == json_columns
    assert (full.created_at, full.updated_at, full.metrics.step_ns) == (at(1), at_once, 2**62)
    assert (bare.tags, bare.error_data, bare.metrics) == (None, None, None)


# Filters


def test_steps_are_filtered_by_each_of_their_columns(store: Any, write: Seed) -> None:
    with write() as conn:
        put(conn, "organizations", [{"id": "org-1", "name": "one"}])
        trace, other = put_trace(conn, 1), put_trace(conn, 2)
        put_run(conn, trace, "run-1", conversation_id="talk")
        put_run(conn, other, "run-1", conversation_id="another talk")
        values = {
            "run_id": "run-1",
            "agent_id": "agent-1",
            "agent_name": "weather",
            "model": "gpt-5",
            "provider_name": "openai",
            "status": "failed",
            "error_type": "TimeoutError",
            "feedback": "positive",
            "organization_id": "org-1",
            "project_id": "project-1",
            "service_name": "api",
        }
        put_step(conn, trace, "wanted", 5, **values)
        put_step(conn, other, "other", 6)
    for name, value in values.items():
        assert ids(store.steps(StepFilter(**{name: value}))) == ["wanted"], name
    assert ids(store.steps(StepFilter(**values))) == ["wanted"]
    assert ids(store.steps(StepFilter(conversation_id="talk"))) == ["wanted"]
    assert ids(store.steps(StepFilter(has_feedback=True))) == ["wanted"]
    assert ids(store.steps(StepFilter(has_feedback=False))) == ["other"]
    assert ids(store.steps(StepFilter(trace_ids=[trace.upper()]))) == ["wanted"]
    assert ids(store.steps(StepFilter(trace_ids=[trace, other]))) == ["other", "wanted"]
    assert ids(store.steps(StepFilter(trace_ids=[]))) == []
    assert ids(store.steps(StepFilter(agent_name="weather", status="success"))) == []
    assert ids(store.steps()) == ["other", "wanted"]


def test_steps_are_filtered_by_all_or_any_of_their_tags(store: Any, write: Seed) -> None:
    odd = ['","', 'say "hi"', "back\\slash", "größe", "50%", "\u0001", ",", "true", "7"]
    with write() as conn:
        trace = put_trace(conn, 1)
        put_step(conn, trace, "none", 1)
        put_step(conn, trace, "empty", 2, tags=[])
        put_step(conn, trace, "ab", 3, tags=["a", "b"])
        put_step(conn, trace, "b", 4, tags=["b"])
        put_step(conn, trace, "odd", 5, tags=odd)
    assert ids(store.steps(StepFilter(tags_all=["b"]))) == ["b", "ab"]
    assert ids(store.steps(StepFilter(tags_all=["b", "a"]))) == ["ab"]
    assert ids(store.steps(StepFilter(tags_any=["a", "x"]))) == ["ab"]
    assert ids(store.steps(StepFilter(tags_any=["a", "b"]))) == ["b", "ab"]
    assert ids(store.steps(StepFilter(tags_all=[]))) == ["odd", "b", "ab", "empty", "none"]
    assert ids(store.steps(StepFilter(tags_any=[]))) == []
    assert ids(store.steps(StepFilter(tags_all=odd))) == ["odd"]
    for tag in ('a","b', "hi", '"', "[", "5", "%", 'a"', "\\"):
        assert ids(store.steps(StepFilter(tags_any=[tag]))) == [], tag


def test_times_are_datetimes_of_any_zone_or_nanoseconds_from_inclusive_to_exclusive(store: Any, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        for second in range(4):
            put_step(conn, trace, f"step-{second}", second)
            put_run(conn, trace, f"run-{second}", second)
    tokyo = at(1).astimezone(timezone(timedelta(hours=9)))
    for after, before in ((at(1), at(3)), (tokyo, at(3)), (DAY_NS + 10**9, DAY_NS + 3 * 10**9)):
        found = store.steps(StepFilter(started_after=after, started_before=before), order="oldest")
        assert ids(found) == ["step-1", "step-2"]
        runs = store.runs(RunFilter(started_after=after, started_before=before))
        assert ids(runs) == ["run-2", "run-1"]
    assert ids(store.steps(StepFilter(started_after=0, started_before=2**63 - 1))) == [
        f"step-{second}" for second in (3, 2, 1, 0)
    ]


def test_runs_are_filtered_by_each_of_their_columns(store: Any, write: Seed) -> None:
    with write() as conn:
        trace, other = put_trace(conn, 1), put_trace(conn, 2)
        values = {
            "parent_run_id": "run-0",
            "agent_id": "agent-1",
            "agent_name": "weather",
            "status": "failed",
            "error_type": "TimeoutError",
            "organization_id": "org-1",
            "project_id": "project-1",
            "conversation_id": "talk",
            "service_name": "api",
        }
        put_run(conn, trace, "wanted", 5, **values)
        put_run(conn, other, "other", 6)
    for name, value in values.items():
        assert ids(store.runs(RunFilter(**{name: value}))) == ["wanted"], name
    assert ids(store.runs(RunFilter(**values, run_id="wanted"))) == ["wanted"]
    assert ids(store.runs(RunFilter(trace_ids=[trace]))) == ["wanted"]
    assert ids(store.runs(RunFilter(top_level=True))) == ["other"]
    assert ids(store.runs(RunFilter(top_level=False))) == ["wanted"]
    assert ids(store.runs()) == ["other", "wanted"]


HOSTILE = ["' OR '1'='1", '"; DROP TABLE steps; --', "%", "_", "\\", "{}", ":x", "\U0001f30a", "a" * 10_000]


def test_hostile_values_are_values(store: Any, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        put_step(conn, trace, "step", model="gpt-5")
    for value in HOSTILE:
        assert ids(store.steps(StepFilter(model=value))) == []
        assert ids(store.steps(StepFilter(conversation_id=value, tags_all=[value], tags_any=[value]))) == []
        assert ids(store.runs(RunFilter(run_id=value))) == []
        assert store.messages(run_id=value) == ()
        with pytest.raises(NotFoundError):
            store.step(value)
    assert ids(store.steps()) == ["step"]


MEANINGLESS: list[tuple[dict[str, Any], str]] = [
    ({"model": "a\0b"}, "model is a text"),
    ({"model": "\ud800"}, "model is a text"),
    ({"model": 7}, "model is a text"),
    ({"trace_ids": ["abcd"]}, "32 hexadecimal digits"),
    ({"trace_ids": "abcd"}, "a list"),
    ({"trace_ids": [trace_id(1)] * 1001}, "at most 1000"),
    ({"tags_any": "abcd"}, "a list"),
    ({"tags_all": [None]}, "a text"),
    ({"feedback": "good"}, "positive"),
    ({"status": "completed"}, "pending, running, success, failed, cancelled or abandoned"),
    ({"has_feedback": "no"}, "True or False"),
    ({"started_after": datetime(2026, 1, 1)}, "time zone"),
    ({"started_after": "2026-01-01"}, "datetime or integer nanoseconds"),
    ({"started_before": 10**30}, "beyond the calendar"),
]


def test_a_filter_that_cannot_be_meant_is_refused(store: Any) -> None:
    for asked, message in MEANINGLESS:
        with pytest.raises(InputError, match=message):
            store.steps(StepFilter(**asked))
    with pytest.raises(InputError, match="created, running, completed, failed or cancelled"):
        store.runs(RunFilter(status="success"))


# Pages


def pages(store: Any, method: str = "steps", **options: Any) -> list[list[str]]:
    found, after = [], None
    while True:
        page = getattr(store, method)(after=after, **options)
        found.append(ids(page))
        after = page.next
        if after is None:
            return found


def test_pages_hold_every_row_once_in_order_even_among_equal_times(store: Any, write: Seed) -> None:
    with write() as conn:
        for number in range(3):
            trace = put_trace(conn, number)
            for step in range(4):
                put_step(conn, trace, f"{number}-{step}", 0)
                put_run(conn, trace, f"{number}-{step}", 0)
    everything = [f"{number}-{step}" for number in range(3) for step in range(4)]
    for method in ("steps", "runs"):
        assert pages(store, method, limit=5, order="oldest") == [everything[:5], everything[5:10], everything[10:]]
        backwards = everything[::-1]
        assert pages(store, method, limit=6) == [backwards[:6], backwards[6:]]
        assert pages(store, method, limit=1000) == [backwards]


def test_pages_stay_right_while_rows_arrive(store: Any, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        for second in range(10):
            put_step(conn, trace, f"step-{second}", second)
    first = store.steps(limit=4)
    with write() as conn:
        put_step(conn, trace, "newer", 20)
        put_step(conn, trace, "between", 6.5)
        put_step(conn, trace, "older", 2.5)
        conn.execute(text("DELETE FROM steps WHERE id = 'step-6'"))
    rest = store.steps(limit=100, after=first.next)
    assert ids(first) == ["step-9", "step-8", "step-7", "step-6"]
    assert ids(rest) == ["step-5", "step-4", "step-3", "older", "step-2", "step-1", "step-0"]


def test_an_export_is_of_one_moment(database_url: str, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        step = {"trace_id": trace, "span_id": "00000000000000a1", "status": "success"}
        put(conn, "steps", [{**step, "id": f"step-{number}", "created_at": at(number)} for number in range(1001)])

    def clear(count: int) -> None:
        with write() as conn:
            conn.execute(text("DELETE FROM steps"))

    with StepStore(database_url) as store:
        assert len(store.steps(limit=1000)) == 1000
        assert store.export(io.BytesIO(), progress=clear) == 1001
        assert len(store.steps()) == 0


def test_pages_keep_their_filter(store: Any, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        for second in range(10):
            put_step(conn, trace, f"step-{second}", second, run_id="run" if second % 2 else "other")
    assert pages(store, which=StepFilter(run_id="run"), limit=2) == [
        ["step-9", "step-7"],
        ["step-5", "step-3"],
        ["step-1"],
    ]


def test_a_bad_cursor_limit_or_order_is_refused(store: Any, write: Seed) -> None:
    with write() as conn:
        trace = put_trace(conn, 1)
        for second in range(3):
            put_step(conn, trace, f"step-{second}", second)
    cursor = store.steps(limit=1).next
    for bad in (
        "",
        "x",
        "ä",
        cursor[:-3],
        cursor + "AAAA",
        "e30",
        "W10",
        "bnVsbA",
        "WyJzdGVwcyIsMSwyLDMsNF0",
        "A" * 9999,
    ):
        with pytest.raises(InputError, match="cursor"):
            store.steps(after=bad)
    with pytest.raises(InputError, match="cursor is for steps"):
        store.runs(after=cursor)
    with pytest.raises(InputError, match="cursor is for steps"):
        store.steps(after=cursor, order="oldest")
    for limit in (0, -1, 1001, "5", 2.0, True, None):
        with pytest.raises(InputError, match="limit"):
            store.steps(limit=limit)
    with pytest.raises(InputError, match="order"):
        store.steps(order="created_at; DROP TABLE steps")


# Messages


def test_messages_of_a_trace_a_run_or_a_step(store: Any, write: Seed) -> None:
    with write() as conn:
        first, second = put_trace(conn, 1), put_trace(conn, 2)
        put_run(conn, first, "late", 9)
        put_run(conn, first, "run", 1)
        put_run(conn, second, "run", 2)
        put_step(conn, first, "step", span_id=f"{0xA:016x}")
        put_spans(conn, [llm_span(first, 0xA, name="agent_step", attributes={"step.id": "step"})])
        put_message(conn, first, "l1", 1, run_id="late")
        put_message(conn, first, "m2", 2, run_id="run", step_id="step", parent_id="m1")
        put_message(conn, first, "m1", 1, run_id="run")
        put_message(conn, second, "n1", 1, run_id="run")
    assert ids(store.messages(first)) == ids(store.messages(first[:6].upper())) == ["m1", "m2", "l1"]
    assert ids(store.messages(run_id="run")) == ["m1", "m2", "n1"]
    assert ids(store.messages(second, run_id="run")) == ["n1"]
    assert ids(store.messages(step_id="step")) == ids(store.messages(step_id=f"{0xA:016x}")) == ["m2"]
    assert ids(store.messages(first, run_id="late", step_id="step")) == []
    assert store.messages(run_id="nowhere") == ()
    with pytest.raises(NotFoundError):
        store.messages(step_id="nowhere")
    with pytest.raises(InputError, match="messages of what"):
        store.messages()


def test_a_message_has_its_content_as_text_and_parsed(store: Any, write: Seed) -> None:
    calls = [{"id": "call-1", "name": "look_up", "arguments": '{"city":"Ulm"}'}]
    with write() as conn:
        trace = put_trace(conn, 1)
        put_message(conn, trace, "json", 1, '{"role": "user", "content": "hi"}', tool_calls=calls)
        put_message(conn, trace, "text", 2, "plain: {")
        put_message(conn, trace, "kept out", 3)
    parsed, plain, without = store.messages(trace)
    assert (parsed.body, parsed.content) == ('{"role": "user", "content": "hi"}', {"role": "user", "content": "hi"})
    assert parsed.tool_calls == calls
    assert (plain.body, plain.content) == ("plain: {", "plain: {")
    assert (without.body, without.content) == (None, None)


# Records


def test_records_have_the_columns_of_their_tables() -> None:
    for table, record, without in (
        ("steps", StepRecord, set()),
        ("step_metrics", StepMetricsRecord, {"trace_id", "id", "updated_at"}),
        ("runs", RunRecord, set()),
        ("messages", MessageRecord, {"updated_at"}),
    ):
        columns = [column.name for column in TABLES[table].c if column.name not in without]
        assert [field.name for field in fields(record)][: len(columns)] == columns


def test_records_are_frozen_and_become_json(store: Any, write: Seed) -> None:
    start = 1_763_769_600_123_456_789
    with write() as conn:
        trace = put_trace(conn, 1)
        put_step(conn, trace, "step", error_data={"message": "no"}, step_start_ns=start, ttft_ns=None)
        odd = {"bytes": b"\xff", "nan": float("nan"), "huge": 2**70, "list": ("a", None)}
        put_spans(conn, [llm_span(trace, 1, start_ns=start, attributes=odd)])
    found = store.step("step")
    with pytest.raises(FrozenInstanceError):
        found.model = "other"
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["metrics"]["step_start_ns"] == start
    assert "step_start_ns_text" not in plain["metrics"]
    assert plain["error_data"] == {"message": "no"}
    assert datetime.fromisoformat(plain["created_at"]) == DAY
    for_javascript = json.loads(json.dumps(store.trace(trace).to_dict(js=True), allow_nan=False))
    metrics = for_javascript["steps"][0]["metrics"]
    assert (metrics["step_start_ns_text"], metrics["ttft_ns_text"]) == (str(start), None)
    span = for_javascript["spans"][0]
    assert (span["start_ns"], span["start_ns_text"]) == (start, str(start))
    assert span["attributes"] == {
        "bytes": {"$bytes": "/w=="},
        "nan": {"$float": "nan"},
        "huge": {"$int": str(2**70)},
        "list": ["a", None],
    }


def test_times_come_back_exact_and_utc(store: Any, write: Seed) -> None:
    moment = datetime(2026, 11, 22, 1, 2, 3, 456_789, tzinfo=UTC)
    with write() as conn:
        trace = put_trace(conn, 1)
        put_step(conn, trace, "step", created_at=moment, step_start_ns=2**63 - 1)
    found = store.step("step")
    assert found.created_at == moment
    assert found.created_at.utcoffset() == timedelta(0)
    assert found.metrics.step_start_ns == 2**63 - 1


# Databases that cannot be read


def test_a_missing_file_is_named(kind: type[Any], tmp_path: Path) -> None:
    path = tmp_path / "no.db"
    with opened(kind, f"sqlite:///{path}") as store, pytest.raises(NotFoundError, match=str(path)):
        store.steps()
    assert not path.exists()


def test_a_database_without_our_tables_is_refused_and_read_once_they_are_there(
    kind: type[Any], database_url: str, tmp_path: Path
) -> None:
    if database_url.startswith("sqlite"):
        sqlite3.connect(database_url.removeprefix("sqlite:///")).close()
        engine = create_sync_engine(database_url)
        with engine.begin() as conn:
            conn.execute(text("CREATE TABLE other (id INTEGER)"))
    else:
        engine = create_sync_engine(database_url)
    with opened(kind, database_url) as store:
        with pytest.raises(SchemaError, match="no tables of step_exporter"):
            store.steps()
        ensure_schema(engine)
        assert len(store.steps()) == 0
    engine.dispose()


def test_a_newer_schema_is_refused(store: Any, write: Seed) -> None:
    with write() as conn:
        conn.execute(text("UPDATE step_exporter_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="9999"):
        store.steps()


def test_a_file_that_is_no_database_is_refused(kind: type[Any], tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be taken for one. " * 100)
    with opened(kind, f"sqlite:///{path}") as store, pytest.raises(DatabaseError, match="not a SQLite database"):
        store.steps()


def test_a_damaged_table_is_one_clear_error_without_a_password(store: Any, write: Seed) -> None:
    with write() as conn:
        put_step(conn, put_trace(conn, 1), "step")
    assert ids(store.steps()) == ["step"]
    with write() as conn:
        conn.execute(text("ALTER TABLE step_metrics RENAME TO lost"))
    for read in (store.steps, store.stats, lambda: store.step("step")):
        with pytest.raises(DatabaseError, match=r"^Cannot use \S+: .*step_metrics") as raised:
            read()
        assert "SELECT" not in str(raised.value)
    with write() as conn:
        conn.execute(text("ALTER TABLE lost RENAME TO step_metrics"))
    assert ids(store.steps()) == ["step"]
    assert store.stats()[0].count == 1


def test_a_url_that_is_none_is_refused_at_once(kind: type[Any]) -> None:
    with pytest.raises(ConfigurationError, match="mysql"):
        kind("mysql://localhost/steps")


def test_nothing_can_be_written_by_a_reader(store: Any, write: Seed) -> None:
    def attempt(conn: Connection) -> None:
        conn.execute(text("DELETE FROM steps"))

    with write() as conn:
        put_step(conn, put_trace(conn, 1), "step")
    with pytest.raises(DatabaseError, match=r"(?i)read.?only"):
        store._run(attempt)
    assert ids(store.steps()) == ["step"]


# Opening and closing


def test_stores_are_context_managers_that_can_be_closed_twice(database_url: str, engine: Engine) -> None:
    with StepStore(database_url) as store:
        assert len(store.steps()) == 0
    store.close()

    async def main() -> None:
        async with AsyncStepStore(database_url) as store:
            both = await asyncio.gather(store.steps(), store.runs())
            assert [len(page) for page in both] == [0, 0]
        await store.close()

    asyncio.run(main())


def test_a_store_shows_its_place_without_its_password() -> None:
    store = StepStore("postgresql://me:secret@localhost/steps")
    assert "localhost" in repr(store)
    assert "secret" not in repr(store)


FORGETFUL = """
import asyncio, sys
from step_exporter.store.query import AsyncStepStore

async def main():
    global store, held
    store = AsyncStepStore(sys.argv[1])
    print(len(await store.steps()))
    if sys.argv[2] == "in a call":
        asyncio.ensure_future(store.steps())
        await asyncio.sleep(0.002)
        raise SystemExit(0)
    if sys.argv[2] == "with a connection":
        held = await store._engine.connect()

if sys.argv[2] == "with a connection":
    asyncio.new_event_loop().run_until_complete(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["afterwards", "in a call", "with a connection"])
def test_an_async_store_that_nobody_closes_lets_the_interpreter_exit(
    database_url: str, engine: Engine, moment: str
) -> None:
    command = [sys.executable, "-c", FORGETFUL, database_url, moment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
