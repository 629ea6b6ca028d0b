"""The queries that Letta documents for its step model (``StepManager.list_steps`` and others), one test each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from query_seeds import at, put, put_message, put_run, put_step, put_trace, trace_id
from sqlalchemy import Engine

from step_exporter.store.engine import create_sync_engine
from step_exporter.store.query import StepFilter, StepStore
from step_exporter.store.schema import ensure_schema

pytestmark = pytest.mark.once


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def store(database_url: str, engine: Engine) -> Iterator[StepStore]:
    with engine.begin() as conn:
        put(conn, "organizations", [{"id": "org-1", "name": "acme"}])
        first, second = put_trace(conn, 1), put_trace(conn, 2)
        put_run(conn, first, "run-1", agent_id="agent-1", conversation_id="talk")
        for number in range(1, 5):
            values: dict[str, Any] = {
                "run_id": "run-1",
                "agent_id": "agent-1",
                "model": "gpt-5",
                "organization_id": "org-1",
            }
            values |= {"tags": ["prod", f"n{number}"], "project_id": "project-1"}
            if number == 2:
                values |= {"feedback": "positive", "tid": "tx-1"}
            if number == 3:
                values |= {"feedback": "negative", "status": "failed", "error_type": "RateLimitError"}
                values |= {"error_data": {"message": "slow down"}, "stop_reason": "error"}
            put_step(conn, first, f"step-{number}", number, step_ns=number, llm_request_ns=1, **values)
        put_step(
            conn, second, "step-5", 5, agent_id="agent-2", model="claude-5", provider_name="anthropic", tags=["dev"]
        )
        put_message(conn, first, "m1", 1, '"hi"', step_id="step-1", run_id="run-1")
    with StepStore(database_url) as store:
        yield store


def ids(store: StepStore, **asked: Any) -> list[str]:
    return [step.id for step in store.steps(StepFilter(**asked), order="oldest")]


FIRST_FOUR = ["step-1", "step-2", "step-3", "step-4"]


def test_steps_by_agent(store: StepStore) -> None:
    assert ids(store, agent_id="agent-1") == FIRST_FOUR


def test_steps_by_run(store: StepStore) -> None:
    assert ids(store, run_id="run-1") == FIRST_FOUR


def test_steps_by_run_and_status(store: StepStore) -> None:
    assert ids(store, run_id="run-1", status="failed") == ["step-3"]


def test_steps_by_model(store: StepStore) -> None:
    assert ids(store, model="claude-5") == ["step-5"]


def test_steps_by_provider(store: StepStore) -> None:
    assert ids(store, provider_name="anthropic") == ["step-5"]


def test_steps_by_trace_ids(store: StepStore) -> None:
    assert ids(store, trace_ids=[trace_id(1)]) == FIRST_FOUR
    assert ids(store, trace_ids=[trace_id(1), trace_id(2)]) == [*FIRST_FOUR, "step-5"]
    assert ids(store, trace_ids=[]) == []


def test_steps_by_feedback(store: StepStore) -> None:
    assert ids(store, feedback="positive") == ["step-2"]
    assert ids(store, feedback="negative") == ["step-3"]


def test_steps_that_have_feedback(store: StepStore) -> None:
    assert ids(store, has_feedback=True) == ["step-2", "step-3"]
    assert ids(store, has_feedback=False) == ["step-1", "step-4", "step-5"]


def test_steps_by_dates(store: StepStore) -> None:
    assert ids(store, started_after=at(2), started_before=at(4)) == ["step-2", "step-3"]
    assert ids(store, started_before=datetime(2026, 1, 1, tzinfo=UTC)) == []


def test_steps_by_tags(store: StepStore) -> None:
    assert ids(store, tags_all=["prod", "n2"]) == ["step-2"]
    assert ids(store, tags_any=["dev", "n1"]) == ["step-1", "step-5"]


def test_steps_by_project_and_organization(store: StepStore) -> None:
    assert ids(store, project_id="project-1") == FIRST_FOUR
    assert ids(store, organization_id="org-1", run_id="run-1") == FIRST_FOUR


def test_steps_by_error_type(store: StepStore) -> None:
    [step] = store.steps(StepFilter(error_type="RateLimitError"))
    assert (step.stop_reason, step.error_data) == ("error", {"message": "slow down"})


def test_steps_by_conversation(store: StepStore) -> None:
    assert ids(store, conversation_id="talk") == FIRST_FOUR


def test_steps_in_both_orders_with_a_limit(store: StepStore) -> None:
    newest = store.steps(limit=2)
    assert [step.id for step in newest] == ["step-5", "step-4"]
    assert [step.id for step in store.steps(limit=2, after=newest.next)] == ["step-3", "step-2"]


def test_a_step_by_id_with_its_metrics(store: StepStore) -> None:
    step = store.step("step-2")
    assert (step.tid, step.position) == ("tx-1", 2)
    assert step.metrics is not None
    assert (step.metrics.step_ns, step.metrics.llm_request_ns) == (2, 1)


def test_the_messages_of_a_step(store: StepStore) -> None:
    assert [message.content for message in store.messages(step_id="step-1")] == ["hi"]
