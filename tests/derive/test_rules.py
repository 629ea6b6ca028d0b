"""What a step, a run and a message are: one example a rule. The order of the tests is that of docs on steps:
explicit, inferred, agents without requests, tools, usage, times, runs, ids, status, doubtful input; then messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace
from traces import TRACE, Fact, span

from step_exporter.derive import Changes, Derivation, RunRow, StepMetricsRow, StepRow, ids
from step_exporter.facts import Annotation, Deletion, Message, Role, SpanFacts, TokenUsage, ToolCall

MS = 1_000_000

HELLO = Message("user", "hello")
SEARCH = Message("assistant", "", tool_calls=(ToolCall("c1", "search", '{"q":1}'),))
FOUND = Message("tool", "found", name="search", tool_call_id="c1")
DONE = Message("assistant", "done")


def derive(*facts: Fact) -> Changes:
    return Derivation(TRACE).apply(facts)


def steps(*facts: Fact) -> list[StepRow]:
    """The steps of a trace in their order."""
    return sorted(derive(*facts).steps, key=lambda step: (step.created_ns, step.span_id))


def the_step(*facts: Fact) -> StepRow:
    (step,) = derive(*facts).steps
    return step


def the_metrics(*facts: Fact) -> StepMetricsRow:
    (metrics,) = derive(*facts).step_metrics
    return metrics


def runs(*facts: Fact) -> dict[int | None, RunRow]:
    """The runs by the span that opens them: its number."""
    return {int(run.span_id, 16) if run.span_id else None: run for run in derive(*facts).runs}


def number(step: StepRow) -> int:
    """Of the span that anchors a step."""
    return int(step.span_id, 16)


def flags(step: StepRow) -> set[str]:
    return set(json.loads(step.flags or "[]"))


def agent(at: int, start: int, end: int, parent: int | None = None, **said: Any) -> SpanFacts:
    return span(at, Role.AGENT, start, end, parent, **{"agent_name": f"agent-{at}", **said})


def llm(at: int, start: int, end: int, parent: int | None = None, **said: Any) -> SpanFacts:
    return span(at, Role.LLM, start, end, parent, **{"usage": TokenUsage(10, 5), **said})


def tool(at: int, start: int, end: int, parent: int | None = None, **said: Any) -> SpanFacts:
    return span(at, Role.TOOL, start, end, parent, **said)


def step_span(at: int, start: int, end: int, parent: int | None = None, **said: Any) -> SpanFacts:
    return span(at, Role.STEP, start, end, parent, **said)


def plain(at: int, start: int, end: int, parent: int | None = None, **said: Any) -> SpanFacts:
    return span(at, Role.OTHER, start, end, parent, **said)


# ---- 1: explicit steps


def test_a_step_span_anchors_a_step_with_all_requests_and_tools_below_it() -> None:
    (step,), (metrics,) = derive(step_span(1, 0, 100), llm(2, 1, 10, 1), tool(3, 20, 30, 1), llm(4, 40, 50, 1))[:2]
    assert number(step) == 1
    assert (metrics.llm_request_count, metrics.tool_call_count) == (2, 1)
    assert (step.prompt_tokens, step.completion_tokens, step.total_tokens) == (20, 10, 30)


def test_spans_with_one_native_step_id_are_one_step_anchored_on_the_one_whose_parent_lacks_it() -> None:
    """A baggage processor copies the id to all spans below."""
    step = the_step(
        plain(5, 3, 90, step_id="native"), llm(3, 4, 10, 5, step_id="native"), tool(1, 2, 30, 5, step_id="native")
    )
    assert (step.id, number(step)) == ("native", 5)


def test_spans_with_one_native_step_id_are_one_step_wherever_they_hang() -> None:
    metrics = the_metrics(llm(1, 0, 10, step_id="native"), tool(2, 11, 20, step_id="native"))
    assert (metrics.llm_request_count, metrics.tool_call_count) == (1, 1)


# ---- 2: inferred steps, and which spans are one request


def test_every_request_anchors_a_step_where_no_span_says_so() -> None:
    assert [number(step) for step in steps(agent(1, 0, 100), llm(2, 1, 10, 1), llm(3, 20, 30, 1))] == [2, 3]


def test_nested_requests_that_agree_are_one_counted_once() -> None:
    outer, middle = llm(1, 0, 30, served_model="m"), plain(2, 1, 29, 1)
    inner = llm(3, 2, 28, 2, scope_name="t", served_model="m", request_id="q")
    step = the_step(outer, middle, inner)
    assert (number(step), step.prompt_tokens, step.request_id) == (1, 10, "q")


def test_three_layers_are_one_request_with_the_numbers_of_the_one_closest_to_the_wire() -> None:
    layers = (
        llm(1, 0, 30, usage=None, model_handle="openai/gpt"),
        llm(2, 1, 29, 1, scope_name="t", usage=TokenUsage(None, 7)),
        llm(3, 2, 28, 2, scope_name="u", usage=TokenUsage(12, None)),
    )
    step = the_step(*layers)
    assert (step.prompt_tokens, step.completion_tokens, step.model_handle) == (12, 7, "openai/gpt")
    assert the_metrics(*layers).llm_request_count == 1


def test_nested_requests_are_one_whatever_maker_the_client_library_names() -> None:
    """Agno calls DeepSeek by OpenAI's client."""
    step = the_step(llm(1, 0, 30, provider_name="deepseek"), llm(2, 1, 29, 1, provider_name="openai"))
    assert (step.prompt_tokens, step.total_tokens) == (10, 15)


