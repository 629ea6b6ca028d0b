"""However spans arrive (order, batches, duplicates that may differ, several writers), the rows are the same, byte by
byte, and those of the naive derivation of each whole trace.

``HYPOTHESIS_PROFILE=thorough`` looks at many more traces.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from raw_traces import Said, facts_that_hold, raw_trace, said_of, versions
from sqlalchemy import Engine, insert

from derive.reference import Rows, derive
from derive.traces import TRACE, Fact, Pick, agent_program, any_trace
from dumps import DERIVED, TABLES, Dump, as_stored, clear, dump, opened, rows_by_id
from readable import readable
from recordings import all_recordings, sample
from step_exporter.exporter import SpanExportResult, StepSpanExporter
from step_exporter.facts import RawSpan
from step_exporter.store.ingest import Writer
from step_exporter.store.rebuild import verify

pytestmark = pytest.mark.once

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def often(examples: int) -> settings:
    return settings(
        max_examples=examples * 50 if THOROUGH else examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=not THOROUGH,
        database=None,
        phases=(Phase.explicit, Phase.generate),  # each step of shrinking would write to the database: minutes
    )


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with opened(database_url) as engine:
        yield engine


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Engine]:
    with opened(sqlite_url) as engine:
        yield engine


class Way(NamedTuple):
    """Batches, and which writer takes each."""

    batches: list[tuple[int, list[RawSpan]]]

    def __repr__(self) -> str:
        """Readable where a failing example is shown."""
        return "\n    ".join(["", *(f"writer {writer}: {batch}" for writer, batch in self.batches)])


REMEMBER = (100_000, 0, 12)
"""How many spans the writers remember: all, none beyond the batch, hardly any."""


def arrive(engine: Engine, way: Way, people: Sequence[Said] = ()) -> Dump:
    """What is in the database after all came to one that held only what people set and deleted."""
    clear(engine)
    with engine.begin() as conn:
        for said in people:
            conn.execute(insert(TABLES[said.table]).values(said.row))
    writers = [Writer(engine, max_known_spans=spans) for spans in REMEMBER]
    for number, batch in way.batches:
        result = writers[number].write(batch)
        assert (result.committed, result.quarantined) == (len(batch), 0)
    return dump(engine)


def at_once(raws: Iterable[RawSpan]) -> Way:
    return Way([(0, list(raws))])


def any_way(pick: Pick, raws: Sequence[RawSpan], cuts: Sequence[bool]) -> Way:
    """The spans in another order, cut into batches, each for one of the writers."""
    left, batches = list(raws), [list[RawSpan]()]
    while left:
        batches[-1].append(left.pop(pick(range(len(left)))))
        if pick(cuts):
            batches.append([])
    return Way([(pick(range(len(REMEMBER))), batch) for batch in batches])


def shuffled(rng: random.Random, raws: Sequence[RawSpan], sizes: Sequence[int]) -> Way:
    """The same for many spans."""
    left, batches = rng.sample(raws, len(raws)), list[tuple[int, list[RawSpan]]]()
    while left:
        size = rng.choice(sizes)
        batches.append((rng.randrange(len(REMEMBER)), left[:size]))
        del left[:size]
    return Way(batches)


def assert_derived(engine: Engine, raws: Iterable[RawSpan], people: Sequence[Said] = ()) -> None:
    """The derived rows are those that the naive derivation makes of the spans that hold, and of what people said."""
    expected: dict[str, Rows] = {}
    for trace_id, spans in facts_that_hold(raws).items():
        facts: list[Fact] = [*spans, *(said.fact for said in people if said.fact.trace_id == trace_id)]
        expected[trace_id] = derive(facts)
    for table in DERIVED:
        rows = {key: as_stored(row) for rows in expected.values() for key, row in _by_key(rows, table)}
        assert rows_by_id(engine, table) == rows


def _by_key(rows: Rows, table: str) -> Iterator[tuple[tuple[str, str], tuple[object, ...]]]:
    for row in getattr(rows, table).values():
        yield (row.trace_id, row.id), row


# --- generated traces

TRACES = (TRACE, f"{8:032x}")


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[RawSpan], list[Said], Way]:
    """The spans of one or two traces in all their versions, what people said of them, and a way in which they come."""

    def pick(values: Sequence[object]) -> object:
        return draw(st.sampled_from(values))

    traces = {trace_id: any_trace(pick, most=7) for trace_id in TRACES[: draw(st.integers(1, 2))]}
    raws = [
        version
        for trace_id, facts in traces.items()
        for raw in raw_trace(facts, trace_id)
        for version in versions(raw, pick)
    ]
    people = [said for trace_id, facts in traces.items() for said in said_of(facts, trace_id)]
    cuts = draw(st.sampled_from(((True,), (True, False), (True,) + (False,) * 6, (False,))))
    return raws, people, any_way(pick, raws, cuts)


@often(30)
@given(case=histories())
def test_traces_of_any_shape_become_the_same_rows_in_every_way(
    engine: Engine, case: tuple[list[RawSpan], list[Said], Way]
) -> None:
    raws, people, way = case
    expected = arrive(engine, at_once(raws), people)
    assert_derived(engine, raws, people)
    assert arrive(engine, way, people) == expected


def test_many_agent_programs_become_the_same_rows_in_every_way(engine: Engine) -> None:
    """Larger traces than Hypothesis makes, all at once; the seed makes a failure again."""
    for seed in range(40 if THOROUGH else 1):
        rng = random.Random(seed)
        raws, people = list[RawSpan](), list[Said]()
        for number in range(1, 11):
            trace_id = f"{number:032x}"
            facts = (agent_program if number % 2 else any_trace)(rng.choice)
            raws += [version for raw in raw_trace(facts, trace_id) for version in versions(raw, rng.choice)]
            people += said_of(facts, trace_id)
        assert people
        expected = arrive(engine, at_once(raws), people)
        assert_derived(engine, raws, people)
        for sizes in ((1, 2, 9, 30), (40, 200)):
            assert arrive(engine, shuffled(rng, raws, sizes), people) == expected, f"seed {seed}"
        assert list(verify(engine)) == []


def test_all_orders_of_four_spans_and_their_openings_become_the_same_rows(sqlite: Engine) -> None:
    rng = random.Random(3)
    spans = next(raws for raws in (recording.raws() for recording in all_recordings()) if len(raws) == 4)
    opening = replace(spans[-1], end_ns=None, ended=False, attributes={})
    expected = arrive(sqlite, at_once(spans))
    orders = list(permutations([*spans, opening]))
    for order in orders:
        assert arrive(sqlite, Way([(rng.randrange(3), [raw]) for raw in order])) == expected


# --- recordings


def recorded(engine: Engine) -> list[RawSpan]:
    """Every so manyth recording: all would take a minute."""
    return sample(1 if THOROUGH else 4 if engine.dialect.name == "sqlite" else 9)


def test_recordings_become_the_same_rows_in_every_way(engine: Engine) -> None:
    raws = recorded(engine)
    expected = arrive(engine, at_once(raws))
    assert_derived(engine, raws)
    rng = random.Random(1)
    assert arrive(engine, shuffled(rng, raws + rng.sample(raws, len(raws) // 4), (1, 5, 50, 500))) == expected
    openings = [replace(raw, end_ns=None, ended=False, attributes={}) for raw in rng.sample(raws, len(raws) // 4)]
    assert arrive(engine, shuffled(rng, raws + openings, (20, 100))) == expected
    assert list(verify(engine)) == []


def test_recordings_with_duplicates_that_differ_become_the_same_rows_in_every_way(engine: Engine) -> None:
    rng = random.Random(2)
    raws = [version for raw in recorded(engine) for version in versions(raw, rng.choice)]
    expected = arrive(engine, at_once(raws))
    assert_derived(engine, raws)
    assert expected["quarantine"]
    assert arrive(engine, shuffled(rng, raws, (10, 100, 300))) == expected
    assert list(verify(engine)) == []


def test_two_exporters_store_the_same_rows_in_every_way(database_url: str) -> None:
    """Through the SDK's own spans."""
    rng = random.Random(4)
    with opened(database_url) as engine:
        spans = [readable(raw) for raw in recorded(engine)]
        dumps = list[Dump]()
        for order, exporters in ((spans, 1), (rng.sample(spans, len(spans)), 2), (rng.sample(spans, len(spans)), 2)):
            clear(engine)
            taking = [StepSpanExporter(database_url, record="all") for _ in range(exporters)]
            for at in range(0, len(order), 64):
                assert rng.choice(taking).export(order[at : at + 64]) is SpanExportResult.SUCCESS
            assert sum(exporter.stats().committed for exporter in taking) == len(spans)
            for exporter in taking:
                exporter.shutdown()
            dumps.append(dump(engine))
        assert len(dumps[0]["spans"]) == len(spans)
        assert dumps[1] == dumps[0]
        assert dumps[2] == dumps[0]
        direct = arrive(engine, at_once(recorded(engine)))
    assert {table: dumps[0][table] for table in (*DERIVED, "contents")} == {
        table: direct[table] for table in (*DERIVED, "contents")
    }
