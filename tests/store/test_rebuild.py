"""Everything derived can be thrown away and made again from the facts; ``verify`` finds what is not as derived."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, delete, insert, select, text

from dumps import DERIVED, dump, opened
from recordings import sample
from step_exporter.models import Base
from step_exporter.store.ingest import Writer
from step_exporter.store.rebuild import rebuild, verify

pytestmark = pytest.mark.once

TABLES = Base.metadata.tables


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database with recordings: all, or a sample on the slower engine."""
    with opened(database_url) as engine:
        Writer(engine).write(sample(1 if engine.dialect.name == "sqlite" else 6))
        yield engine


@pytest.fixture
def few(database_url: str) -> Iterator[Engine]:
    """A database with some recordings."""
    with opened(database_url) as engine:
        Writer(engine).write(sample(40))
        yield engine


def test_rows_made_again_are_the_rows_that_were_deleted(engine: Engine) -> None:
    before = dump(engine)
    assert list(verify(engine)) == []
    with engine.begin() as conn:
        traces = len(conn.execute(select(TABLES["traces"].c.trace_id)).all())
        for table in DERIVED:
            conn.execute(delete(TABLES[table]))
        conn.execute(text("UPDATE spans SET role = 'other', convention = NULL"))
    assert all(not rows for rows in dump(engine, *DERIVED).values())
    missing = {(found.table, found.id) for found in verify(engine) if found.stored is None}
    assert len(missing) == sum(len(before[table]) for table in DERIVED)
    assert rebuild(engine) == traces
    assert dump(engine) == before
    assert list(verify(engine)) == []


def test_rebuilding_what_is_right_changes_nothing(few: Engine) -> None:
    before = dump(few)
    rebuild(few)
    rebuild(few)
    assert dump(few) == before


CHANGES = {
    "steps": "status = 'pending', prompt_tokens = prompt_tokens + 1",
    "step_metrics": "step_ns = -1",
    "runs": "step_count = step_count + 1",
    "messages": "role = 'nobody', position = position + 1",
    "spans": "role = 'wrong'",
}


@pytest.mark.parametrize("table", CHANGES)
def test_verify_finds_the_row_that_was_changed_by_hand(few: Engine, table: str) -> None:
    before = dump(few)
    key = "span_id" if table == "spans" else "id"
    with few.begin() as conn:
        trace_id, id_ = conn.execute(select(TABLES[table].c.trace_id, TABLES[table].c[key])).all()[3]
        conn.execute(
            text(f"UPDATE {table} SET {CHANGES[table]} WHERE trace_id = :trace_id AND {key} = :id"),
            {"trace_id": trace_id, "id": id_},
        )
    (found,) = verify(few)
    assert (found.trace_id, found.table, found.id) == (trace_id, table, id_)
    assert found.stored is not None
    assert found.stored.keys() == {change.split(" = ")[0] for change in CHANGES[table].split(", ")}
    assert list(verify(few, [other for (other,) in _traces(few) if other != trace_id])) == []
    assert rebuild(few, [trace_id]) == 1
    assert dump(few) == before


def test_verify_finds_a_row_too_many_and_one_that_is_missing(few: Engine) -> None:
    before = dump(few)
    runs = TABLES["runs"]
    with few.begin() as conn:
        trace_id, run_id = conn.execute(select(runs.c.trace_id, runs.c.id)).first() or ("", "")
        conn.execute(delete(runs).where(runs.c.trace_id == trace_id, runs.c.id == run_id))
        row = dict(conn.execute(select(runs)).mappings().first() or {})
        conn.execute(insert(runs).values({**row, "id": "run-invented"}))
    found = {(difference.trace_id, difference.table, difference.id): difference for difference in verify(few)}
    assert found[trace_id, "runs", run_id].stored is None
    assert found[row["trace_id"], "runs", "run-invented"].derived is None
    assert {table for _, table, _ in found} == {"runs", "steps", "step_metrics", "messages"}  # they lost their run
    rebuild(few)
    assert dump(few) == before


def _traces(engine: Engine) -> list[tuple[str]]:
    with engine.connect() as conn:
        return [tuple(row) for row in conn.execute(select(TABLES["traces"].c.trace_id))]