@pytest.mark.parametrize("inclusive_within", [True, False])
def test_counts_with_and_without_caches_and_reasoning_are_one_request_that_includes_them(
    inclusive_within: bool,
) -> None:
    less, more = TokenUsage(101, 37, cached=64, cache_write=16), TokenUsage(181, 45, cached=64, reasoning=8)
    outer, inner = (less, more) if inclusive_within else (more, less)
    step = the_step(llm(1, 0, 30, usage=outer), llm(2, 1, 29, 1, scope_name="t", usage=inner))
    assert (step.prompt_tokens, step.completion_tokens, step.cached_input_tokens) == (181, 45, 64)


@pytest.mark.parametrize(
    "minted", ["chatcmpl-ac2d75a0-5a64-4429-9f58-cd897fa69146", "resp_bGl0ZWxsbTpjdXN0b21fbGxtX3Byb3ZpZGVyOm9wZW5haQ=="]
)
def test_an_id_that_litellm_made_itself_contradicts_no_providers(minted: str) -> None:
    step = the_step(llm(1, 0, 30, request_id=minted), llm(2, 1, 29, 1, scope_name="t", request_id="msg_0000"))
    assert (step.request_id, step.prompt_tokens, step.completion_tokens) == ("msg_0000", 10, 5)


def test_two_requests_of_litellm_side_by_side_are_two() -> None:
    minted = "chatcmpl-ac2d75a0-5a64-4429-9f58-cd897fa6914"
    one, other = llm(1, 0, 30, 9, request_id=minted + "6"), llm(2, 0, 30, 9, scope_name="t", request_id=minted + "7")
    assert len(steps(one, other)) == 2


def test_nested_requests_that_differ_are_two() -> None:
    assert len(steps(llm(1, 0, 30, served_model="small"), llm(2, 1, 20, 1, served_model="large"))) == 2


def test_a_request_inside_a_tool_inside_a_request_is_another() -> None:
    assert len(steps(llm(1, 0, 30), tool(2, 1, 20, 1), llm(3, 2, 10, 2))) == 2


def test_a_span_above_two_requests_is_a_wrapper_and_the_failed_one_counts() -> None:
    """Routers, retries and fallbacks."""
    found = steps(
        llm(1, 0, 50),
        llm(2, 1, 10, 1, usage=None, failed=True, error_type="429"),
        llm(3, 20, 40, 1, usage=TokenUsage(8, 2)),
    )
    assert [(number(step), step.status, step.prompt_tokens) for step in found] == [(2, "failed", 0), (3, "success", 8)]


def test_siblings_with_one_response_id_are_one_request() -> None:
    """The Anthropic SDK's own span beside an instrumentation's."""
    assert number(the_step(llm(2, 1, 10, 9, request_id="q"), llm(3, 20, 30, 9, request_id="q"))) == 2


def test_siblings_of_two_scopes_within_one_time_that_agree_are_one_request() -> None:
    twins = llm(2, 1, 10, 9, served_model="m"), llm(3, 2, 9, 9, served_model="m", scope_name="t")
    assert the_step(*twins).prompt_tokens == 10


def test_a_guardrail_and_the_main_request_at_two_providers_at_the_same_time_are_two() -> None:
    main = llm(2, 1, 20, 9, provider_name="anthropic")
    guardrail = llm(3, 2, 10, 9, provider_name="openai", scope_name="t")
    assert len(steps(main, guardrail)) == 2


def test_a_stream_that_one_instrumentation_hands_on_to_another_is_one_request() -> None:
    """LlamaIndex's span ends when it returns the generator; the client's begins then."""
    handed = llm(1, 0, 20, 9, served_model="m"), llm(2, 21, 70, 9, scope_name="t", request_id="q")
    step = the_step(*handed)
    assert (step.total_tokens, step.request_id) == (15, "q")
    between = llm(3, 20, 20, 9, scope_name="t", usage=TokenUsage(1, 1))
    assert [number(found) for found in steps(*handed, between)] == [1, 3, 2]
    assert len(steps(handed[0], llm(2, 21, 70, 9, scope_name="t", usage=TokenUsage(10, 6)))) == 2


def test_siblings_of_two_scopes_that_agree_in_nothing_are_two() -> None:
    assert len(steps(llm(2, 1, 20, 9, usage=None), llm(3, 2, 10, 9, usage=None, scope_name="t"))) == 2


def test_parallel_siblings_of_one_scope_are_two_even_if_alike() -> None:
    assert len(steps(llm(2, 1, 20, 9, served_model="m"), llm(3, 2, 10, 9, served_model="m"))) == 2


def test_a_container_of_two_disjoint_siblings_is_one_with_the_first() -> None:
    """A holds B and C, each in a scope of its own: pairs by the gap of their starts, one span a scope."""
    a = llm(1, 0, 100, 9, served_model="m")
    b, c = (llm(at, at * 10, at * 10 + 5, 9, served_model="m", scope_name="t") for at in (2, 3))
    assert [number(step) for step in steps(a, b, c)] == [1, 3]


