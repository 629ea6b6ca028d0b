"""Whatever order, batches, duplicates and earlier versions spans come in, the rows are those of the whole trace.

``HYPOTHESIS_PROFILE=thorough`` looks at many more traces.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace
from reference import Rows, derive
from traces import SAID, TRACE, Fact, History, Pick, agent_program, any_trace, histories, history, opened, span, span_id

from step_exporter.derive import Derivation
from step_exporter.derive import derivation as derivation_module
from step_exporter.derive import requests as requests_module
from step_exporter.derive import tree as tree_module
from step_exporter.facts import Deletion, Role, TokenUsage

pytestmark = pytest.mark.once

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def often(examples: int) -> settings:
    return settings(
        max_examples=examples * 50 if THOROUGH else examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        derandomize=not THOROUGH,
        database=None,
    )


def fold(batches: Iterable[Sequence[Fact]]) -> Rows:
    """The rows of a database that all changes were written to. Changes say only what changes, and say it once."""
    derivation, rows = Derivation(TRACE), Rows({}, {}, {}, {})
    for batch in batches:
        changes = derivation.apply(batch)
        if any(isinstance(fact, Deletion) and fact.kind == "trace" for fact in batch):
            rows = Rows({}, {}, {}, {})  # the store drops a deleted trace whole; nothing is to be written after that
        tables = (
            (rows.steps, changes.steps, changes.deleted_steps),
            (rows.step_metrics, changes.step_metrics, changes.deleted_steps),
            (rows.runs, changes.runs, changes.deleted_runs),
            (rows.messages, changes.messages, changes.deleted_messages),
        )
        told = {
            *((step.id, step, metrics) for step, metrics in zip(changes.steps, changes.step_metrics, strict=True)),
            *((row.id, row) for row in (*changes.runs, *changes.messages)),
        }
        held = {(row.id, row) for row in (*rows.runs.values(), *rows.messages.values())}
        held |= {(row.id, row, rows.step_metrics[row.id]) for row in rows.steps.values()}
        assert not told & held, "an unchanged row was written"
        for table, written, deleted in tables:
            ids = [row.id for row in written]
            assert len({*ids, *deleted}) == len(ids) + len(deleted), "one row was told twice"
            assert set(deleted) <= set(table), "what is not there was deleted"
            for row_id in deleted:
                del table[row_id]
            table.update((row.id, row) for row in written)
    return rows


def same(found: Rows, expected: Rows) -> None:
    for name, rows, those in zip(Rows._fields, found, expected, strict=True):
        assert rows == those, name


@often(200)
@given(histories(any_trace))
def test_a_small_trace_of_any_shape_derives_alike_in_every_history(case: History) -> None:
    expected = derive(case.facts)
    same(fold([case.facts]), expected)
    same(fold(case.batches), expected)


@pytest.mark.parametrize(("program", "count"), [(any_trace, 800), (agent_program, 350)])
def test_many_seeded_traces_derive_alike_in_every_history(program: Callable[[Pick], list[Fact]], count: int) -> None:
    """Cheaper than Hypothesis, so more and larger ones; the seed makes a failure again."""
    for seed in range(count * 50 if THOROUGH else count):
        pick = random.Random(seed).choice
        facts = program(pick)
        expected = derive(facts)
        try:
            same(fold([facts]), expected)
            same(fold(history(pick, facts)), expected)
        except Exception as error:
            error.add_note(f"seed {seed} of {program.__name__}")
            raise


def turn_of_an_agent() -> list[Fact]:
    """A workflow, its agent, a request seen twice, and the tool that it asked for."""
    usage = TokenUsage(10, 5)
    return [
        span(1, Role.WORKFLOW, 0, 100),
        span(2, Role.AGENT, 1, 90, 1, agent_name="main"),
        span(3, Role.LLM, 2, 20, 2, asked_call_ids=("c1",), input_messages=SAID[:1], output_messages=SAID[2:3]),
        span(4, Role.LLM, 3, 19, 3, scope_name="t", usage=usage, request_id="q1"),
        span(5, Role.TOOL, 30, 40, 2, call_id="c1", tool_name="search"),
    ]


def test_all_120_orders_of_five_spans_give_the_same_rows() -> None:
    facts = turn_of_an_agent()
    expected = derive(facts)
    assert len(expected.steps) == len(expected.runs) == 1
    for order in permutations(facts):
        same(fold([[fact] for fact in order]), expected)


@pytest.mark.parametrize("parent", [1, None])
def test_whether_all_agents_of_a_workflow_failed_is_told_in_every_order(parent: int | None) -> None:
    """One that did not, and is no step, may come last, or turn out to be somewhere else."""
    facts = [
        span(1, Role.WORKFLOW, 0, 90),
        span(2, Role.AGENT, 10, 80, 1, agent_name="a", failed=True),
        span(3, Role.LLM, 11, 79, 2, failed=True),
        span(4, Role.AGENT, 2, 5, parent, agent_name="b"),
    ]
    expected = derive(facts)
    assert {run.status for run in expected.runs.values()} == {"completed"} if parent else {"completed", "failed"}
    for order in permutations(facts):
        same(fold([[fact] for fact in order]), expected)
    elsewhere = replace(facts[3], parent_span_id=None if parent else span_id(1))
    same(fold([[*facts[:3], elsewhere], [facts[3]]]), expected)


def calls(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[tuple[Any, ...]]:
    """What a function of a module will have been called with."""
    noted: list[tuple[Any, ...]] = []
    function = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: noted.append(given) or function(*given))
    return noted


def test_agents_side_by_side_are_no_matter_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request comes before its agent, and makes the run of the trace appear and vanish."""
    made = calls(monkeypatch, derivation_module, "build_run")
    derivation = Derivation(TRACE)
    for at in range(2, 200, 2):
        derivation.apply([span(at + 1, Role.LLM, 10 * at, 10 * at + 5, at)])
        derivation.apply([span(at, Role.AGENT, 10 * at, 10 * at + 9, 1)])
    assert len(made) < 500


