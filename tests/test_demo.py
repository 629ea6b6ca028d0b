"""The demo's rows: what the scripted agent did, as steps, runs and messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from step_exporter.demo import run_demo
from step_exporter.store.query import StepStore
from step_exporter.store.records import RunRecord, StepRecord, TraceRecord


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> TraceRecord:
    """One run of the demo; nothing here changes it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('demo') / 'steps.db'}"
    trace_id = run_demo(url)
    with StepStore(url) as store:
        return store.trace(trace_id)


def run_of(trace: TraceRecord, agent: str) -> RunRecord:
    [run] = [run for run in trace.runs if run.agent_name == agent]
    return run


def steps_of(trace: TraceRecord, agent: str) -> list[StepRecord]:
    return [step for step in trace.steps if step.run_id == run_of(trace, agent).id]


def test_three_steps_of_the_agent_and_two_of_the_one_it_called(trace: TraceRecord) -> None:
    assert len(trace.runs) == 2
    assert [(s.model, s.status, s.prompt_tokens, s.completion_tokens) for s in steps_of(trace, "trip-planner")] == [
        ("gpt-5-mini", "success", 212, 48),
        ("gpt-5-mini", "success", 310, 52),
        ("gpt-5-mini", "success", 455, 96),
    ]
    assert [(s.model, s.status, s.total_tokens) for s in steps_of(trace, "local-guide")] == [
        ("gpt-5-nano", "success", 109),
        ("gpt-5-nano", "success", 142),
    ]


def test_the_runs_sum_up_their_steps(trace: TraceRecord) -> None:
    planner, guide = run_of(trace, "trip-planner"), run_of(trace, "local-guide")
    assert (planner.status, planner.step_count, planner.conversation_id) == ("completed", 3, "demo")
    assert (planner.prompt_tokens, planner.completion_tokens) == (977, 196)
    assert (guide.status, guide.step_count, guide.parent_run_id) == ("completed", 2, planner.id)


def test_parallel_tools_are_not_summed(trace: TraceRecord) -> None:
    metrics = steps_of(trace, "trip-planner")[0].metrics
    assert metrics is not None
    assert metrics.tool_call_count == 2
    tools = [span for span in trace.spans if span.role == "tool" and span.step_id == trace.steps[0].id]
    starts, ends = [span.start_ns or 0 for span in tools], [span.end_ns or 0 for span in tools]
    assert metrics.tool_execution_ns == max(ends) - min(starts)  # they overlap


def test_the_tool_that_failed_did_not_fail_its_step(trace: TraceRecord) -> None:
    [failed] = [span for span in trace.spans if span.role == "tool" and span.status_code == "error"]
    assert failed.attributes["gen_ai.tool.name"] == "search_flights"
    assert failed.step_id == steps_of(trace, "trip-planner")[0].id
    assert {step.status for step in trace.steps} == {"success"}


def test_the_streamed_answer_has_its_first_token(trace: TraceRecord) -> None:
    *others, last = steps_of(trace, "trip-planner")
    assert last.metrics is not None
    assert last.metrics.ttft_ns is not None
    assert 0 < last.metrics.ttft_ns < (last.metrics.llm_request_ns or 0)
    assert all(step.metrics and step.metrics.ttft_ns is None for step in others)
    assert last.cached_input_tokens == 288


def test_each_message_once(trace: TraceRecord) -> None:
    planner = run_of(trace, "trip-planner")
    roles = [message.role for message in trace.messages if message.run_id == planner.id]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant", "tool", "tool", "assistant"]


def test_the_command_shows_the_run_and_what_to_try_next(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; from step_exporter.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*program, "demo", "--db", "demo.db"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "trip-planner" in done.stdout
    assert "local-guide" in done.stdout
    assert "✗ TimeoutError: the airline did not answer" in done.stdout
    [following] = [line.split() for line in done.stdout.splitlines() if "step-exporter trace" in line]
    assert following[-2:] == ["--db", "demo.db"]
    again = subprocess.run([*program, *following[1:]], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert "trip-planner" in again.stdout
