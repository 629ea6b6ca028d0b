"""A follower finds every new and changed step once, whatever their number and order, and remembers few."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace
from sqlalchemy import update

from step_exporter.facts import RawSpan
from step_exporter.models import Step, Trace
from step_exporter.store import following
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.filters import StepFilter
from step_exporter.store.following import FollowedStore, Follower
from step_exporter.store.ingest import Writer
from step_exporter.store.processes import register
from step_exporter.store.query import StepStore
from step_exporter.store.schema import ensure_schema

LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.agent.name": "a"}


def span(number: int, trace: int = 1, **fields: object) -> RawSpan:
    made = RawSpan(f"{trace:032x}", f"{number:016x}", None, "chat", start_ns=number, end_ns=number + 1, attributes=LLM)
    return replace(made, **fields)


@pytest.fixture
def writer(database_url: str) -> Iterator[Writer]:
    engine = create_sync_engine(database_url)
    ensure_schema(engine)
    yield Writer(engine)
    engine.dispose()


@pytest.fixture
def store(database_url: str, writer: Writer) -> Iterator[FollowedStore]:
    with FollowedStore(database_url) as store:
        yield store


def ids(follower: Follower) -> list[int]:
    return sorted(step.created_at.microsecond for step in follower.news())


def test_what_was_there_is_no_news_and_what_comes_is_once(writer: Writer, store: FollowedStore) -> None:
    writer.write([span(1_000)])
    follower = Follower(store, StepFilter())
    assert ids(follower) == []
    writer.write([span(3_000, trace=2), span(2_000)])
    assert ids(follower) == [2, 3]
    assert ids(follower) == []


def test_a_step_is_news_again_when_it_changes(writer: Writer, store: FollowedStore, database_url: str) -> None:
    follower = Follower(store, StepFilter())
    writer.write([span(1_000, ended=False, end_ns=None)])
    assert [step.status for step in follower.news()] == ["pending"]
    writer.write([span(1_000)])
    (step,) = follower.news()
    assert step.status == "success"
    with StepStore(database_url) as other:
        other.feedback(step.id, "positive")
    assert [step.feedback for step in follower.news()] == ["positive"]
    assert ids(follower) == []


def test_a_late_step_of_long_ago_is_news(writer: Writer, store: FollowedStore) -> None:
    follower = Follower(store, StepFilter())
    writer.write([span(number * 1_000, trace=number) for number in range(2, 500)])
    assert len(ids(follower)) == 498
    writer.write([span(1_000, trace=1)])  # older than every other
    assert ids(follower) == [1]


def test_steps_of_one_commit_come_by_their_start(writer: Writer, store: FollowedStore) -> None:
    follower = Follower(store, StepFilter())
    several = [span(number, trace=trace) for number, trace in ((5_003, 9), (5_001, 8), (5_002, 8), (7_000, 1))]
    writer.write([*several, *(span(number * 100_000, trace=2) for number in range(20, 0, -1))])
    writer.write([span(1_000, trace=3)])  # written later, whenever it began
    starts = [step.metrics and step.metrics.step_start_ns for step in follower.news()]
    assert starts == [5_001, 5_002, 5_003, 7_000, *(number * 100_000 for number in range(1, 21)), 1_000]


def test_a_filter_holds(writer: Writer, store: FollowedStore) -> None:
    follower = Follower(store, StepFilter(model="other"))
    writer.write([span(1_000), span(2_000, attributes={**LLM, "gen_ai.request.model": "other"})])
    assert ids(follower) == [2]


def test_a_flood_comes_whole_and_fills_no_memory(
    writer: Writer, store: FollowedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "REMEMBERED", 10)
    writer.write([span(number * 1_000, trace=number) for number in range(1, 100)])  # one transaction, one time
    follower = Follower(store, StepFilter())
    assert ids(follower) == []
    for first in range(100, 300, 100):
        writer.write([span(number * 1_000, trace=number) for number in range(first, first + 100)])
    found: list[int] = []
    while news := ids(follower):
        assert len(news) <= 20
        found += news
    assert sorted(found) == [*range(100, 300)]
    assert len(follower._seen) <= 10
    writer.write([span(1_000_000 - 1_000, trace=5)])
    assert ids(follower) == [999]


def test_the_clock_of_one_writer_that_is_ahead_hides_no_other(writer: Writer, store: FollowedStore) -> None:
    writer.write([span(1_000)])
    with writer.engine.begin() as conn:
        conn.execute(update(Step).values(updated_at=datetime(2100, 1, 1, tzinfo=UTC)))
        conn.execute(update(Trace).values(changed_at=datetime(2100, 1, 1, tzinfo=UTC)))
    follower = Follower(store, StepFilter())
    writer.write([span(2_000, trace=2)])
    assert ids(follower) == [2]


def test_following_finds_what_processes_that_are_gone_left_open(writer: Writer, store: FollowedStore) -> None:
    process = register(writer.engine)
    writer.write([span(1_000, ended=False, end_ns=None, process_id=process)])
    with writer.engine.begin() as conn:
        conn.exec_driver_sql("UPDATE processes SET pid_start = 1")  # the pid is another process' now
    follower, finder = Follower(store, StepFilter()), store.finder()
    finder.look()
    assert [step.status for step in follower.news()] == ["abandoned"]
    finder.look()  # not due yet
    assert ids(follower) == []