def test_an_agent_s_many_tasks_are_no_matter_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is there twice, as ``execute_task a`` beside ``invoke_agent a``."""
    compared = calls(monkeypatch, tree_module, "stands_for")
    derivation = Derivation(TRACE)
    for at in range(2, 1_000, 4):
        began = 100 * at
        derivation.apply(
            [
                span(at + 2, Role.LLM, began + 5, began + 20, at + 1),
                span(at + 1, Role.OTHER, began + 2, began + 40, 1, name="execute_task a"),
                span(at, Role.AGENT, began, began + 50, 1, agent_name="a"),
            ]
        )
    assert len(compared) < 2_000


def test_parallel_requests_of_one_instrumentation_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = calls(monkeypatch, requests_module, "twins")
    derivation = Derivation(TRACE)
    for at in range(2, 300):
        derivation.apply([span(at, Role.LLM, at, 1_000 + at, 1, request_id=f"q{at}")])
    assert not compared


def test_some_hundred_spans_in_random_orders_give_the_same_rows() -> None:
    rng = random.Random(7)
    facts: list[Fact] = []
    for _ in range(100):
        more = agent_program(rng.choice)
        if len(facts) + len(more) < 300:
            offset = len(facts) * 1000
            facts += [moved(fact, offset) for fact in more]
    assert len(facts) > 250
    expected = derive(facts)
    for size in (1, 7, 1000):
        rng.shuffle(facts)
        same(fold(facts[at : at + size] for at in range(0, len(facts), size)), expected)


def moved(fact: Fact, offset: int) -> Fact:
    """The same in another corner of the trace, so that programs stand beside each other."""
    shifted = fact
    if hasattr(fact, "span_id"):
        shifted = replace(shifted, span_id=f"{int(fact.span_id, 16) + offset:016x}")
    if hasattr(fact, "parent_span_id") and fact.parent_span_id is not None:
        shifted = replace(shifted, parent_span_id=f"{int(fact.parent_span_id, 16) + offset:016x}")
    return shifted


def test_an_open_span_and_then_its_end_give_what_the_end_alone_gives() -> None:
    facts = [fact for fact in turn_of_an_agent() if hasattr(fact, "ended")]
    begun = sorted(facts, key=lambda fact: fact.start_ns or 0)
    ends = sorted(facts, key=lambda fact: fact.end_ns or 0)
    same(fold([[opened(fact)] for fact in begun] + [[fact] for fact in ends]), derive(facts))


def test_the_same_facts_again_change_nothing() -> None:
    derivation = Derivation(TRACE)
    derivation.apply(turn_of_an_agent())
    again = derivation.apply(turn_of_an_agent())
    assert not any(again)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("backwards", [False, True])
def test_a_chain_2000_deep_is_derived(role: Role, backwards: bool) -> None:
    facts = [span(number, role, number, 9_000 - number, number - 1 or None) for number in range(1, 2001)]
    if backwards:
        facts.reverse()
    rows = fold(facts[at : at + 500] for at in range(0, len(facts), 500))
    assert len(rows.steps) == {Role.STEP: 2000, Role.LLM: 1, Role.AGENT: 1}.get(role, 0)


@pytest.mark.parametrize("role", list(Role))
def test_a_span_with_5000_children_is_derived(role: Role) -> None:
    facts = [span(number, role, number * 10, number * 10 + 5, 1) for number in range(2, 5002)]
    parent = span(1, Role.AGENT, 0, 99_999)
    rows = fold([facts[:2500], facts[2500:], [parent]])
    assert len(rows.runs) == 1
    assert len(rows.steps) == {Role.STEP: 5000, Role.LLM: 5000, Role.AGENT: 5000, Role.WORKFLOW: 0}.get(role, 1)


@pytest.mark.parametrize("role", list(Role))
def test_a_circle_of_500_spans_is_derived(role: Role) -> None:
    facts = [span(number, role, number, number + 1, number - 1 or 500) for number in range(1, 501)]
    halves = facts[250:], facts[:250]
    same(fold(halves), derive(facts))