def test_a_span_without_length_right_after_a_stream_carries_its_usage() -> None:
    """Logfire's streams; the same scope, and no value in common."""
    step = the_step(llm(2, 1, 5, 9, usage=None, first_token_ns=3), llm(3, 40, 40, 9))
    assert (number(step), step.prompt_tokens) == (2, 10)


def test_a_span_without_length_that_follows_another_request_is_one_of_its_own() -> None:
    stream, other, tail = llm(2, 1, 5, 9, usage=None), llm(3, 6, 9, 9), llm(4, 40, 40, 9)
    assert [number(step) for step in steps(stream, other, tail)] == [2, 3, 4]


def test_usage_alone_makes_no_request() -> None:
    assert derive(plain(1, 0, 10, usage=TokenUsage(10, 5))).steps == ()


# ---- 3: agents without a request


def test_an_ended_agent_without_requests_is_one_step_with_its_tools() -> None:
    facts = agent(1, 0, 100, usage=TokenUsage(30, 9)), tool(2, 10, 20, 1)
    step = the_step(*facts)
    assert (number(step), step.prompt_tokens) == (1, 30)
    assert "no_llm_span" in flags(step)
    assert the_metrics(*facts).tool_execution_ns == 10


def test_an_agent_that_did_nothing_in_a_run_with_requests_is_no_step() -> None:
    """A hand-off, a user, a node of a graph: put down as agents, too."""
    others = agent(1, 0, 100), llm(2, 1, 10, 1), agent(3, 11, 12, 1)
    assert [number(step) for step in steps(*others)] == [2]
    assert [number(step) for step in steps(*others, tool(4, 11, 12, 3))] == [2, 3]
    assert [number(step) for step in steps(*others[:2], agent(3, 11, 12, 1, failed=True))] == [2, 3]


def test_an_agent_without_a_word_in_a_run_that_failed_has_failed() -> None:
    step = the_step(agent(1, 0, 100, failed=True, error_type="TimeoutError"), agent(2, 1, 99, 1))
    assert (number(step), step.status, step.error_type) == (2, "failed", "TimeoutError")


def test_an_agent_named_by_the_operation_alone_has_the_name_of_the_one_above() -> None:
    inner = agent(2, 1, 99, 1, agent_name=None, name="invoke_agent")
    assert the_step(agent(1, 0, 100), inner, llm(3, 2, 10, 2)).agent_name == "agent-1"
    assert the_step(replace(inner, parent_span_id=None), llm(3, 2, 10, 2)).agent_name == "invoke_agent"


def test_an_open_agent_is_a_run_and_no_step() -> None:
    changes = derive(agent(1, 0, 100, ended=False))
    assert (changes.steps, changes.runs[0].status) == ((), "created")


def test_an_agent_whose_requests_hang_under_its_twin_is_no_step() -> None:
    """OpenLLMetry: ``execute_task math`` beside ``invoke_agent math``, and the requests under the former."""
    found = steps(
        span(9, Role.WORKFLOW, 0, 100),
        agent(1, 1, 50, 9, name="invoke_agent math", agent_name="math"),
        plain(2, 2, 49, 9, name="execute_task math"),
        llm(3, 3, 10, 2),
    )
    assert [(number(step), step.agent_name) for step in found] == [(3, "math")]


def test_an_agent_above_another_that_is_a_step_is_none() -> None:
    assert [number(step) for step in steps(agent(1, 0, 100), agent(2, 10, 50, 1))] == [2]


# ---- 4: tools


def test_a_tool_belongs_to_the_explicit_step_above_it_whoever_asked() -> None:
    changes = derive(
        step_span(1, 0, 20, 9),
        llm(2, 1, 10, 1, asked_call_ids=("c1",)),
        step_span(3, 30, 60, 9),
        tool(4, 31, 40, 3, call_id="c1"),
    )
    assert {m.id: m.tool_call_count for m in changes.step_metrics} == {
        ids.step_id(TRACE, f"{1:016x}"): 0,
        ids.step_id(TRACE, f"{3:016x}"): 1,
    }


def tool_counts(*facts: Fact) -> dict[int, int]:
    """Of each anchor, its tool calls."""
    changes = derive(*facts)
    anchors = {step.id: number(step) for step in changes.steps}
    return {anchors[metrics.id]: metrics.tool_call_count for metrics in changes.step_metrics}


def test_a_tool_belongs_to_the_request_that_asked_for_it() -> None:
    first, second = llm(2, 1, 10, 1, asked_call_ids=("c1",)), llm(3, 20, 30, 1, asked_call_ids=("c2",))
    facts = agent(1, 0, 100), first, second, tool(4, 40, 50, 1, call_id="c1"), tool(5, 41, 50, 1, call_id="c2")
    assert tool_counts(*facts) == {2: 1, 3: 1}


def test_a_tool_nobody_is_known_to_have_asked_for_belongs_to_the_latest_request_begun_before_it() -> None:
    """Also one that still runs: Vercel starts tools inside the request."""
    assert tool_counts(agent(1, 0, 100), llm(2, 1, 10, 1), llm(3, 20, 60, 1), tool(4, 30, 40, 1)) == {2: 0, 3: 1}


def test_begun_before_includes_the_same_instant() -> None:
    """JavaScript's clock ticks in milliseconds."""
    assert tool_counts(agent(1, 0, 100), llm(5, 20, 20, 1), tool(4, 20, 21, 1)) == {5: 1}


