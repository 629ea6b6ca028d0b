"""The waterfall of a trace, drawn from plain records."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest

from step_exporter.cli.waterfall import bar, trace_status, waterfall
from step_exporter.facts import Event
from step_exporter.store.records import RunRecord, SpanRecord, StepMetricsRecord, StepRecord, TraceRecord, TreeNode

R = TypeVar("R")
TRACE = "0af7651916cd43dd8448eb211c80319c"
START = 1_795_368_468_000_000_000
MS = 10**6


def record(kind: type[R], **values: Any) -> R:
    """A record with None in every field that is not given."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    assert values.keys() <= names
    return kind(**{name: values.get(name) for name in names})


def a_run(id_: str, start_ms: int, length_ms: int, **values: Any) -> RunRecord:
    known = {"agent_name": id_, "status": "completed", "step_count": 2} | values
    tokens = {"prompt_tokens": 202, "completion_tokens": 74, "total_tokens": 276}
    times = {"start_ns": START + start_ms * MS, "total_duration_ns": length_ms * MS}
    return record(RunRecord, trace_id=TRACE, id=id_, **times, **tokens, **known)


def a_step(position: int, run_id: str, start_ms: int, length_ms: int, **values: Any) -> StepRecord:
    id_ = f"step-{position}"
    metrics = record(
        StepMetricsRecord,
        step_start_ns=START + start_ms * MS,
        step_ns=length_ms * MS,
        llm_request_count=1,
        tool_call_count=2,
    )
    known = {"status": "success", "model": "gpt-5-mini"} | values
    tokens = {"prompt_tokens": 101, "completion_tokens": 37, "total_tokens": 138}
    when = datetime(2026, 11, 22, tzinfo=UTC)
    return record(
        StepRecord,
        trace_id=TRACE,
        id=id_,
        span_id=id_,
        run_id=run_id,
        position=position,
        created_at=when,
        metrics=metrics,
        **tokens,
        **known,
    )


def a_span(id_: str, name: str, role: str, start_ms: int, end_ms: int, **values: Any) -> SpanRecord:
    known = {"ended": True, "status_code": "unset", "attributes": {}, "events": (), "links": ()} | values
    times = {"start_ns": START + start_ms * MS, "end_ns": START + end_ms * MS}
    return record(SpanRecord, trace_id=TRACE, span_id=id_, name=name, role=role, **times, **known)


def a_trace(
    runs: list[RunRecord], steps: list[StepRecord], spans: list[SpanRecord], tree: list[tuple[str, str, int | None]]
) -> TraceRecord:
    nodes: list[TreeNode] = []
    for kind, id_, parent in tree:
        nodes.append(TreeNode(kind, id_, 0 if parent is None else nodes[parent].depth + 1, parent))  # type: ignore[arg-type]
    return TraceRecord(TRACE, START, START + 900 * MS, tuple(runs), tuple(steps), tuple(spans), (), tuple(nodes))


def lines(trace: TraceRecord, width: int = 80, **options: Any) -> list[str]:
    return [line.plain.rstrip() for line in waterfall(trace, width, **options)]


@pytest.fixture
def weather() -> TraceRecord:
    return a_trace(
        [a_run("weather-agent", 0, 900)],
        [a_step(1, "weather-agent", 0, 500), a_step(2, "weather-agent", 500, 400)],
        [
            a_span("s0", "invoke_agent", "agent", 0, 900),
            a_span("s1", "chat gpt-5-mini", "llm", 0, 200),
            a_span("s2", "get_weather", "tool", 200, 400),
            a_span("s3", "get_time", "tool", 210, 500, status_code="error", status_message="TimeoutError: no answer"),
            a_span("s4", "chat gpt-5-mini", "llm", 500, 900),
        ],
        [
            ("run", "weather-agent", None),
            ("span", "s0", 0),
            ("step", "step-1", 0),
            ("span", "s1", 2),
            ("span", "s2", 2),
            ("span", "s3", 2),
            ("step", "step-2", 0),
            ("span", "s4", 6),
        ],
    )


def test_a_run_with_parallel_tools(weather: TraceRecord) -> None:
    title, summary, *body = lines(weather)
    assert title == f"trace {TRACE}  completed  900 ms"
    assert "1 run · 2 steps · 2 LLM requests · 4 tool calls · 202 → 74 tokens · 5 spans" in summary
    assert body == [
        "",
        "weather-agent            completed   900 ms ────────────────────────────────────",
        "├─ step 1                success     500 ms ━━━━━━━━━━━━━━━━━━━━",
        "│  ├─ chat gpt-5-mini                200 ms ████████",
        "│  ├─ get_weather                    200 ms         ▒▒▒▒▒▒▒▒",
        "│  └─ get_time           failed      290 ms         ▒▒▒▒▒▒▒▒▒▒▒▒",
        "│        ✗ TimeoutError: no answer",
        "└─ step 2                success     400 ms                     ━━━━━━━━━━━━━━━━",
        "   └─ chat gpt-5-mini                400 ms                     ████████████████",
        "",
        "── run  ━━ step  ██ LLM  ▒▒ tool",
    ]


