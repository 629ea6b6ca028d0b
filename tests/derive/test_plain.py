"""A plain trace that came whole is derived at one go: its rows are those of the naive derivation, and nothing that is
out of the ordinary is taken for plain."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from reference import Rows, derive
from test_order import often, same
from traces import SAID, TRACE, USAGES, Fact, History, Pick, agent_program, any_span, any_trace, histories, span

from recordings import all_recordings
from step_exporter import conventions
from step_exporter.derive import Changes, Derivation
from step_exporter.derive.plain import derive_plain
from step_exporter.facts import Annotation, Deletion, Message, Role, SpanFacts, ToolCall


def rows(changes: Changes) -> Rows:
    assert not any((changes.deleted_steps, changes.deleted_runs, changes.deleted_messages))
    tables = changes.steps, changes.step_metrics, changes.runs, changes.messages
    assert all(len({row.id for row in table}) == len(table) for table in tables)
    return Rows(*({row.id: row for row in table} for table in tables))


def mostly_plain(rng: random.Random) -> list[Fact]:
    """Agents side by side, requests and tools in them, in any order of arrival; in one of three something is odd."""
    pick: Pick = rng.choice
    numbers = iter(range(2, 200))
    facts: list[Fact] = []
    clock = 0
    root = pick((None, 1, 1))
    for name in ("main", "second")[: pick((1, 1, 2))]:
        agent = pick((next(numbers), None))
        began, parent = clock, agent if agent is not None else root
        prompt: tuple[Message, ...] = (SAID[0],)
        for turn in range(pick((1, 2, 3))):
            clock += pick((1, 2))
            asked = tuple(f"{name}-{turn}-{at}" for at in range(pick((0, 1, 2))))
            reply = Message("assistant", pick(("", "hi")), tool_calls=tuple(ToolCall(c, "f", "{}") for c in asked))
            said = {
                "request_id": pick((None, f"q{clock}")),
                "usage": pick((None, *USAGES)),
                "agent_name": pick((None, None, "b")),
                "failed": pick((False, False, True)),
                "flags": pick(((), ("truncated",))),
                "input_messages": prompt,
                "output_messages": (reply,),
                "asked_call_ids": pick((asked, ())),
                "first_token_ns": pick((None, clock + 1)),
                "conversation_id": pick((None, "talk")),
                "provider_name": pick((None, "openai")),
            }
            facts.append(span(next(numbers), Role.LLM, clock, clock + 2, parent, **said))
            clock += 2
            for call_id in asked:
                facts.append(
                    span(
                        next(numbers),
                        Role.TOOL,
                        pick((clock, clock + 1, clock - 1)),
                        clock + pick((1, 3)),
                        parent,
                        call_id=pick((call_id, None)),
                        failed=pick((False, True)),
                    )
                )
            clock += pick((0, 4))
            prompt = (*prompt, reply, *(Message("tool", f"of {c}", tool_call_id=c) for c in asked))
        clock += 1
        if agent is not None:
            role = pick((Role.AGENT, Role.AGENT, Role.WORKFLOW))
            failed = pick((False, False, True))
            facts.append(span(agent, role, began, clock, root, agent_name=pick((None, name)), failed=failed))
    if root is not None:
        facts.append(span(root, Role.OTHER, 0, clock + 1, kind=pick(("internal", "server"))))
    if pick((False, False, True)):
        at = pick(range(len(facts)))
        facts[at] = any_span(pick, int(facts[at].span_id, 16), range(1, 20))
    rng.shuffle(facts)
    return facts


def test_a_plain_trace_has_the_rows_of_the_naive_derivation() -> None:
    plain = 0
    for seed in range(1500):
        facts = mostly_plain(random.Random(seed))
        found = derive_plain(TRACE, facts)
        if found is None:
            continue
        plain += 1
        try:
            same(rows(found), derive(facts))
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
    assert plain > 700, "these traces are hardly ever told to be plain, so that nothing was compared"


@pytest.mark.once
@often(200)
@given(histories(any_trace))
def test_a_trace_of_any_shape_that_came_whole_derives_as_ever(case: History) -> None:
    same(whole(case.facts), derive(case.facts))


@pytest.mark.once
@pytest.mark.parametrize("program", [any_trace, agent_program])
def test_many_seeded_traces_that_came_whole_derive_as_ever(program: Any) -> None:
    for seed in range(300):
        facts = program(random.Random(seed).choice)
        same(whole(facts), derive(facts))


def whole(facts: Sequence[Fact]) -> Rows:
    changes = Derivation(TRACE, is_whole=True).apply(facts)
    if any(isinstance(fact, Deletion) and fact.kind == "trace" for fact in facts):
        assert not any(changes)
        return Rows({}, {}, {}, {})
    return rows(changes)


def test_recorded_traces_that_are_plain_have_the_rows_of_the_incremental_derivation() -> None:
    traces: dict[tuple[str, str], list[SpanFacts]] = {}
    for recording in all_recordings():
        for raw in recording.raws():
            traces.setdefault((recording.name, raw.trace_id), []).append(conventions.read(raw))
    plain = 0
    for (_, trace_id), facts in traces.items():
        found = derive_plain(trace_id, facts)
        if found is not None:
            plain += 1
            same(rows(found), rows(Derivation(trace_id).apply(facts)))
    assert plain > 100


AGENT = span(1, Role.AGENT, 0, 100, agent_name="main")
FIRST = span(2, Role.LLM, 1, 10, 1, request_id="q1")
TOOL = span(3, Role.TOOL, 11, 20, 1, call_id="c1")
SECOND = span(4, Role.LLM, 21, 30, 1, request_id="q2")
PLAIN = [FIRST, TOOL, SECOND, AGENT]


def test_an_agent_with_two_requests_and_a_tool_is_plain() -> None:
    found = derive_plain(TRACE, PLAIN)
    assert found is not None
    assert [step.span_id for step in found.steps] == [FIRST.span_id, SECOND.span_id]
    assert [run.step_count for run in found.runs] == [2]


ODD: dict[str, Iterable[Fact]] = {
    "a span that is open": [span(5, Role.LLM, 40, None, 1, ended=False)],
    "a native step": [span(5, Role.LLM, 40, 50, 1, step_id="s")],
    "a native run": [span(5, Role.TOOL, 40, 50, 1, run_id="r")],
    "a step's own span": [span(5, Role.STEP, 40, 50, 1)],
    "a log record": [span(5, Role.OTHER, 40, 50, 2, convention="logs")],
    "a request seen by two": [span(5, Role.LLM, 2, 9, 2)],
    "requests at one time": [span(5, Role.LLM, 25, 35, 1)],
    "one response twice": [span(5, Role.LLM, 40, 50, 1, request_id="q1")],
    "the end of a stream": [span(5, Role.LLM, 40, 40, 1)],
    "a request without a start": [span(5, Role.LLM, None, 50, 1)],
    "a tool in a tool": [span(5, Role.TOOL, 12, 19, 3)],
    "a request in a tool": [span(5, Role.LLM, 12, 19, 3)],
    "an agent in an agent": [span(5, Role.AGENT, 40, 50, 1)],
    "an agent in a tool": [span(5, Role.AGENT, 12, 19, 3)],
    "an agent without a request": [span(5, Role.AGENT, 40, 50)],
    "an agent's double": [
        span(6, Role.OTHER, 0, 300),
        span(5, Role.AGENT, 101, 200, 6, agent_name="math"),
        span(7, Role.LLM, 110, 120, 5),
        span(8, Role.OTHER, 130, 140, 6, name="execute_task math"),
    ],
    "parents in a circle": [span(5, Role.OTHER, 40, 50, 6), span(6, Role.OTHER, 40, 50, 5)],
    "what people said": [Annotation(TRACE, FIRST.span_id, "feedback", "positive")],
    "what people deleted": [Deletion(TRACE, "step", "s")],
    "a span twice": [FIRST],
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_odd_is_not_plain(odd: str, first: bool) -> None:
    assert derive_plain(TRACE, [*ODD[odd], *PLAIN] if first else [*PLAIN, *ODD[odd]]) is None