def test_latest_is_by_the_agent_not_by_the_trace() -> None:
    facts = (
        agent(1, 0, 100),
        agent(2, 0, 100),
        llm(3, 10, 20, 1),
        llm(4, 30, 40, 2),
        tool(5, 50, 60, 1),
    )
    assert tool_counts(*facts) == {3: 1, 4: 0}


def test_nested_tool_spans_of_one_call_are_one_call() -> None:
    """An MCP client's and its server's."""
    facts = llm(2, 0, 10), tool(3, 20, 40), plain(4, 21, 39, 3, kind="server"), tool(5, 22, 38, 4)
    (metrics,) = derive(*facts).step_metrics
    assert (metrics.tool_call_count, metrics.tool_execution_ns) == (1, 20)


def test_nested_tool_spans_of_two_calls_are_two_calls() -> None:
    assert (
        the_metrics(llm(2, 0, 10), tool(3, 20, 40, call_id="c1"), tool(4, 21, 39, 3, call_id="c2")).tool_call_count == 2
    )


# ---- 5: usage


def test_an_agent_and_a_step_span_that_repeat_the_sum_add_nothing() -> None:
    total = TokenUsage(20, 10)
    changes = derive(
        agent(1, 0, 100, usage=total), step_span(2, 1, 90, 1, usage=total), llm(3, 2, 10, 2), llm(4, 20, 30, 2)
    )
    assert (changes.steps[0].total_tokens, changes.runs[0].total_tokens) == (30, 30)


def test_a_side_that_nobody_reported_is_zero_and_flagged() -> None:
    step = the_step(llm(1, 0, 10, usage=TokenUsage(prompt=10)))
    assert (step.prompt_tokens, step.completion_tokens, step.total_tokens) == (10, 0, 10)
    assert flags(step) == {"no_completion_usage"}


def test_details_that_nobody_reported_are_null_not_zero() -> None:
    step = the_step(llm(1, 0, 10, usage=TokenUsage(10, 5, cached=0)))
    assert (step.cached_input_tokens, step.cache_write_tokens, step.reasoning_tokens) == (0, None, None)


def test_the_last_request_that_ended_without_error_speaks_for_a_step() -> None:
    step = the_step(
        step_span(1, 0, 100),
        llm(2, 1, 10, 1, served_model="first", stop_reason="tool_calls"),
        llm(3, 20, 30, 1, served_model="second", stop_reason="stop", request_id="q2"),
        llm(4, 40, 50, 1, served_model="third", usage=None, failed=True),
    )
    assert (step.model, step.stop_reason, step.request_id, step.prompt_tokens) == ("second", "stop", "q2", 20)


# ---- 6: times


@pytest.mark.parametrize(("second", "expected"), [((20, 40), 20), ((25, 50), 30), ((60, 80), 40), ((22, 30), 20)])
def test_tool_time_is_the_union_of_intervals(second: tuple[int, int], expected: int) -> None:
    """Parallel tools are not summed, serial ones not maxed."""
    facts = llm(1, 0, 10, 9), tool(2, 20, 40, 9), tool(3, *second, 9)
    assert the_metrics(*facts).tool_execution_ns == expected


def test_request_time_is_the_union_and_starts_with_the_first() -> None:
    metrics = the_metrics(step_span(1, 0, 100), llm(2, 30, 50, 1), llm(3, 10, 35, 1), llm(4, 70, 80, 1))
    assert (metrics.llm_request_start_ns, metrics.llm_request_ns) == (10, 50)


def test_the_time_of_a_step_is_the_hull_of_what_belongs_to_it() -> None:
    metrics = the_metrics(llm(1, 10, 20, 9), tool(2, 30, 45, 9))
    assert (metrics.step_start_ns, metrics.step_ns) == (10, 35)


def test_an_end_before_its_start_is_left_out() -> None:
    metrics = the_metrics(llm(1, 10, 20, 9), tool(2, 30, 25, 9), tool(3, 30, 32, 9))
    assert (metrics.tool_execution_ns, metrics.tool_call_count, metrics.step_ns) == (2, 2, 22)


@pytest.mark.parametrize("skew", [-30_000, 0, 30_000])
def test_a_gateway_whose_clock_goes_otherwise_gives_a_request_no_times(skew: int) -> None:
    app, gateway = {"service_name": "app"}, {"service_name": "gateway", "first_token_ns": (45_000 + skew) * MS}
    facts = (
        agent(1, 0, 200_000 * MS, **app),
        llm(2, 40_000 * MS, 80_000 * MS, 1, **app),
        plain(3, (41_000 + skew) * MS, (79_000 + skew) * MS, 2, kind="server", service_name="gateway"),
        llm(4, (42_000 + skew) * MS, (78_000 + skew) * MS, 3, scope_name="t", **gateway),
        llm(5, 90_000 * MS, 95_000 * MS, 1, **app),
        tool(6, 81_000 * MS, 85_000 * MS, 1, **app),
    )
    first, second = steps(*facts)
    assert [number(first), number(second)] == [2, 5]
    assert flags(first) == ({"clock_skew"} if skew else set())
    metrics = {row.id: row for row in derive(*facts).step_metrics}[first.id]
    assert (metrics.step_start_ns, metrics.llm_request_start_ns) == (40_000 * MS, 40_000 * MS)
    assert (metrics.llm_request_ns, metrics.tool_execution_ns, metrics.step_ns) == (
        40_000 * MS,
        4_000 * MS,
        45_000 * MS,
    )
    assert metrics.ttft_ns == (None if skew else 5_000 * MS)


