"""PostgreSQL with its tables in hash partitions: made once, and everything works on it as on plain ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from query_seeds import trace_id
from sqlalchemy import Engine, inspect, text

# The conformance tests of writing, deleting, pruning and rebuilding, run here on a partitioned database.
from test_keeping import (  # noqa: F401
    agent_trace,
    test_a_deleted_run_keeps_its_steps_and_does_not_come_back,
    test_a_deleted_trace_leaves_nothing_and_does_not_come_back,
    test_prune_by_age_takes_whole_traces_and_they_may_begin_anew,
    test_prune_by_size_takes_the_oldest,
    test_pruning_while_writers_go_on_loses_nothing_new,
    test_verify_finds_each_damage_and_rebuild_mends_it,
)

from step_exporter import models
from step_exporter.errors import InputError, SchemaError
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.query import StepStore
from step_exporter.store.schema import count_partitions, ensure_schema

pytestmark = pytest.mark.once

PARTITIONS = 3


@pytest.fixture
def database_url(postgres_url: str) -> str:
    engine = create_sync_engine(postgres_url)
    ensure_schema(engine, PARTITIONS)
    engine.dispose()
    return postgres_url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_sync_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def writer(engine: Engine) -> Writer:
    return Writer(engine)


@pytest.fixture
def store(database_url: str) -> Iterator[StepStore]:
    with StepStore(database_url) as store:
        yield store


def test_every_table_of_traces_has_the_partitions_and_their_storage_parameters(database_url: str) -> None:
    engine = create_sync_engine(database_url)
    with engine.connect() as conn:
        found = conn.execute(
            text(
                "SELECT inhparent::regclass::text, count(*), count(reloptions) FROM pg_inherits"
                " JOIN pg_class ON pg_class.oid = inhrelid WHERE relkind = 'r' GROUP BY 1 ORDER BY 1"
            )
        ).all()
    tables = sorted(name for name, table in models.Base.metadata.tables.items() if "trace_id" in table.primary_key)
    assert [tuple(row) for row in found] == [(name, PARTITIONS, PARTITIONS) for name in tables]
    assert len(tables) == 10
    engine.dispose()


def test_traces_spread_over_the_partitions(engine: Engine, writer: Writer, store: StepStore) -> None:
    for number in range(1, 31):
        writer.write(agent_trace(number))
    with engine.connect() as conn:
        sizes = [conn.scalar(text(f"SELECT count(*) FROM traces_p{part}")) for part in range(PARTITIONS)]
    assert sum(sizes) == 30
    assert all(sizes)
    assert len(store.steps(limit=1000)) == 60
    assert len(store.trace(trace_id(7)).spans) == 4
    assert store.step(store.steps().items[0].id).position in (1, 2)
    assert store.verify() == []


def test_partitions_are_chosen_once(database_url: str, engine: Engine) -> None:
    ensure_schema(engine)
    ensure_schema(engine, PARTITIONS)
    with pytest.raises(SchemaError, match="not in so many partitions"):
        ensure_schema(engine, PARTITIONS + 1)
    with engine.connect() as conn:
        assert count_partitions(conn) == PARTITIONS


def test_a_plain_database_cannot_be_partitioned_later(postgres_url: str) -> None:
    engine = create_sync_engine(postgres_url)
    ensure_schema(engine)
    with pytest.raises(SchemaError, match="chosen once"):
        ensure_schema(engine, PARTITIONS)
    engine.dispose()


def test_partitions_are_a_sensible_number_on_postgresql(postgres_url: str, sqlite_url: str) -> None:
    for url, partitions in ((sqlite_url, 4), (postgres_url, 0), (postgres_url, 1), (postgres_url, 1000)):
        engine = create_sync_engine(url)
        with pytest.raises(InputError, match="partitions"):
            ensure_schema(engine, partitions)
        assert inspect(engine).get_table_names() == []
        engine.dispose()
