"""A trace as most of them are, at one go: agents side by side, one request after the other, tools between them.

``Derivation`` keeps what it needs to go on when more spans come, and settles what is doubtful. A trace that came whole,
and in which nothing is doubtful, needs neither. Here its rows, the same ones, are made in a quarter of the time; where
anything is out of the ordinary the answer is None, and the trace is one for ``Derivation``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping

from step_exporter.conventions.logs import CONVENTION as LOGS
from step_exporter.facts import Annotation, Deletion, Role, SpanFacts

from . import ids
from .intervals import Order
from .messages import Source, rows_at_once
from .requests import handed_on
from .rows import Changes, MessageRow, RunRow
from .runs import RunParts, build_run
from .steps import Built, Outcome, StepParts, build_step
from .tree import agent_label, stands_for

_OTHER, _LLM, _TOOL, _AGENT, _STEP = Role.OTHER, Role.LLM, Role.TOOL, Role.AGENT, Role.STEP
"""Looked up once: an enum's members cost 40 ns each time."""


class _Run:
    """An agent's or workflow's run, or (without an opener) the run of the trace."""

    __slots__ = ("calls", "opener", "requests")

    def __init__(self, opener: SpanFacts | None) -> None:
        self.opener = opener
        self.requests: list[tuple[Order, SpanFacts, str | None]] = []
        """With the name of the agent that asked."""
        self.calls: list[tuple[Order, SpanFacts]] = []


_Place = tuple[_Run, str | None, Role | None]
"""What the spans below one inherit: the run, the agent's name, and whether they are in an LLM request or a tool."""


def derive_plain(trace_id: str, facts: Iterable[SpanFacts | Annotation | Deletion]) -> Changes | None:
    """All rows of a trace, given all that is known of it, if it is a plain one."""
    spans: dict[str, SpanFacts] = {}
    for span in facts:
        if not isinstance(span, SpanFacts) or span.span_id in spans:
            return None
        spans[span.span_id] = span
    runs = _placed(spans)
    if runs is None:
        return None
    built: list[Built] = []
    run_rows: list[RunRow] = []
    messages: list[MessageRow] = []
    for run in runs:
        opener = run.opener
        run.requests.sort()
        if not _are_apart(run.requests):
            return None
        if opener is None:
            if not run.requests:
                continue
            run_id = ids.trace_run_id(trace_id)
        else:
            if opener.role is _AGENT and not run.requests:
                return None  # it is a step itself
            run_id = ids.run_id(trace_id, opener.span_id)
        steps = _steps(trace_id, run_id, run, messages)
        run_rows.append(_run_row(trace_id, run_id, opener, steps))
        built += steps
    return Changes(
        steps=tuple([step.step for step in built]),
        step_metrics=tuple([step.metrics for step in built]),
        runs=tuple(run_rows),
        messages=tuple(messages),
        organizations=_names([step.organization for step in built]),
        providers=_names([step.provider for step in built]),
    )


def _placed(spans: Mapping[str, SpanFacts]) -> list[_Run] | None:
    """The runs, that of the trace first, with the requests and tools in them."""
    outside = _Run(None)
    runs = [outside]
    nowhere: _Place = (outside, None, None)
    below: dict[str | None, _Place] = {None: nowhere}
    agents: dict[str | None, list[SpanFacts]] = {}
    for span in spans.values():
        if span.span_id in below:
            continue
        path = [span]  # up to what has its place; children mostly come before what they are in
        while (parent_id := path[-1].parent_span_id) is not None and parent_id not in below and parent_id in spans:
            path.append(spans[parent_id])
            if len(path) > len(spans):
                return None  # parents go round in a circle
        for facts in reversed(path):
            role = facts.role
            above = below.get(facts.parent_span_id, nowhere)
            run, name, inside = above
            if (
                facts.step_id is not None
                or facts.run_id is not None
                or not facts.ended
                or role is _STEP
                or facts.convention == LOGS
            ):
                return None
            if role is _OTHER:
                below[facts.span_id] = (run, facts.agent_name, inside) if facts.agent_name is not None else above
            elif role is _LLM or role is _TOOL:
                start = facts.start_ns
                if start is None or inside is _TOOL or (inside is _LLM and role is _LLM):
                    return None
                name = facts.agent_name or name
                if role is _LLM:
                    run.requests.append(((start, facts.span_id), facts, name))
                else:
                    run.calls.append(((start, facts.span_id), facts))
                below[facts.span_id] = (run, name, role)
            else:
                if run is not outside or inside is not None:
                    return None
                run = _Run(facts)
                runs.append(run)
                name = agent_label(facts, name) if role is _AGENT else facts.agent_name or name
                below[facts.span_id] = (run, name, None)
                if role is _AGENT and facts.parent_span_id is not None:
                    agents.setdefault(facts.parent_span_id, []).append(facts)
    if agents:
        for facts in spans.values():
            beside = agents.get(facts.parent_span_id) if facts.role is _OTHER else None
            if beside is not None and any(stands_for(facts, agent) for agent in beside):
                return None
    return runs


