"""Traces to derive from: small ones of any shape, and agent loops as instrumentations write them.

Everything is drawn through a ``Pick``, so that Hypothesis can shrink it and a seeded ``random.Random`` can make many.
Values come from small pools, the plainest first: ties, repeats and contradictions are the point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from step_exporter.derive import ids
from step_exporter.facts import Annotation, Deletion, Message, Role, SpanFacts, TokenUsage, ToolCall

Fact = SpanFacts | Annotation | Deletion
Pick = Callable[[Sequence[Any]], Any]

TRACE = "0af7651916cd43dd8448eb211c80319c"


def span_id(number: int) -> str:
    return f"{number:016x}"


def span(
    number: int | str, role: Role, start: int | None, end: int | None, parent: int | None = None, **said: Any
) -> SpanFacts:
    """A span with what matters; it is open where ``ended=False`` is said."""
    return SpanFacts(
        trace_id=TRACE,
        span_id=number if isinstance(number, str) else span_id(number),
        parent_span_id=span_id(parent) if parent is not None else None,
        kind=said.pop("kind", "internal"),
        name=said.pop("name", role.value),
        start_ns=start,
        end_ns=end,
        ended=said.pop("ended", True),
        role=role,
        convention=said.pop("convention", "genai"),
        scope_name=said.pop("scope_name", "s"),
        service_name=said.pop("service_name", None),
        **said,
    )


def opened(facts: SpanFacts, pick: Pick = lambda values: values[0]) -> SpanFacts:
    """What was known of a span when it began, or a little later."""
    return replace(
        facts,
        end_ns=None,
        ended=False,
        failed=False,
        cancelled=False,
        error_type=None,
        usage=None,
        stop_reason=None,
        output_messages=(),
        asked_call_ids=(),
        role=pick((facts.role, facts.role, Role.OTHER)),
        request_id=pick((None, facts.request_id)),
        input_messages=pick((facts.input_messages, ())),
        abandoned_ns=pick((None, None, None, 9)),
    )


SAID = [
    Message("user", "hello"),
    Message("assistant", "hi"),
    Message("assistant", "", tool_calls=(ToolCall("c1", "search", "{}"),)),
    Message("assistant", "", name="a", tool_calls=(ToolCall("c9", "search", "{}"),)),
    Message("tool", "found", tool_call_id="c1"),
    Message("tool", "found", name="search", content_hash="00" * 16),
    Message("user", "more"),
]
PROMPTS = [(), (SAID[0],), (SAID[0], SAID[1]), (SAID[0], SAID[2], SAID[4]), (SAID[0], SAID[3], SAID[5]), (SAID[6],)]
ANSWERS = [(), (SAID[1],), (SAID[2],), (SAID[3],), (SAID[1], SAID[6])]
USAGES = [
    TokenUsage(10, 5),
    TokenUsage(10, None, cached=4),
    TokenUsage(None, 5, reasoning=2, completion_details=(("audio", 1),)),
    TokenUsage(20, 7, cache_write=3, prompt_details=(("audio", 2),)),
]
ROLES = [
    Role.LLM,
    Role.TOOL,
    Role.AGENT,
    Role.OTHER,
    Role.LLM,
    Role.TOOL,
    Role.AGENT,
    Role.OTHER,
    Role.STEP,
    Role.WORKFLOW,
]

# What a span may say, and how often: the number of blanks before the values that it may have.
USUAL: dict[str, tuple[int, tuple[Any, ...]]] = {
    "name": (3, ("a", "b", "execute_task a", "a.workflow")),
    "agent_name": (3, ("a", "b")),
    "kind": (6, ("client", "server", "consumer")),
    "scope_name": (1, ("t", "u")),
    "service_name": (4, ("x", "y")),
    "step_id": (8, ("1", "2")),
    "run_id": (10, ("r1", "r2", ids.trace_run_id(TRACE))),
    "failed": (5, (True,)),
}
OF_REQUESTS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "request_id": (2, ("q1", "q2")),
    "served_model": (2, ("m1", "m2")),
    "provider_name": (2, ("openai", "anthropic")),
    "usage": (2, tuple(USAGES)),
    "asked_call_ids": (2, (("c1",), ("c2",), ("c1", "c2"))),
    "input_messages": (0, tuple(PROMPTS)),
    "output_messages": (0, tuple(ANSWERS)),
    "stop_reason": (3, ("stop", "tool_calls")),
}
OF_CALLS: dict[str, tuple[int, tuple[Any, ...]]] = {"call_id": (1, ("c1", "c2", "c3"))}
RARE: dict[str, tuple[Any, ...]] = {
    "cancelled": (True,),
    "error_type": ("ValueError",),
    "error_message": ("no",),
    "agent_id": ("agent-1",),
    "conversation_id": ("talk-1", "talk-2"),
    "organization_id": ("org-1",),
    "organization_name": ("Org",),
    "project_id": ("project-1",),
    "provider_id": ("provider-1",),
    "first_token_ns": (1, 0, 5),
    "llm_start_ns": (1,),
    "llm_ns": (2,),
    "tool_ns": (3,),
    "tool_call_count": (2,),
    "tags": (("one",), ("one", "two")),
    "feedback": ("positive",),
    "transaction_id": ("t",),
    "flags": (("clock_skew",), ("truncated",)),
    "abandoned_ns": (9,),
    "input_messages": tuple(PROMPTS),
    "output_messages": tuple(ANSWERS),
    "usage": tuple(USAGES),
    "call_id": ("c1",),
    "request_id": ("q1",),
}


def any_span(pick: Pick, number: int, numbers: Sequence[int]) -> SpanFacts:
    """A span with any role, place, time and attributes."""
    role = pick(ROLES)
    said: dict[str, Any] = {}
    pools = [USUAL] + ([OF_REQUESTS] if role is Role.LLM else [OF_CALLS] if role is Role.TOOL else [])
    for pool in pools:
        for name, (blanks, values) in pool.items():
            value = pick((*(None,) * blanks, *values))
            if value is not None:
                said[name] = value
    for _ in range(pick((0, 0, 0, 1, 2))):
        name = pick(tuple(RARE))
        said[name] = pick(RARE[name])
    skew = pick((0, 0, 20_000_000)) if "service_name" in said else 0  # more than the clocks of machines usually differ
    start = pick((0, 1, 2, 3, 4, 5, 6, 7, 8, None))
    start = None if start is None else start + skew
    duration = pick((1, 0, 2, 4, 9, -1, None))
    end = max(start + duration, 0) if start is not None and duration is not None else pick((None, 3))
    if pick((True,) * 7 + (False,)):
        said["ended"] = True
    else:
        said["ended"], end = False, None
    parent = pick((None, *numbers, *numbers, 99))
    return span(number, role, start, end, parent, **said)


def any_trace(pick: Pick, most: int = 14) -> list[Fact]:
    """Up to 14 spans, with whatever parents: missing ones, several roots, themselves, circles."""
    numbers = list(range(1, pick(range(2, most + 1)) + 1))
    return [*(any_span(pick, number, numbers) for number in numbers), *set_by_people(pick, numbers)]


def set_by_people(pick: Pick, numbers: Sequence[int]) -> list[Fact]:
    """Annotations and deletions, mostly none."""
    found: dict[Any, Fact] = {}
    for _ in range(pick((0, 0, 0, 1, 2))):
        key, value = pick((("feedback", "negative"), ("tags", ("set",)), ("tid", "t2"), ("feedback", None)))
        number = span_id(pick(numbers))
        found[number, key] = Annotation(TRACE, number, key, value, "someone", pick((None, 1, 2)))
    for _ in range(pick((0, 0, 0, 1))):
        number = span_id(pick(numbers))
        kind, name = pick(
            (
                ("step", ids.step_id(TRACE, number)),
                ("run", ids.run_id(TRACE, number)),
                ("run", ids.trace_run_id(TRACE)),
                ("run", "r1"),
                ("step", "1"),
                ("trace", TRACE),
            )
        )
        found[kind, name] = Deletion(TRACE, kind, name)
    return list(found.values())


class Loop:
    """Writes the spans of an agent program, by one of the habits that instrumentations have."""

    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.spans: list[SpanFacts] = []
        self.clock = 0
        self.calls = 0
        self.coarse = pick((False, True))  # a clock that ticks in larger steps: equal starts are normal
        self.steps = pick((None, "structural", "native"))
        self.twice = pick((None, "nested", "sibling", "three"))
        self.call_ids = pick((True, False))
        self.numbers = list(range(1, 400))
        if pick((False, True)):
            self.numbers.reverse()

    def tick(self) -> int:
        self.clock += 1
        return self.clock // 3 if self.coarse else self.clock

    def now(self) -> int:
        return self.clock // 3 if self.coarse else self.clock

    def write(self, role: Role, start: int, parent: int | None, number: int | None = None, **said: Any) -> int:
        number = self.number() if number is None else number
        self.spans.append(span(number, role, start, self.now(), parent, **said))
        return number

    def number(self) -> int:
        return self.numbers.pop(0)

    def agent(self, parent: int | None, depth: int, name: str, prompt: tuple[Message, ...] = (SAID[0],)) -> None:
        """An invocation of an agent: some turns."""
        pick, start, number = self.pick, self.tick(), self.number()
        beside = pick((False, False, False, True))  # the work hangs under a plain twin of the agent span
        container = self.number() if beside else number
        if beside:
            begun = self.tick()
        for turn in range(pick((1, 2, 3))):
            step_start, under, said = self.tick(), container, {}
            if self.steps is not None:
                under = self.number()
                said = {"step_id": f"{name}-{number}-{turn}"} if self.steps == "native" else {}
            asked = [f"c{self.calls + index}" for index in range(pick((1, 0, 2)))]
            self.calls += len(asked)
            prompt = self.request(under, prompt, asked, **said)
            for index, call_id in enumerate(asked):
                self.tool(under, depth, call_id, parallel=index > 0, **said)
                prompt = (*prompt, Message("tool", f"result of {call_id}", tool_call_id=call_id))
            if self.steps is not None:
                self.write(
                    Role.STEP if self.steps == "structural" else Role.OTHER, step_start, container, under, **said
                )
        if depth and pick((False, False, True)):
            self.agent(container, depth - 1, "other", prompt)  # a hand-off
        if beside:
            self.write(Role.OTHER, begun, parent, container, name=f"execute_task {name}")
        failed = pick((False, False, False, True))
        self.tick()
        self.write(
            Role.AGENT, start, parent, number, agent_name=name, failed=failed, cancelled=failed and pick((False, True))
        )

    def request(self, parent: int, prompt: tuple[Message, ...], asked: list[str], **said: Any) -> tuple[Message, ...]:
        """One request to a model, as often as it is seen; or a wrapper that tried twice."""
        pick = self.pick
        answer = Message("assistant", "" if asked else "done", tool_calls=tuple(ToolCall(c, "f", "{}") for c in asked))
        carries = {
            "usage": pick((TokenUsage(10, 5), None)),
            "served_model": pick(("m1", None)),
            "request_id": pick((f"q{self.clock}", None)),
            "provider_name": "openai",
            "asked_call_ids": tuple(asked) if self.call_ids else (),
            "input_messages": prompt,
            "output_messages": (answer,),
            **said,
        }
        start = self.tick()
        if pick((False,) * 5 + (True,)):  # a fallback: the first provider fails
            outer = self.number()
            begun = self.tick()
            self.tick()
            self.write(Role.LLM, begun, outer, provider_name="anthropic", failed=True, error_type="429", **said)
            begun = self.tick()
            self.tick()
            self.write(Role.LLM, begun, outer, **carries)
            self.write(Role.LLM, start, parent, outer, scope_name="router", **said)
        elif self.twice == "sibling":
            self.tick()
            self.write(Role.LLM, start, parent, **carries)
            self.tick()
            self.write(Role.LLM, start, parent, scope_name="t", **{**carries, "usage": None})
        elif self.twice is not None:
            around = [self.number() for _ in range(2 if self.twice == "three" else 1)]
            self.tick()
            self.write(Role.LLM, self.now(), around[-1], scope_name="t", **carries)
            for index, number in enumerate(around):
                above = around[index - 1] if index else parent
                said_above = {**carries, "usage": None} if pick((False, True)) else carries
                self.write(Role.LLM, start, above, number, scope_name=f"u{index}", **said_above)
        elif pick((False,) * 3 + (True,)):  # a stream: usage sits in a twin without length
            self.tick()
            self.write(Role.LLM, start, parent, **{**carries, "usage": None, "first_token_ns": start})
            self.tick()
            self.write(Role.LLM, self.now(), parent, usage=TokenUsage(10, 5), **said)
        else:
            self.tick()
            self.write(Role.LLM, start, parent, **carries)
        if pick((False,) * 5 + (True,)):  # a guardrail at another provider, at the same time
            self.write(Role.LLM, start, parent, provider_name="anthropic", scope_name="anthropic", **said)
        return (*prompt, answer)

    def tool(self, parent: int, depth: int, call_id: str, parallel: bool, **said: Any) -> None:
        pick, start, number = self.pick, self.now() if parallel else self.tick(), self.number()
        ident = {"call_id": call_id} if self.call_ids else {}
        kind = pick(("plain", "plain", "nested", "agent", "agent beside", "service"))
        if kind == "nested":  # an MCP client and its server
            begun = self.tick()
            self.write(Role.TOOL, begun, number, **ident, **said)
        elif kind == "agent" and depth:
            self.agent(number, depth - 1, "inner")
        elif kind == "agent beside" and depth:
            self.agent(pick((parent, None)), depth - 1, "inner")
        elif kind == "service" and depth:
            server = self.number()
            self.agent(server, depth - 1, "remote")
            self.write(Role.OTHER, start, number, server, kind="server", service_name="y")
        self.tick()
        self.write(Role.TOOL, start, parent, number, failed=pick((False, False, False, True)), **ident, **said)


def agent_program(pick: Pick) -> list[Fact]:
    """One or two runs of an agent with tools, agents in tools, hand-offs; then something of it lost or late."""
    loop = Loop(pick)
    root = pick((None, Role.OTHER, Role.WORKFLOW))
    parent = loop.number() if root is not None else None
    start = loop.tick()
    for name in ("main", "second")[: pick((1, 2))]:
        loop.agent(parent, pick((1, 0, 2)), name)
    if root is not None:
        loop.write(root, start, parent=None, number=parent, name="root")
    if pick((False, False, True)):  # goes on after the root's end
        loop.request(parent or 98, (SAID[6],), [])
    spans = loop.spans
    for _ in range(pick((0, 0, 1, 2))):  # lost, still open, or with a skewed clock
        at = pick(range(len(spans)))
        change = pick(("lost", "open", "late", "negative", "native run"))
        if change == "lost":
            spans = spans[:at] + spans[at + 1 :]
        elif change == "open":
            spans[at] = opened(spans[at])
        elif change == "late":
            spans[at] = replace(spans[at], start_ns=(spans[at].start_ns or 0) + 50, end_ns=(spans[at].end_ns or 0) + 50)
        elif change == "negative":
            spans[at] = replace(spans[at], end_ns=(spans[at].start_ns or 0) - 1)
        else:
            spans[at] = replace(spans[at], run_id="r1")
        if not spans:
            return list(loop.spans)
    return [*spans, *set_by_people(pick, [int(facts.span_id, 16) for facts in spans])]


def history(pick: Pick, facts: Sequence[Fact]) -> list[list[Fact]]:
    """The facts in any order and batching, with duplicates, and some spans known in other versions before: open, or
    something else altogether. The last version of each span is the one in ``facts``."""
    numbers = [int(fact.span_id, 16) for fact in facts if isinstance(fact, SpanFacts)]
    queues: list[list[Fact]] = []
    for fact in facts:
        versions: list[Fact] = []
        if isinstance(fact, SpanFacts):
            before = pick((None, None, None, "open", "other", "both"))
            if before in ("open", "both"):
                versions.append(opened(fact, pick))
            if before in ("other", "both"):
                versions.append(any_span(pick, int(fact.span_id, 16), numbers))
        versions += [fact] * pick((1, 1, 1, 2))
        queues.append(versions)
    batches: list[list[Fact]] = [[]]
    cut = pick(((True,), (True, False), (True,) + (False,) * 6, (False,)))
    while queues:
        at = pick(range(len(queues)))
        batches[-1].append(queues[at].pop(0))
        if not queues[at]:
            del queues[at]
        if pick(cut):
            batches.append([])
    return batches


class History(NamedTuple):
    """Facts of a trace, and a way in which they come."""

    facts: list[Fact]
    batches: list[list[Fact]]

    def __repr__(self) -> str:
        """Only what each fact says: all fields of a dozen spans are too much to read."""
        told = ["", *(f"batch {at}: {_told(fact)}" for at, batch in enumerate(self.batches) for fact in batch)]
        return "\n    ".join(told)


def _told(fact: Fact) -> str:
    if not isinstance(fact, SpanFacts):
        return repr(fact)
    usual = span(1, fact.role, None, None)
    said = {name: value for name, value in asdict(fact).items() if value != getattr(usual, name)}
    return ", ".join((fact.role.value, *(f"{name}={value!r}" for name, value in said.items())))


@st.composite
def histories(draw: st.DrawFn, program: Callable[[Pick], list[Fact]]) -> History:
    """Traces, and ways in which they come."""

    def pick(values: Sequence[Any]) -> Any:
        return draw(st.sampled_from(values))

    facts = program(pick)
    return History(facts, history(pick, facts))