def test_a_gateway_that_ends_a_little_after_its_client_is_not_doubted() -> None:
    asked = llm(1, 10 * MS, 50 * MS, service_name="app")
    served = llm(2, 9 * MS, 53 * MS, 1, scope_name="t", service_name="gateway", first_token_ns=20 * MS)
    assert flags(the_step(asked, served)) == set()
    assert the_metrics(asked, served).ttft_ns == 11 * MS


def test_a_tool_server_an_hour_off_leaves_the_time_of_its_call_alone() -> None:
    hour = 3600 * 10**9
    asked, called = llm(1, 0, 10, service_name="app"), tool(2, 11, 20, service_name="app")
    facts = [asked, called, tool(3, 12 - hour, 19 - hour, 2, service_name="server"), tool(4, 13, 25)]
    (step,), (metrics,) = derive(*facts)[:2]
    assert flags(step) == {"clock_skew"}
    assert (metrics.tool_execution_ns, metrics.step_ns, metrics.tool_call_count) == (14, 25, 2)


def test_a_stream_of_the_same_service_may_go_on_after_the_span_around_it() -> None:
    facts = llm(1, 0, 10, service_name="app"), llm(2, 1, 30, 1, scope_name="t", service_name="app")
    inner = llm(3, 2, 29, 2, scope_name="u", service_name="gateway")  # within that time: its clock is fine
    for found in (facts, (*facts, inner)):
        assert flags(the_step(*found)) == set()
        assert the_metrics(*found).llm_request_ns == 30


@pytest.mark.parametrize("whole", [True, False])
def test_the_duration_of_a_run_is_unknown_where_no_end_of_its_steps_is_known(whole: bool) -> None:
    backwards, fine = llm(1, 20, 10), llm(2, 30, 34)
    (run,) = Derivation(TRACE, is_whole=whole).apply([backwards]).runs
    assert (run.status, run.total_duration_ns) == ("completed", None)
    (run,) = Derivation(TRACE, is_whole=whole).apply([backwards, fine]).runs
    assert run.total_duration_ns == 14


def test_the_first_token_is_counted_from_the_start_of_its_request() -> None:
    assert the_metrics(step_span(1, 0, 100), llm(2, 10, 30, 1, first_token_ns=17)).ttft_ns == 7


def test_a_first_token_before_the_request_is_left_out_and_flagged() -> None:
    changes = derive(llm(2, 10, 30, first_token_ns=3))
    assert changes.step_metrics[0].ttft_ns is None
    assert "clock_skew" in flags(changes.steps[0])


def test_a_step_span_that_stands_for_all_gives_its_times_from_its_events() -> None:
    """Letta's ``agent_step``."""
    metrics = the_metrics(
        step_span(1, 0, 100, step_id="step-1", llm_start_ns=10, llm_ns=40, tool_ns=20, tool_call_count=2)
    )
    assert (metrics.llm_request_start_ns, metrics.llm_request_ns, metrics.tool_execution_ns) == (10, 40, 20)
    assert (metrics.llm_request_count, metrics.tool_call_count) == (1, 2)


# ---- 7: runs


def test_a_workflow_over_two_agents_is_one_run() -> None:
    found = runs(
        span(1, Role.WORKFLOW, 0, 100), agent(2, 1, 40, 1), agent(3, 50, 90, 1), llm(4, 2, 9, 2), llm(5, 51, 60, 3)
    )
    assert list(found) == [1]
    assert found[1].step_count == 2


def test_two_agents_under_a_plain_span_are_two_runs() -> None:
    assert set(runs(plain(1, 0, 100), agent(2, 1, 40, 1), agent(3, 50, 90, 1))) == {2, 3}


@pytest.mark.parametrize("between", [tool, step_span])
def test_an_agent_called_from_a_tool_or_a_step_has_a_run_of_its_own(between: Any) -> None:
    found = runs(agent(1, 0, 100), llm(2, 1, 10, 1), between(3, 20, 80, 1), agent(4, 30, 70, 3), llm(5, 31, 40, 4))
    assert set(found) == {1, 4}
    assert (found[4].parent_run_id, found[1].parent_run_id) == (found[1].id, None)


def test_the_step_whose_tool_called_an_agent_is_the_parent_of_its_steps() -> None:
    outer, inner = steps(agent(1, 0, 100), llm(2, 1, 10, 1), tool(3, 20, 80, 1), agent(4, 30, 70, 3), llm(5, 31, 40, 4))
    assert (inner.parent_step_id, outer.parent_step_id) == (outer.id, None)
    assert (outer.agent_name, inner.agent_name) == ("agent-1", "agent-4")


def test_an_agent_directly_in_an_agent_stays_in_its_run_under_its_own_name() -> None:
    facts = agent(1, 0, 100), plain(2, 1, 90, 1), agent(3, 2, 80, 2), llm(4, 3, 10, 3)
    assert set(runs(*facts)) == {1}
    assert the_step(*facts).agent_name == "agent-3"


def test_an_agent_in_another_service_has_a_run_of_its_own() -> None:
    found = runs(agent(1, 0, 100), plain(2, 10, 90, 1, kind="server"), agent(3, 11, 80, 2), llm(4, 12, 20, 3))
    assert found[3].parent_run_id == found[1].id