def test_models_and_tokens_where_there_is_room(weather: TraceRecord) -> None:
    run, step, llm, *_ = [" ".join(line.split()) for line in lines(weather, 120)[3:]]
    assert "weather-agent 2 steps 202 → 74 completed" in run
    assert "step 1 gpt-5-mini 101 → 37 success" in step
    assert "chat gpt-5-mini LLM 200 ms" in llm


def test_other_spans_are_shown_on_demand(weather: TraceRecord) -> None:
    assert not any("invoke_agent" in line for line in lines(weather))
    assert any("invoke_agent" in line for line in lines(weather, show_all=True))


def test_what_hangs_below_a_hidden_span_hangs_from_the_nearest_shown() -> None:
    trace = a_trace(
        [a_run("agent", 0, 10)],
        [a_step(1, "agent", 0, 10)],
        [a_span("http", "POST", "other", 0, 10), a_span("llm", "chat", "llm", 0, 10)],
        [("run", "agent", None), ("step", "step-1", 0), ("span", "http", 1), ("span", "llm", 2)],
    )
    assert [line.split("  ")[0] for line in lines(trace)[3:6]] == ["agent", "└─ step 1", ""]
    assert "   └─ chat " in lines(trace)[5]


def test_a_nested_agent_is_indented_below_the_step_that_called_it() -> None:
    trace = a_trace(
        [a_run("planner", 0, 100), a_run("guide", 20, 50, parent_run_id="planner")],
        [a_step(1, "planner", 0, 100), a_step(2, "guide", 20, 50)],
        [],
        [("run", "planner", None), ("step", "step-1", 0), ("run", "guide", 1), ("step", "step-2", 2)],
    )
    starts = [line[:12].rstrip() for line in lines(trace)[3:7]]
    assert starts == ["planner", "└─ step 1", "   └─ guide", "      └─ ste"]
    assert trace_status(trace) == "completed"


def test_the_errors_of_steps_and_runs() -> None:
    failed = {"exception.type": "RateLimitError", "exception.message": "slow down"}
    trace = a_trace(
        [a_run("agent", 0, 10, status="failed", span_id="root", error_type="RateLimitError")],
        [a_step(1, "agent", 0, 10, status="failed", error_type="KeyError", error_data={"message": "'city'\nhm"})],
        [a_span("root", "agent", "agent", 0, 10, status_code="error", events=(Event("exception", START, failed),))],
        [("run", "agent", None), ("step", "step-1", 0), ("span", "root", 0)],
    )
    errors = [line for line in lines(trace) if "✗" in line]
    assert [error.strip("│ ") for error in errors] == ["✗ RateLimitError: slow down", r"✗ KeyError: 'city'\nhm"]


def test_names_do_nothing_to_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\n"
    trace = a_trace(
        [a_run("run", 0, 10, agent_name=evil)],
        [a_step(1, "run", 0, 10, model=evil, agent_name=evil)],
        [a_span("llm", evil, "llm", 0, 10, status_code="error", status_message=evil)],
        [("run", "run", None), ("step", "step-1", 0), ("span", "llm", 1)],
    )
    shown = "\n".join(lines(trace))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert r"\x1b]0;owned\x07" in shown


def test_a_trace_without_steps_shows_its_spans() -> None:
    trace = a_trace([], [], [a_span("a", "GET /health", "other", 0, 5)], [("span", "a", None)])
    assert lines(trace)[0] == f"trace {TRACE}  no runs  900 ms"
    assert lines(trace)[3].startswith("GET /health")


def test_an_empty_trace() -> None:
    assert lines(TraceRecord(TRACE, None, None, (), (), (), (), ()))[0] == f"trace {TRACE}  no runs  –"


def test_unknown_times_leave_the_bar_out() -> None:
    unknown = replace(a_span("a", "chat", "llm", 0, 5), start_ns=None)
    assert lines(a_trace([], [], [unknown], [("span", "a", None)]))[3].endswith("– –")


def test_a_chain_of_ten_thousand_spans_stays_narrow() -> None:
    spans = [a_span(f"{n:016x}", f"call {n}", "llm", n, 10_000) for n in range(10_000)]
    tree = [("span", span.span_id, n - 1 if n else None) for n, span in enumerate(spans)]
    shown = lines(a_trace([], [], spans, tree))
    assert len(shown) == 10_000 + 5
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize(
    ("offset", "length", "cells"),
    [(0, 100, (0, 20)), (50, 50, (10, 10)), (0, 0, (0, 1)), (100, 0, (19, 1)), (-5, 10, (0, 2)), (90, 500, (18, 2))],
)
def test_bars_are_to_scale_and_never_empty(offset: int, length: int, cells: tuple[int, int]) -> None:
    assert bar(offset, length, 100, 20) == cells


def test_a_span_of_a_process_that_is_gone_does_not_run(weather: TraceRecord) -> None:
    open_span = {"end_ns": None, "ended": False}
    spans = [replace(span, **open_span, abandoned_ns=START if span.span_id == "s4" else None) for span in weather.spans]
    tools, chats = (
        [line.split() for line in lines(replace(weather, spans=tuple(spans))) if word in line]
        for word in ("get_weather", "chat gpt-5-mini")
    )
    assert "running" in tools[0]
    assert ["running" in chats[0], "abandoned" in chats[1], "running" in chats[1]] == [True, True, False]
