"""Log records complete their spans, in whatever order, batches and duplicates they come."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace
from reference import Rows, derive
from traces import TRACE, Fact, history, span

from step_exporter.conventions.logs import with_logs
from step_exporter.derive import Derivation
from step_exporter.facts import Message, Role, SpanFacts, ToolCall


def record(number: int, about: int, at: int, **says: Any) -> SpanFacts:
    return span(number, Role.OTHER, at, at, about, convention="logs", **says)


CALL = ToolCall("call-1", "look", "{}")
SPANS = (
    span(1, Role.AGENT, 0, 100),
    span(2, Role.LLM, 1, 10, 1, request_id="r-1"),
    span(3, Role.LLM, 11, 20, 1, request_id="r-2"),
    span(4, Role.TOOL, 21, 30, 1, call_id="call-1"),
)
RECORDS = (
    record(11, 2, 1, input_messages=(Message("system", "Be brief."),)),
    record(12, 2, 2, input_messages=(Message("user", "What is it?"),)),
    record(13, 2, 9, output_messages=(Message("assistant", "", tool_calls=(CALL,)),)),
    record(14, 3, 12, input_messages=(Message("user", "And then?"),)),
    record(15, 3, 19, output_messages=(Message("assistant", "Done."),)),
    record(16, 99, 19, output_messages=(Message("assistant", "of a span that never comes"),)),
)


def fold(batches: Iterable[Sequence[Fact]]) -> Rows:
    derivation, rows = Derivation(TRACE), Rows({}, {}, {}, {})
    for batch in batches:
        changes = derivation.apply(batch)
        for table, written, deleted in (
            (rows.steps, changes.steps, changes.deleted_steps),
            (rows.step_metrics, changes.step_metrics, changes.deleted_steps),
            (rows.runs, changes.runs, changes.deleted_runs),
            (rows.messages, changes.messages, changes.deleted_messages),
        ):
            for row_id in deleted:
                del table[row_id]
            table.update((row.id, row) for row in written)
    return rows


def test_every_history_gives_the_rows_of_spans_that_said_it_themselves() -> None:
    completed = [with_logs(each, [one for one in RECORDS if one.parent_span_id == each.span_id]) for each in SPANS]
    expected = derive([*completed, *RECORDS])
    assert len(expected.messages) == 5
    for seed in range(400):
        batches = history(random.Random(seed).choice, (*SPANS, *RECORDS))
        assert fold(batches) == expected, seed


def test_a_tool_belongs_to_the_request_that_a_record_says_asked_for_it() -> None:
    tool_step = Derivation(TRACE)
    tool_step.apply([*SPANS, *RECORDS])
    assert tool_step.step_of(SPANS[3].span_id) == tool_step.step_of(SPANS[1].span_id)
    assert tool_step.step_of(RECORDS[0].span_id) == tool_step.step_of(SPANS[1].span_id)


def test_what_a_span_says_itself_counts_more() -> None:
    said = replace(SPANS[1], input_messages=(Message("user", "mine"),))
    completed = with_logs(said, RECORDS[:3])
    assert completed.input_messages == said.input_messages
    assert completed.output_messages == RECORDS[2].output_messages
    assert completed.asked_call_ids == ("call-1",)


def test_spans_of_other_roles_get_none() -> None:
    assert with_logs(SPANS[3], RECORDS) == SPANS[3]