def test_an_agent_below_the_server_span_of_a_web_request_is_the_top_run_beside_requests_of_the_trace() -> None:
    facts = plain(1, 0, 100, kind="server"), llm(2, 1, 5, 1), agent(3, 11, 80, 1), llm(4, 12, 20, 3)
    for found in (runs(*facts), runs(*facts[1:])):
        assert set(found) == {None, 3}
        assert found[3].parent_run_id is None


def sibling_agents(**inner: int) -> tuple[SpanFacts, ...]:
    """An agent as a tool, whose span hangs beside that of its caller."""
    start, end = inner.get("start", 25), inner.get("end", 60)
    return (
        span(1, Role.WORKFLOW, 0, 100),
        agent(2, 1, 90, 1),
        llm(3, 2, 10, 2),
        tool(4, 20, 70, 2),
        agent(5, start, end, 1),
        llm(6, start + 1, end - 1, 5),
    )


def test_an_agent_beside_its_caller_within_the_time_of_its_tool_was_called_by_it() -> None:
    """OpenLLMetry with OpenAI-Agents hangs it under the workflow."""
    found = runs(*sibling_agents())
    assert found[5].parent_run_id == found[1].id
    outer, inner = steps(*sibling_agents())
    assert (inner.parent_step_id, flags(inner)) == (outer.id, {"parent_inferred"})


def test_an_agent_beside_another_outside_the_time_of_its_tools_was_not_called_by_it() -> None:
    assert set(runs(*sibling_agents(start=75, end=95))) == {1}


def test_an_agent_beside_a_tool_that_has_its_own_agent_was_not_called_by_it() -> None:
    facts = *sibling_agents(), agent(7, 21, 69, 4), llm(8, 22, 30, 7)
    assert set(runs(*facts)) == {1, 7}


def test_the_narrowest_of_several_tools_called_the_agent() -> None:
    changes = derive(*sibling_agents(), llm(7, 21, 22, 2), tool(8, 23, 65, 2))
    anchors = {step.id: number(step) for step in changes.steps}
    (inner,) = (step for step in changes.steps if number(step) == 6)
    assert anchors[str(inner.parent_step_id)] == 7


def test_without_any_agent_the_run_is_that_of_the_trace() -> None:
    """Its id is of the trace alone: a missing parent or a second root changes nothing."""
    for parent in (None, 77):
        (run,) = derive(plain(1, 0, 100), llm(2, 1, 10, 1), llm(3, 20, 30, parent)).runs
        assert (run.id, run.span_id, run.step_count) == (ids.trace_run_id(TRACE), None, 2)


def test_a_step_moves_to_the_run_of_its_agent_when_that_arrives() -> None:
    derivation = Derivation(TRACE)
    (before,) = derivation.apply([llm(2, 1, 10, 1)]).runs
    changes = derivation.apply([agent(1, 0, 100)])
    assert changes.deleted_runs == (before.id,)
    assert [step.run_id for step in changes.steps] == [ids.run_id(TRACE, f"{1:016x}")]


def test_a_native_run_id_wins() -> None:
    (run,) = derive(agent(1, 0, 100, run_id="mine"), llm(2, 1, 10, 1)).runs
    assert (run.id, run.span_id) == ("mine", f"{1:016x}")


def test_two_native_run_ids_in_one_trace_are_two_runs() -> None:
    changes = derive(*(step_span(at, at, at + 1, step_id=f"s{at}", run_id=f"r{at % 2}") for at in range(4)))
    assert {run.id: run.step_count for run in changes.runs} == {"r0": 2, "r1": 2}


def test_a_run_has_the_conversation_that_any_of_its_spans_names() -> None:
    (run,) = derive(agent(1, 0, 100), llm(2, 1, 10, 1, conversation_id="talk")).runs
    assert run.conversation_id == "talk"


# ---- 8: ids


def test_ids_follow_from_the_trace_and_the_anchor() -> None:
    step = the_step(llm(2, 1, 10))
    assert step.id == ids.step_id(TRACE, step.span_id)
    assert step.id.startswith("step-")


def test_a_step_is_found_by_any_of_its_spans() -> None:
    derivation = Derivation(TRACE)
    facts = [llm(1, 0, 30), llm(2, 1, 20, 1), tool(3, 40, 50), plain(4, 41, 42, 3)]
    (step,) = derivation.apply(facts).steps
    assert {derivation.step_of(fact.span_id) for fact in facts} == {step.id}


# ---- 9: status


def test_an_open_step_is_pending_and_running_once_something_began_in_it() -> None:
    opened = step_span(1, 0, 100, ended=False)
    assert the_step(opened).status == "pending"
    assert the_step(opened, llm(2, 1, 10, 1)).status == "running"


def test_a_pending_step_has_no_end_and_no_flags_yet() -> None:
    changes = derive(llm(1, 0, 0, ended=False, usage=None))
    assert (changes.steps[0].flags, changes.step_metrics[0].step_ns) == (None, None)


def test_a_step_of_a_process_that_is_gone_is_abandoned_until_its_end_arrives() -> None:
    gone = llm(1, 0, 10, ended=False, abandoned_ns=99)
    derivation = Derivation(TRACE)
    assert derivation.apply([gone]).steps[0].status == "abandoned"
    assert derivation.apply([replace(gone, ended=True)]).steps[0].status == "success"


