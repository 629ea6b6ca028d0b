"""What is known of a trace is freed as it is let go of: the garbage collector does not see it."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
from traces import TRACE, Fact, Pick, agent_program, any_trace, history, span

from recordings import all_recordings
from step_exporter import conventions
from step_exporter.derive import Derivation
from step_exporter.facts import Message, Role

pytestmark = pytest.mark.once

TURNS = 10


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    gc.freeze()  # what others made, so that looking takes no time
    yield
    gc.unfreeze()
    gc.enable()


def kept(batches: Sequence[Sequence[Fact]]) -> int:
    """How many blocks of memory more are in use after each derivation of the same facts, or are the collector's."""

    def turns(count: int) -> None:
        for _ in range(count):
            derivation = Derivation(TRACE)
            for batch in batches:
                derivation.apply(batch)
            del derivation

    turns(3)
    gc.collect()  # the interpreter's own lists of freed tuples, too
    before = sys.getallocatedblocks()
    turns(TURNS)
    return gc.collect() + (sys.getallocatedblocks() - before) // TURNS


@pytest.mark.parametrize(("program", "count"), [(any_trace, 150), (agent_program, 100)])
def test_nothing_of_a_derivation_stays_whatever_its_history(program: Callable[[Pick], list[Fact]], count: int) -> None:
    for seed in range(count):
        pick = random.Random(seed).choice
        assert kept(history(pick, program(pick))) == 0, f"seed {seed} of {program.__name__}"


def test_nothing_of_a_recording_stays() -> None:
    for recording in all_recordings()[::4]:
        facts = [conventions.read(raw) for raw in recording.raws()]
        assert kept([facts]) == 0, recording.name


def test_chains_of_any_length_are_let_go_of() -> None:
    """What is freed frees what it refers to, which must not go deeper than the stack."""
    count = 100_000
    said = tuple(Message("user", str(number)) for number in range(count))
    nested = [span(number + 1, Role.OTHER, number, 2 * count, number or None) for number in range(count)]
    asked = span(count + 1, Role.LLM, count, count, count, input_messages=said)
    derivation = Derivation(TRACE)
    assert len(derivation.apply([*nested, asked]).messages) == count
    del derivation
