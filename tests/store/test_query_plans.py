"""What readers ask often is answered through an index, on databases large enough to have a choice."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from query_seeds import DAY_NS, at, put, trace_id
from sqlalchemy import Connection, Engine, event, select, text

from step_exporter.models import Quarantine, utc_now
from step_exporter.store import following, reads, statistics
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.filters import RunFilter, StepFilter
from step_exporter.store.following import Change
from step_exporter.store.kept import KeptSelect
from step_exporter.store.schema import ensure_schema

pytestmark = pytest.mark.once

TRACES, RUNS_OF_A_TRACE, STEPS_OF_A_RUN, LONG_RUN = 150, 2, 10, 1000


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    seed(engine)
    with engine.connect() as conn:
        if conn.dialect.name == "postgresql":  # as on SSDs; at the default of 4 reading small tables whole is cheaper
            conn.execute(text("SET random_page_cost = 1.1"))
        yield conn
    engine.dispose()


def seed(engine: Engine) -> None:
    """3,000 steps of 300 runs in 150 traces, 20 agents and 3 organizations; and one run of 1,000 steps."""
    chance = random.Random(1)
    traces: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    for number in range(TRACES + 1):
        start = chance.random() * 86_400
        traces.append({"trace_id": trace_id(number), "first_ns": DAY_NS, "last_ns": DAY_NS})
        for run in range(RUNS_OF_A_TRACE if number < TRACES else 1):
            id_ = f"run-{number}-{run}"
            key = {"trace_id": trace_id(number), "created_at": at(start)}
            talk = f"talk-{number % 50}"
            runs.append({**key, "id": id_, "status": "completed", "start_ns": DAY_NS, "conversation_id": talk})
            for step in range(STEPS_OF_A_RUN if number < TRACES else LONG_RUN):
                steps.append(
                    {
                        "trace_id": trace_id(number),
                        "id": f"step-{chance.getrandbits(64):016x}",
                        "span_id": f"{chance.getrandbits(64):016x}",
                        "run_id": id_,
                        "agent_id": f"agent-{number % 20}",
                        "organization_id": f"org-{number % 3}",
                        "status": chance.choice(["success"] * 9 + ["failed"]),
                        "model": chance.choice(["gpt-5", "claude"]),
                        "created_at": at(start + step),
                    }
                )
    metrics = [
        {**{name: step[name] for name in ("trace_id", "id", "run_id")}, "step_start_ns": DAY_NS} for step in steps
    ]
    spans = [
        {
            **{name: step[name] for name in ("trace_id", "span_id")},
            "name": "chat",
            "kind": "client",
            "state": "ended",
            "status_code": "unset",
            "role": "llm",
            "attributes": {"filler": "x" * 200},
        }
        for step in steps
    ]
    messages = [
        {
            **{name: step[name] for name in ("trace_id", "id", "run_id")},
            "step_id": step["id"],
            "role": "user",
            "position": 1,
        }
        for step in steps
    ]
    with engine.begin() as conn:
        put(conn, "organizations", [{"id": f"org-{number}", "name": str(number)} for number in range(3)])
        for table, rows in {
            "traces": traces,
            "runs": runs,
            "steps": steps,
            "step_metrics": metrics,
            "spans": spans,
            "messages": messages,
        }.items():
            put(conn, table, rows)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("ANALYZE"))


def plans(conn: Connection, op: Callable[..., Any], *args: Any) -> list[str]:
    """The plan of every statement that an operation runs."""
    asked: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        asked.append((statement, parameters))

    def execute(self: KeptSelect, conn: Connection, values: Any) -> Any:  # past SQLAlchemy, on SQLite
        asked.append((self._sql, self._bound(values)))
        return executed(self, conn, values)

    executed = KeptSelect._executed
    event.listen(conn, "before_cursor_execute", note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptSelect, "_executed", execute)
        op(conn, *args)
    event.remove(conn, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
    return [
        "\n".join(str(row[-1]) for row in conn.exec_driver_sql(explain + statement, parameters))
        for statement, parameters in asked
    ]


def assert_indexed(found: list[str], *indexes: str) -> None:
    """Each index is used by one of the plans, and none of the large tables is read whole."""
    assert found
    for plan in found:
        scans = re.findall(
            r"^SCAN (?!\w+ USING INDEX)(?:steps|runs|step_metrics|spans|messages)\b.*", plan, re.MULTILINE
        )
        scans += re.findall(r"Seq Scan on (?:steps|runs|step_metrics|spans|messages)\b.*", plan)
        assert not scans, plan
    for index in indexes:
        assert any(index in plan for plan in found), found


def primary_key(conn: Connection, table: str) -> str:
    return f"sqlite_autoindex_{table}_1" if conn.dialect.name == "sqlite" else f"pk_{table}"


def steps(conn: Connection, limit: int = 50, after: str | None = None, **asked: Any) -> list[str]:
    return plans(conn, reads.steps, StepFilter(**asked), after, limit, "newest")


def test_the_steps_of_a_trace_are_found_by_the_primary_key(conn: Connection) -> None:
    found = steps(conn, trace_ids=[trace_id(7)], limit=1000)
    assert_indexed(found, primary_key(conn, "steps"), primary_key(conn, "step_metrics"))


def test_the_last_steps_of_a_run_are_found_by_its_index(conn: Connection) -> None:
    assert_indexed(steps(conn, run_id=f"run-{TRACES}-0"), "ix_steps_run_id")
    assert_indexed(steps(conn, run_id="run-7-1"), "ix_steps_run_id")


def test_the_steps_of_an_agent_are_found_by_its_index(conn: Connection) -> None:
    assert_indexed(steps(conn, agent_id="agent-3"), "ix_steps_agent_id")


def test_the_steps_of_a_time_range_and_of_every_further_page_are_found_by_time(conn: Connection) -> None:
    assert_indexed(steps(conn, started_after=at(3600), started_before=at(4000)), "ix_steps_created_at")
    assert_indexed(steps(conn), "ix_steps_created_at")
    page = reads.steps(conn, StepFilter(), None, 50, "newest")
    assert_indexed(steps(conn, after=page.next), "ix_steps_created_at")


STEP_FILTERS: list[dict[str, Any]] = [
    {},
    {"trace_ids": [trace_id(7)]},
    {"trace_ids": [trace_id(7), trace_id(8)]},
    {"run_id": "run-7-1"},
    {"run_id": "run-7-1", "status": "failed"},
    {"run_id": "run-7-1", "trace_ids": [trace_id(7)]},
    {"agent_id": "agent-3"},
    {"agent_id": "agent-3", "model": "gpt-5"},
    {"agent_name": "researcher"},
    {"model": "gpt-5"},
    {"provider_name": "openai"},
    {"status": "failed"},
    {"error_type": "RateLimitError"},
    {"tags_all": ["a", "b"]},
    {"tags_any": ["a", "b"]},
    {"feedback": "positive"},
    {"has_feedback": True},
    {"has_feedback": False},
    {"organization_id": "org-1", "run_id": "run-7-1"},
    {"organization_id": "org-1", "project_id": "project-1"},
    {"conversation_id": "talk-3"},
    {"service_name": "app"},
    {"started_after": at(80_000)},
    {"started_before": at(1000)},
]
"""Each filter alone, and those that are asked for together."""
RUN_FILTERS: list[dict[str, Any]] = [
    {},
    {"trace_ids": [trace_id(7)]},
    {"run_id": "run-7-1"},
    {"parent_run_id": "run-7-0"},
    {"top_level": True},
    {"agent_id": "agent-3"},
    {"agent_name": "researcher"},
    {"status": "failed"},
    {"error_type": "RateLimitError"},
    {"organization_id": "org-1"},
    {"project_id": "project-1"},
    {"conversation_id": "talk-3"},
    {"service_name": "app"},
    {"started_after": at(80_000)},
]


def test_no_filter_of_a_time_range_reads_a_table_whole(conn: Connection) -> None:
    times = {"started_after": at(80_000), "started_before": at(80_500)}
    for asked in STEP_FILTERS:
        for order in ("newest", "oldest"):
            assert_indexed(plans(conn, reads.steps, StepFilter(**times | asked), None, 50, order))
    for asked in RUN_FILTERS:
        assert_indexed(plans(conn, reads.runs, RunFilter(**times | asked), None, 50, "newest"))


def test_ids_are_found_by_an_index_without_a_time_range(conn: Connection) -> None:
    ids = {"trace_ids", "run_id", "agent_id", "conversation_id"}
    for asked in (asked for asked in STEP_FILTERS if ids & {*asked}):
        assert_indexed(plans(conn, reads.steps, StepFilter(**asked), None, 50, "newest"))
    assert_indexed(plans(conn, reads.steps, StepFilter(conversation_id="talk-3"), None, 50, "newest"), "conversation")
    talk = RunFilter(conversation_id="talk-3")
    assert_indexed(plans(conn, reads.runs, talk, None, 50, "newest"), "ix_runs_conversation_id")


def test_every_filter_is_tried() -> None:
    for filter_, tried in ((StepFilter, STEP_FILTERS), (RunFilter, RUN_FILTERS)):
        names = {field.name for field in fields(filter_)} - {"started_before"}
        assert names <= {name for asked in tried for name in asked}


def test_statistics_of_the_last_hour_read_that_hour(conn: Connection) -> None:
    hour = StepFilter(started_after=at(85_000))
    assert_indexed(plans(conn, statistics.stats, ["model"], hour, False), "ix_steps_created_at")


def test_the_oldest_traces_are_found_by_their_time(conn: Connection) -> None:
    oldest = "SELECT trace_id FROM traces WHERE last_ns < 1 ORDER BY last_ns, trace_id LIMIT 500"
    assert_indexed(plans(conn, lambda conn: conn.execute(text(oldest))), "ix_traces_last_ns")


def test_a_step_is_found_by_the_index_on_its_id(conn: Connection) -> None:
    step = reads.steps(conn, StepFilter(run_id="run-7-1"), None, 1, "newest").items[0]
    assert_indexed(plans(conn, reads.step, step.id, None), "ix_steps_id", "ix_steps_run_id")
    assert_indexed(plans(conn, reads.step, step.id, step.trace_id), primary_key(conn, "steps"))


def test_a_span_is_looked_up_in_each_trace_by_the_primary_key(conn: Connection) -> None:
    span_id = reads.steps(conn, StepFilter(run_id="run-7-1"), None, 1, "newest").items[0].span_id
    assert_indexed(plans(conn, reads._traces_with, span_id, None, None))
    assert_indexed(plans(conn, reads._traces_with, span_id, trace_id(7), None), primary_key(conn, "spans"))


def test_a_trace_is_found_by_a_prefix_of_the_primary_key(conn: Connection) -> None:
    assert_indexed(plans(conn, reads.find_trace, trace_id(7)[:10]), primary_key(conn, "traces"))


def test_all_of_a_trace_is_read_by_its_id(conn: Connection) -> None:
    assert_indexed(plans(conn, reads.trace, trace_id(7)))


def test_messages_are_found_by_trace_run_and_step(conn: Connection) -> None:
    assert_indexed(plans(conn, reads.messages, trace_id(7), None, None))
    assert_indexed(plans(conn, reads.messages, trace_id(7), "run-7-1", None))
    assert_indexed(plans(conn, reads.messages, None, "run-7-1", None), "ix_runs_id")
    step = reads.steps(conn, StepFilter(run_id=f"run-{TRACES}-0"), None, 1, "newest").items[0]
    assert_indexed(plans(conn, reads.messages, None, None, step.id), "ix_messages_step_id")


def test_the_newest_runs_are_found_by_time(conn: Connection) -> None:
    assert_indexed(plans(conn, reads.runs, RunFilter(), None, 50, "newest"), "ix_runs_created_at")
    assert_indexed(plans(conn, reads.runs, RunFilter(run_id="run-7-1"), None, 50, "newest"), "ix_runs_id")


def test_what_changed_is_looked_for_in_the_traces_that_did(conn: Connection) -> None:
    first = Change(utc_now() + timedelta(hours=1), "", "")
    assert_indexed(plans(conn, following._changes, StepFilter(), first, 100, False), primary_key(conn, "steps"))


def test_what_a_span_collided_with_is_found_by_its_key(conn: Connection) -> None:
    entries = [{"trace_id": trace_id(n), "span_id": "0" * 16, "reason": "id_collision"} for n in range(500)]
    put(conn, "quarantine", entries)
    conn.execute(text("ANALYZE quarantine"))

    def look(conn: Connection) -> None:
        conn.execute(
            select(Quarantine.detail).where(Quarantine.trace_id == trace_id(7), Quarantine.span_id == "0" * 16)
        )

    assert_indexed(plans(conn, look), "ix_quarantine_trace_id")
