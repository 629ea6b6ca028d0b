"""Facts out of the database are the facts that went in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from raw_spans import same, spans
from sqlalchemy import Engine

from dumps import opened
from recordings import all_recordings
from step_exporter.conventions import read
from step_exporter.conventions.content import take_apart
from step_exporter.facts import RawSpan
from step_exporter.store.ingest import Writer
from step_exporter.store.load import StoredSpan, load_spans

pytestmark = pytest.mark.once


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with opened(database_url) as engine:
        yield engine


def stored(engine: Engine, trace_id: str, after: int | None = None) -> dict[str, StoredSpan]:
    with engine.connect() as conn:
        return {found.raw.span_id: found for found in load_spans(conn, trace_id, after)}


def by_trace(raws: list[RawSpan]) -> dict[str, list[RawSpan]]:
    traces: dict[str, list[RawSpan]] = {}
    for raw in raws:
        traces.setdefault(raw.trace_id, []).append(raw)
    return traces


def test_every_recording_comes_back_as_it_went_in(engine: Engine) -> None:
    raws = [raw for recording in all_recordings() for raw in recording.raws()]
    assert Writer(engine).write(raws).new == len(raws)
    for trace_id, expected in by_trace(raws).items():
        found = stored(engine, trace_id)
        assert same({id_: span.raw for id_, span in found.items()}) == same({raw.span_id: raw for raw in expected})
        for raw in expected:
            assert found[raw.span_id].contents == take_apart(raw)
            assert found[raw.span_id].facts() == read(raw)


def test_the_news_of_a_trace_come_back_with_all_of_their_content(engine: Engine) -> None:
    """What a writer that is behind reads: the spans after a revision, and the content that they share with others."""
    traces = by_trace([raw for recording in all_recordings()[::5] for raw in recording.raws()])
    writer = Writer(engine)
    halves = {trace_id: (raws[: len(raws) // 2], raws[len(raws) // 2 :]) for trace_id, raws in traces.items()}
    for half in (0, 1):
        writer.write([raw for parts in halves.values() for raw in parts[half]])
    for trace_id, (first, second) in halves.items():
        found = stored(engine, trace_id, after=1 if first else 0)
        assert {id_: span.raw for id_, span in found.items()} == {raw.span_id: raw for raw in second}


numbers = count(1)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # each step of shrinking would write to the database: minutes
)
@given(drawn=st.lists(spans(), min_size=1, max_size=5))
def test_any_span_comes_back_as_it_went_in(engine: Engine, drawn: list[RawSpan]) -> None:
    trace_id = f"{next(numbers):032x}"
    raws = [replace(raw, trace_id=trace_id, span_id=f"{number:016x}") for number, raw in enumerate(drawn, 1)]
    result = Writer(engine).write(raws)
    assert (result.new, result.quarantined) == (len(raws), 0)
    found = stored(engine, trace_id)
    assert same({id_: span.raw for id_, span in found.items()}) == same({raw.span_id: raw for raw in raws})