def test_a_step_fails_if_its_last_request_fails_not_if_one_before_did() -> None:
    bad, good = llm(2, 1, 10, 1, failed=True, error_type="429", error_message="slow down"), llm(3, 20, 30, 1)
    assert the_step(step_span(1, 0, 100), bad, good).status == "success"
    step = the_step(step_span(1, 0, 100), replace(good, start_ns=0, end_ns=1), bad)
    assert (step.status, step.error_type) == ("failed", "429")
    assert json.loads(step.error_data or "")["message"] == "slow down"


def test_a_failed_tool_whose_error_went_back_to_the_model_does_not_fail_its_step() -> None:
    first, _ = steps(agent(1, 0, 100), llm(2, 1, 10, 1), tool(3, 20, 30, 1, failed=True), llm(4, 40, 50, 1))
    assert (first.status, flags(first)) == ("success", {"tool_error"})


def test_a_failed_tool_fails_its_step_if_the_run_failed_with_no_later_request() -> None:
    step = the_step(
        agent(1, 0, 100, failed=True), llm(2, 1, 10, 1), tool(3, 20, 30, 1, failed=True, error_type="KeyError")
    )
    assert (step.status, step.error_type) == ("failed", "KeyError")


def test_a_failed_tool_does_not_fail_its_step_if_the_run_did_well() -> None:
    assert the_step(agent(1, 0, 100), llm(2, 1, 10, 1), tool(3, 20, 30, 1, failed=True)).status == "success"


def test_a_step_span_that_failed_on_its_own_fails_its_step() -> None:
    assert the_step(step_span(1, 0, 100, failed=True), llm(2, 1, 10, 1)).status == "failed"


def test_a_cancelled_request_is_cancelled_and_so_is_the_run() -> None:
    changes = derive(
        agent(1, 0, 100, failed=True, cancelled=True), llm(2, 1, 10, 1, failed=True, cancelled=True, usage=None)
    )
    assert (changes.steps[0].status, changes.runs[0].status) == ("cancelled", "cancelled")


@pytest.mark.parametrize(
    ("said", "status"), [({}, "completed"), ({"failed": True}, "failed"), ({"ended": False}, "running")]
)
def test_a_run_ends_as_its_agent_does(said: dict[str, bool], status: str) -> None:
    assert runs(agent(1, 0, 100, **said), llm(2, 1, 10, 1))[1].status == status


ALL_FAILED = ({"failed": True, "error_type": "E"}, {"failed": True, "error_type": "E"})


@pytest.mark.parametrize(
    ("agents", "request_failed", "status"),
    [
        (ALL_FAILED, True, "failed"),
        (ALL_FAILED, False, "completed"),
        (({}, ALL_FAILED[0]), True, "completed"),
        (({}, {}), True, "completed"),
    ],
    ids=["all-failed", "went-on", "one-did-not", "none"],
)
def test_a_workflow_that_never_says_it_raised_failed_as_all_its_agents_did(
    agents: tuple[dict[str, Any], ...], request_failed: bool, status: str
) -> None:
    """Logfire on the OpenAI Agents SDK."""
    workflow = span(1, Role.WORKFLOW, 0, 100)
    first, second = (
        agent(number, number, number + 10, 1, **said) for number, said in zip((2, 20), agents, strict=True)
    )
    error = {"failed": True, "error_type": "BadRequest"} if request_failed else {}
    run = runs(workflow, first, second, llm(3, 3, 5, 2), llm(21, 21, 25, 20, **error))[1]
    assert (run.status, run.error_type) == (status, "BadRequest" if status == "failed" else None)


def test_a_workflow_without_agents_ends_as_it_says() -> None:
    assert runs(span(1, Role.WORKFLOW, 0, 100), llm(2, 1, 10, 1, failed=True))[1].status == "completed"


# ---- 10: doubtful input


def test_a_span_that_names_itself_as_parent_is_a_root() -> None:
    assert number(the_step(agent(1, 0, 100, 1), llm(2, 1, 10, 1))) == 2


def test_a_circle_is_opened_at_its_first_span() -> None:
    found = runs(agent(1, 5, 90, 3), tool(2, 6, 80, 1), agent(3, 7, 70, 2))
    assert found[3].parent_run_id == found[1].id


def test_a_missing_parent_costs_nothing_but_what_it_would_have_said() -> None:
    assert [number(step) for step in steps(llm(2, 1, 10, 77), tool(3, 20, 30, 77))] == [2]


def test_unknown_times_are_null_and_the_span_still_counts() -> None:
    changes = derive(span(1, Role.LLM, None, None, usage=TokenUsage(1, 2)))
    (step,), (metrics,) = changes[:2]
    assert (step.total_tokens, metrics.step_start_ns, metrics.llm_request_ns, step.created_ns) == (3, None, None, 0)


def test_what_a_reader_found_doubtful_is_named_on_the_step() -> None:
    assert flags(the_step(llm(1, 0, 10, flags=("normalised",)), tool(2, 11, 12, flags=("truncated",)))) == {
        "normalised",
        "truncated",
    }


# ---- messages


def conversation(*, echo: Message = SEARCH) -> tuple[SpanFacts, ...]:
    return (
        agent(1, 0, 100),
        llm(2, 1, 10, 1, input_messages=(HELLO,), output_messages=(SEARCH,)),
        llm(3, 20, 30, 1, input_messages=(HELLO, echo, FOUND), output_messages=(DONE,)),
    )