def _are_apart(requests: Iterable[tuple[Order, SpanFacts, str | None]]) -> bool:
    """Whether no two sibling LLM spans can be one request: none begins before those before it have ended or is handed
    on by the last, none takes no time, and no response id comes twice."""
    ends: dict[str, int] = {}
    last: dict[str, SpanFacts] = {}
    responses: set[tuple[str, str]] = set()
    for (start, _), facts, _ in requests:
        end = facts.end_ns
        if end == start:
            return False
        parent_id = facts.parent_span_id
        if parent_id is None:
            continue
        before = ends.get(parent_id, -1)
        if start <= before or (parent_id in last and handed_on(last[parent_id], facts)):
            return False
        last[parent_id] = facts
        ends[parent_id] = start if end is None or end < start else end
        if facts.request_id is not None:
            response = (parent_id, facts.request_id)
            if response in responses:
                return False
            responses.add(response)
    return True


def _steps(trace_id: str, run_id: str, run: _Run, messages: list[MessageRow]) -> list[Built]:
    """A step for each request, in the order in which they are counted."""
    requests, opener = run.requests, run.opener
    outcome = Outcome(opener)
    calls: list[list[tuple[SpanFacts, ...]]] = [[] for _ in requests]
    if run.calls and requests:
        orders = [order for order, _, _ in requests]
        asked: dict[str, list[int]] = {}
        for at, (_, facts, _) in enumerate(requests):
            for call_id in facts.asked_call_ids:
                asked.setdefault(call_id, []).append(at)
        run.calls.sort()
        for (start, _), facts in run.calls:
            asking = asked.get(facts.call_id) if facts.call_id is not None else None
            if asking is not None:  # the latest begun before it, else the first
                at = max((at for at in asking if orders[at][0] <= start), default=asking[0])
            else:
                at = bisect_right(orders, (start, "\U0010ffff")) - 1
                if at < 0:
                    continue
            calls[at].append((facts,))
    built: list[Built] = []
    said: list[Source] = []
    last = len(requests) - 1
    for at, (order, facts, agent_name) in enumerate(requests):
        step_id = ids.step_id(trace_id, facts.span_id)
        parts = StepParts(
            trace_id,
            step_id,
            facts,
            (),
            ((facts,),),
            tuple(calls[at]),
            run_id,
            None,
            opener,
            agent_name,
            at == last,
            outcome,
        )
        built.append(build_step(parts))
        if facts.input_messages or facts.output_messages:
            said.append(Source(order, step_id, facts.input_messages, facts.output_messages))
    messages += rows_at_once(trace_id, run_id, said)
    built.sort(key=_order)
    return built


def _order(built: Built) -> Order:
    return (built.step.created_ns, built.step.span_id)


def _run_row(trace_id: str, run_id: str, opener: SpanFacts | None, steps: list[Built]) -> RunRow:
    first = steps[0] if steps else None
    prompt = completion = 0
    end = first_token = conversation = None
    for built in steps:
        step = built.step
        prompt += step.prompt_tokens
        completion += step.completion_tokens
        if built.end_ns is not None and (end is None or built.end_ns > end):
            end = built.end_ns
        if first_token is None:
            first_token = built.first_token_ns
        if conversation is None:
            conversation = built.conversation_id
    return build_run(
        RunParts(
            trace_id,
            run_id,
            opener,
            None,
            first.step if first is not None else None,
            steps[-1].step if steps else None,
            first.metrics.step_start_ns if first is not None else None,
            end,
            first_token,
            conversation,
            len(steps),
            prompt,
            completion,
            0,
        )
    )


def _names(pairs: Iterable[tuple[str, str] | None]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({pair for pair in pairs if pair is not None}))