@pytest.mark.parametrize(
    "echo",
    [
        SEARCH,
        replace(SEARCH, name="agent"),
        replace(SEARCH, tool_calls=(ToolCall("other-id", "search", '{"q":1}'),)),
    ],
)
def test_a_prompt_that_repeats_the_conversation_and_an_answer_is_stored_once(echo: Message) -> None:
    """Instrumentations differ in names and ids between an answer and its echo."""
    found = sorted(derive(*conversation(echo=echo)).messages, key=lambda message: message.position)
    assert [(message.position, message.role) for message in found] == [
        (0, "user"), (1, "assistant"), (2, "tool"), (3, "assistant")
    ]  # fmt: skip
    assert [message.parent_id for message in found] == [None, *(message.id for message in found[:-1])]


def test_a_message_belongs_to_the_first_step_whose_answer_it_is_else_whose_prompt_has_it() -> None:
    found = {message.position: message.step_id for message in derive(*conversation()).messages}
    first, second = (ids.step_id(TRACE, f"{at:016x}") for at in (2, 3))
    assert found == {0: first, 1: first, 2: second, 3: second}


def test_two_tool_calls_after_one_prompt_are_two_messages() -> None:
    other = Message("assistant", "", tool_calls=(ToolCall("c1", "search", '{"q":2}'),))
    facts = (
        llm(2, 1, 10, input_messages=(HELLO,), output_messages=(SEARCH,)),
        llm(3, 20, 30, input_messages=(HELLO,), output_messages=(other,)),
    )
    assert len(derive(*facts).messages) == 3


def test_two_runs_with_the_same_prompt_share_no_message() -> None:
    facts = (
        agent(1, 0, 40), llm(2, 1, 10, 1, input_messages=(HELLO,)),
        agent(3, 50, 90), llm(4, 51, 60, 3, input_messages=(HELLO,)),
    )  # fmt: skip
    changes = derive(*facts)
    assert len({message.id for message in changes.messages}) == 2
    assert {message.run_id for message in changes.messages} == {run.id for run in changes.runs}


def test_a_request_seen_twice_says_its_messages_once() -> None:
    outer, inner = (
        llm(at, at, 20 - at, at - 1 or None, scope_name=f"s{at}", input_messages=(HELLO,), output_messages=(DONE,))
        for at in (1, 2)
    )
    assert len(derive(outer, inner).messages) == 2


# ---- what people set and deleted


def test_feedback_stays_with_the_step_when_its_anchor_changes() -> None:
    """The inner of two spans of a request arrives first, and is the anchor until the outer comes."""
    derivation = Derivation(TRACE)
    inner = llm(2, 1, 10, 1)
    (before,) = derivation.apply([inner]).steps
    derivation.apply([Annotation(TRACE, before.span_id, "feedback", "positive", "me", 1)])
    changes = derivation.apply([llm(1, 0, 20)])
    assert changes.deleted_steps == (before.id,)
    assert [step.feedback for step in changes.steps] == ["positive"]


def test_what_people_set_overrules_what_spans_say() -> None:
    said = llm(1, 0, 10, tags=("from-span",), feedback="positive")
    step = the_step(
        said,
        Annotation(TRACE, said.span_id, "tags", ("b", "a")),
        Annotation(TRACE, said.span_id, "feedback", "negative"),
    )
    assert (step.tags, step.feedback) == ('["b","a"]', "negative")


def test_a_deleted_run_keeps_its_steps_without_a_run_and_late_spans_do_not_bring_it_back() -> None:
    derivation = Derivation(TRACE)
    (run,) = derivation.apply([agent(1, 0, 100), llm(2, 1, 10, 1, input_messages=(HELLO,))]).runs
    changes = derivation.apply([Deletion(TRACE, "run", run.id)])
    assert changes.deleted_runs == (run.id,)
    assert [step.run_id for step in changes.steps] == [None]
    assert [message.run_id for message in changes.messages] == [None]
    later = derivation.apply([llm(3, 20, 30, 1)])
    assert (later.runs, [step.run_id for step in later.steps]) == ((), [None])


def test_a_deleted_step_is_gone_from_its_run_and_its_messages_belong_to_no_step() -> None:
    derivation = Derivation(TRACE)
    derivation.apply([agent(1, 0, 100), llm(2, 1, 10, 1, input_messages=(HELLO,))])
    step_id = ids.step_id(TRACE, f"{2:016x}")
    changes = derivation.apply([Deletion(TRACE, "step", step_id)])
    assert changes.deleted_steps == (step_id,)
    assert [run.step_count for run in changes.runs] == [0]
    assert [message.step_id for message in changes.messages] == [None]
    assert derivation.apply([tool(3, 20, 30, 1)]).steps == ()


def test_a_deleted_trace_gets_no_rows_again_from_late_spans() -> None:
    """The store drops its rows whole, by trace id."""
    derivation = Derivation(TRACE)
    derivation.apply([agent(1, 0, 100), llm(2, 1, 10, 1)])
    assert not any(derivation.apply([Deletion(TRACE, "trace", TRACE)]))
    assert not any(derivation.apply([llm(3, 20, 30, 1)]))


def test_a_trace_deleted_before_its_spans_come_gets_no_rows() -> None:
    assert not any(derive(llm(2, 1, 10), Deletion(TRACE, "trace", TRACE)))
