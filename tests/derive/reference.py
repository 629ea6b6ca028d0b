"""The derivation as DESIGN says it, of a whole trace at once: no increments, nothing kept, nothing clever.

``derive`` is what the incremental ``Derivation`` is held against: for every order, batching and duplication of
facts, its changes folded together have to equal this. It shares with it only the small rules on single facts
(which names repeat an agent's, whether two spans agree, how the rows of one step are filled), and looks at every
span against every other where the real one keeps indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from step_exporter.derive import MessageRow, RunRow, StepMetricsRow, StepRow, ids
from step_exporter.derive.requests import agreement, is_tail
from step_exporter.derive.runs import RunParts, build_run
from step_exporter.derive.steps import Built, Outcome, StepParts, build_step, canonical_json, out_of_time
from step_exporter.derive.tree import agent_label, same_call, stands_for, step_key
from step_exporter.facts import Annotation, Deletion, Message, Role, SpanFacts

Fact = SpanFacts | Annotation | Deletion

NEVER = 2**63
"""When a span without a start began, and when an open one ends."""

TOOL, STEP, SERVICE = "tool", "step", "service"


class Rows(NamedTuple):
    steps: dict[str, StepRow]
    step_metrics: dict[str, StepMetricsRow]
    runs: dict[str, RunRow]
    messages: dict[str, MessageRow]


class Around(NamedTuple):
    """What a span inherits from those above it."""

    scope: str = ""
    """The run as the tree shows it: the span that opens it, ``id:`` and a native id, or that of the trace."""
    agent: Span | None = None
    step: str | None = None
    tool: Span | None = None
    llm: Span | None = None
    between: frozenset[str] = frozenset()
    """What lies between here and the agent."""
    agent_name: str | None = None


class Span:
    """A span, its place in the tree, and what it inherits and hands down."""

    def __init__(self, facts: SpanFacts) -> None:
        self.facts = facts
        self.id = facts.span_id
        self.parent_id = facts.parent_span_id if facts.parent_span_id != facts.span_id else None
        self.role = facts.role
        self.is_agent = facts.role in (Role.AGENT, Role.WORKFLOW)
        self.start = NEVER if facts.start_ns is None else facts.start_ns
        self.order = (self.start, facts.span_id)
        self.end = NEVER
        if facts.ended:
            self.end = self.start if facts.end_ns is None else max(self.start, facts.end_ns)
        self.parent: Span | None = None
        self.inferred = False
        self.above = Around()
        self.below = Around()

    @property
    def opens_run(self) -> bool:
        """The top agent, one called by a tool, from a step, or in another service."""
        agent, mine = self.above.agent, self.facts.service_name
        if agent is None or self.above.between or self.facts.kind in ("server", "consumer"):
            return True
        return None not in (mine, agent.facts.service_name) and mine != agent.facts.service_name

    @property
    def opener(self) -> bool:
        """Whether a run begins with it, because of where it stands or because it says so."""
        return self.is_agent and (self.opens_run or self.facts.run_id is not None)

    @property
    def llms_above(self) -> list[Span]:
        """The LLM spans that it lies in, the innermost first."""
        found: list[Span] = []
        llm = self.above.llm
        while llm is not None:
            found.append(llm)
            llm = llm.above.llm
        return found


class Entry(NamedTuple):
    """A point of the loop that tools can belong to: an LLM request, or a step without one."""

    spans: list[Span]
    is_request: bool
    step: str
    """The key of its step."""

    @property
    def order(self) -> tuple[int, str]:
        return self.spans[0].order

    @property
    def scope(self) -> str:
        return self.spans[0].below.scope

    @property
    def agent(self) -> Span | None:
        return self.spans[0].below.agent

    @property
    def asked(self) -> set[str]:
        return {call_id for span in self.spans for call_id in span.facts.asked_call_ids} if self.is_request else set()


def by_order(spans: Iterable[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: span.order)


# ---- the tree


def hang(spans: dict[str, Span]) -> None:
    """Under the parent that a span names; a circle is opened at its first span; twins under their agent."""
    for span in spans.values():
        span.parent = spans.get(span.parent_id) if span.parent_id is not None else None
    cut: set[Span] = set()
    safe: set[Span] = set()  # a root is above them
    for span in spans.values():
        path: list[Span] = []
        walk: Span | None = span
        while walk is not None and walk not in safe and walk not in path:
            path.append(walk)
            walk = walk.parent
        if walk in path:
            first = by_order(path[path.index(walk) :])[0]
            first.parent = None
            cut.add(first)
        safe.update(path)
    agents = [span for span in spans.values() if span.role is Role.AGENT and span.parent_id is not None]
    for span in spans.values():
        if span.role is Role.OTHER and span not in cut:
            twins = [
                agent
                for agent in agents
                if agent.parent_id == span.parent_id
                and agent.order[0] <= span.order[0]
                and agent.end >= span.end
                and stands_for(span.facts, agent.facts)
            ]
            if twins:
                span.parent = by_order(twins)[-1]


def hand_down(spans: dict[str, Span]) -> None:
    """What each span inherits, from the roots down."""
    kids: dict[str | None, list[Span]] = {}
    for span in spans.values():
        kids.setdefault(span.parent.id if span.parent is not None else None, []).append(span)
    todo = list(kids.get(None, []))
    for span in todo:
        span.above = span.parent.below if span.parent is not None else Around()
        span.below = inherited_below(span)
        todo.extend(kids.get(span.id, []))


def inherited_below(span: Span) -> Around:
    facts, role = span.facts, span.role
    scope, agent, step, tool, llm, between, name = span.above
    name = facts.agent_name or name
    if span.is_agent:
        if span.opens_run:
            scope = span.id
        if role is Role.AGENT:
            name = agent_label(facts, name)
        agent, step, tool, llm, between = span, None, None, None, frozenset()
    elif role is Role.TOOL:
        if tool is None or not same_call(tool.facts.call_id, facts.call_id):
            tool = span
        llm, between = None, between | {TOOL}
    elif role is Role.LLM:
        llm, tool = span, None
    elif role is Role.STEP:
        llm, tool = None, None
    elif facts.kind in ("server", "consumer"):
        between = between | {SERVICE}
    if facts.run_id is not None:
        scope = "id:" + facts.run_id
    if (key := step_key(facts)) is not None:
        step = key
        if not span.is_agent:
            between = between | {STEP}
    return Around(scope, agent, step, tool, llm, between, name)


def infer_parents(spans: dict[str, Span]) -> None:
    """An agent that by itself opens no run, within the time of a tool of the agent above it or of one beside it."""
    agents = [span for span in spans.values() if span.is_agent]
    heads = [span for span in spans.values() if span.below.tool is span]
    called_in = {agent.above.tool for agent in agents}
    parents: dict[Span, Span] = {}
    for agent in agents:
        if agent.opens_run:
            continue
        callers: list[Span] = []
        for tool in heads:
            caller = tool.above.agent
            if (
                tool not in called_in
                and tool.start <= agent.start
                and tool.end >= agent.end
                and caller is not None
                and caller.order < agent.order
                and agent.above.agent in (caller, caller.above.agent)
            ):
                callers.append(tool)
        if callers:
            parents[agent] = min(callers, key=lambda tool: (tool.end - tool.start, tool.order))
    for agent, tool in parents.items():
        agent.parent, agent.inferred = tool, True


# ---- requests


def compatible(one: Sequence[Span], other: Sequence[Span], *, nested: bool = False) -> bool:
    return all(agreement(a.facts, b.facts, nested=nested) is not None for a in one for b in other)


def group_requests(spans: dict[str, Span]) -> list[list[Span]]:
    """Which LLM spans are one request; routers, retries and fallbacks are none."""
    llms = by_order(span for span in spans.values() if span.role is Role.LLM)
    group: dict[Span, list[Span]] = {span: [span] for span in llms}

    def join(a: Span, b: Span) -> None:
        joined = group[a] + group[b]
        for span in joined:
            group[span] = joined

    # Siblings, the closest starts first
    families: dict[str, list[Span]] = {}
    for span in llms:
        if span.parent_id is not None:
            families.setdefault(span.parent_id, []).append(span)
    pairs: list[tuple[int, Span, Span, bool]] = []
    for family in families.values():
        for index, a in enumerate(family):
            for b in family[index + 1 :]:
                tail = b is family[index + 1] and is_tail(b.facts) and not is_tail(a.facts) and a.facts.usage is None
                mine, its = a.facts.usage, b.facts.usage
                handed_on = (
                    b is family[index + 1]
                    and a.facts.scope_name != b.facts.scope_name
                    and mine is not None
                    and its is not None
                    and None not in (mine.prompt, mine.completion)
                    and (mine.prompt, mine.completion) == (its.prompt, its.completion)
                    and None not in (a.facts.end_ns, b.facts.start_ns)
                    and (a.facts.end_ns or 0) <= (b.facts.start_ns or 0)
                    and compatible([a], [b])
                )
                same_id = a.facts.request_id is not None and a.facts.request_id == b.facts.request_id
                inside = b.end <= a.end or (a.start == b.start and a.end <= b.end)
                twins = a.facts.scope_name != b.facts.scope_name and inside and bool(agreement(a.facts, b.facts))
                if tail or same_id or twins or handed_on:
                    pairs.append((b.start - a.start, a, b, tail or same_id))
    for _, a, b, whatever_scope in sorted(pairs, key=lambda pair: (pair[0], pair[1].order, pair[2].order)):
        one_scope_each = not {span.facts.scope_name for span in group[a]} & {span.facts.scope_name for span in group[b]}
        if group[a] is not group[b] and compatible(group[a], group[b]) and (whatever_scope or one_scope_each):
            join(a, b)

    # Nested, the innermost first: one with the only request below, or a wrapper of several
    depth = {span: len(span.llms_above) for span in llms}
    stands_below: dict[Span, list[Span]] = {}  # of a wrapper: a span of each request below it
    for outer in sorted(llms, key=lambda span: (-depth[span], span.order)):
        kids = [span for span in llms if span.above.llm is outer]
        requests: list[Span] = []
        for span in (member for kid in kids for member in stands_below.get(kid, [kid])):
            if group[span] is not group[outer] and not any(group[span] is group[other] for other in requests):
                requests.append(span)
        if len(requests) > 1:
            stands_below[outer] = requests
        elif requests and compatible(group[requests[0]], group[outer], nested=True):
            join(requests[0], outer)

    found: list[list[Span]] = []
    for span in llms:
        members = by_order(member for member in group[span] if member not in stands_below)
        if members[:1] == [span]:
            outermost = closest_to_wire(members)[-1]
            off = out_of_time([member.facts for member in members], outermost.facts)
            found.append(sorted(members, key=lambda member: (member.facts in off, member.order)))
    return found


def closest_to_wire(spans: Iterable[Span]) -> list[Span]:
    """The innermost first, then the shortest."""
    return sorted(spans, key=lambda span: (-len(span.llms_above), span.end - span.start, span.order))


# ---- all together


def derive(facts: Iterable[Fact]) -> Rows:
    """All rows of a trace. Of two facts with one key the later stands."""
    spans: dict[str, Span] = {}
    notes: dict[tuple[str, str], Annotation] = {}
    deleted: set[tuple[str, str]] = set()
    trace_id = ""
    for fact in facts:
        trace_id = fact.trace_id
        if isinstance(fact, SpanFacts):
            spans[fact.span_id] = Span(fact)
        elif isinstance(fact, Annotation):
            notes[fact.span_id, fact.key] = fact
        else:
            deleted.add((fact.kind, fact.id))
    if any(kind == "trace" for kind, _ in deleted):
        return Rows({}, {}, {}, {})
    hang(spans)
    hand_down(spans)
    infer_parents(spans)
    hand_down(spans)

    # Steps by key: an explicit step's own, or the span that anchors it
    carriers: dict[str, list[Span]] = {}
    for span in by_order(spans.values()):
        if (key := step_key(span.facts)) is not None:
            carriers.setdefault(key, []).append(span)
    anchors: dict[str, Span] = {}
    for key, saying in carriers.items():
        tops = [span for span in saying if span.parent is None or step_key(span.parent.facts) != key]
        anchors[key] = (tops or saying)[0]
    entries: list[Entry] = []
    for request in group_requests(spans):
        key = next((span.below.step for span in request if span.below.step is not None), "inferred:" + request[0].id)
        entries.append(Entry(request, True, key))
        anchors.setdefault(key, request[0])
    with_requests = {entry.step for entry in entries}
    entries += [Entry([anchors[key]], False, key) for key in carriers if key not in with_requests]
    busy = {entry.agent for entry in entries if entry.is_request}  # agents that are no step themselves
    for span in spans.values():
        if (span.is_agent and not span.opens_run) or step_key(span.facts) is not None:
            busy.add(span.above.agent)
    asking = {entry.scope for entry in entries if entry.is_request}
    calling = {span.below.agent for span in spans.values() if span.role is Role.TOOL and span.below.tool is span}
    for agent in spans.values():
        counts = agent.facts.failed or agent.facts.cancelled or agent in calling or agent.below.scope not in asking
        alone = agent.facts.ended and step_key(agent.facts) is None and agent not in busy
        if agent.role is Role.AGENT and alone and counts:
            key = "inferred:" + agent.id
            anchors[key], carriers[key] = agent, [agent]
            entries.append(Entry([agent], False, key))
    entries.sort(key=lambda entry: entry.order)

    # Tool calls: the outermost span of each and those of the same call below it
    calls: dict[Span, list[Span]] = {}
    for span in by_order(spans.values()):
        if span.role is Role.TOOL and (head := span.below.tool) is not None:
            calls.setdefault(head, []).append(span)
    for head, members in calls.items():
        members.sort(key=lambda span: (span is not head, span.order))
    step_of_call = {head: step_of(head, members, entries) for head, members in calls.items()}

    # Runs: which one each scope's steps are counted in
    openers: dict[str, list[Span]] = {}
    natives: dict[str, str] = {}
    agent_spans = [span for span in spans.values() if span.role is Role.AGENT]
    for span in by_order(spans.values()):
        if span.opener:
            openers.setdefault(span.below.scope, []).append(span)
        elif not span.is_agent and span.facts.run_id is not None and span.above.scope != span.below.scope:
            natives.setdefault(span.above.scope, span.facts.run_id)

    def run_id_of(scope: str) -> str:
        if scope.startswith("id:"):
            return scope[3:]
        if not scope:
            return ids.trace_run_id(trace_id)
        return natives.get(scope) or ids.run_id(trace_id, scope)

    def id_of(key: str) -> str:
        if key.startswith("id:"):
            return key[3:]
        return ids.step_id(trace_id, anchors[key].id if key.startswith("inferred:") else key)

    def parent_of(key: str) -> str | None:
        """The explicit step around a step, or the one whose tool called its run or itself."""
        place = anchors[key]
        if place.above.step not in (None, key):
            return id_of(str(place.above.step))
        while not place.opener and place.above.tool is None and place.above.agent is not None:
            place = place.above.agent
        if place.above.step not in (None, key):
            return id_of(str(place.above.step))
        asking = step_of_call[place.above.tool] if place.above.tool is not None else None
        return id_of(asking) if asking not in (None, key) and asking is not None else None

    # Steps
    rows = Rows({}, {}, {}, {})
    counted: dict[str, list[Built]] = {}
    sources: dict[str, list[tuple[tuple[int, str], str | None, tuple[Message, ...], tuple[Message, ...]]]] = {}
    for key, anchor in anchors.items():
        scope = anchor.below.scope
        run_id = run_id_of(scope)
        requests = [entry for entry in entries if entry.step == key and entry.is_request]
        called = [calls[head] for head in by_order(calls) if step_of_call[head] == key]
        seen = [closest_to_wire(entry.spans) for entry in requests]
        saying = sorted(carriers.get(key, []), key=lambda span: (span is not anchor, span.order))
        of_scope = [entry for entry in entries if entry.scope == scope]
        opener = openers[scope][0] if scope in openers else None
        members = [*saying, *(span for spans in (*seen, *called) for span in spans)]
        step_id = id_of(key)
        parent = parent_of(key)
        built = build_step(
            StepParts(
                trace_id=trace_id,
                id=step_id,
                anchor=anchor.facts,
                carriers=tuple(span.facts for span in saying),
                requests=tuple(tuple(span.facts for span in spans) for spans in seen),
                calls=tuple(tuple(span.facts for span in spans) for spans in called),
                run_id=run_id if ("run", run_id) not in deleted else None,
                parent_step_id=parent if ("step", parent) not in deleted else None,
                agent=anchor.below.agent.facts if anchor.below.agent is not None else None,
                agent_name=anchor.below.agent_name,
                last=not of_scope or of_scope[-1].step == key,
                outcome=Outcome(opener.facts if opener is not None else None),
                annotations=tuple(note for (span_id, _), note in notes.items() if span_id in {m.id for m in members}),
                flags=("parent_inferred",) if any(span.inferred for span in openers.get(scope, [])) else (),
            )
        )
        there = ("step", step_id) not in deleted
        if there:
            rows.steps[step_id], rows.step_metrics[step_id] = built.step, built.metrics
            counted.setdefault(run_id, []).append(built)
        saying_messages = [(entry.order, spans) for entry, spans in zip(requests, seen, strict=True)]
        for order, spans in saying_messages or [(anchor.order, [anchor])]:
            inputs = next((span.facts.input_messages for span in spans if span.facts.input_messages), ())
            outputs = next((span.facts.output_messages for span in spans if span.facts.output_messages), ())
            sources.setdefault(run_id, []).append((order, step_id if there else None, inputs, outputs))

    # Runs
    opened: dict[str, Span] = {}
    for opener in by_order(span for found in openers.values() for span in found):
        opened.setdefault(run_id_of(opener.below.scope), opener)
    existing = {run_id for run_id in {*counted, *opened} if ("run", run_id) not in deleted}
    for run_id in existing:
        steps = sorted(counted.get(run_id, []), key=lambda built: (built.step.created_ns, built.step.span_id))
        opener = opened.get(run_id)
        parent = None
        if opener is not None and (
            opener.above.agent is not None or opener.above.between - {SERVICE} or opener.above.scope
        ):
            parent = run_id_of(opener.above.scope)
        agents = [
            agent.facts
            for agent in agent_spans
            if agent.above.agent is opener and run_id_of(agent.below.scope) == run_id
        ]
        ends = [built.end_ns for built in steps if built.end_ns is not None]
        rows.runs[run_id] = build_run(
            RunParts(
                trace_id=trace_id,
                id=run_id,
                opener=opener.facts if opener is not None else None,
                parent_run_id=parent if parent in existing and parent != run_id else None,
                first=steps[0].step if steps else None,
                last=steps[-1].step if steps else None,
                start_ns=steps[0].metrics.step_start_ns if steps else None,
                end_ns=max(ends, default=None),
                first_token_ns=next((b.first_token_ns for b in steps if b.first_token_ns is not None), None),
                conversation_id=next((b.conversation_id for b in steps if b.conversation_id is not None), None),
                step_count=len(steps),
                prompt_tokens=sum(built.step.prompt_tokens for built in steps),
                completion_tokens=sum(built.step.completion_tokens for built in steps),
                open_steps=sum(built.open for built in steps),
                agents_failed=opener is not None
                and opener.role is Role.WORKFLOW
                and bool(agents)
                and all(agent.failed or agent.cancelled for agent in agents),
            )
        )

    # Messages: answers first, so that a message is its first answer's, else its first prompt's
    for run_id, paths in sources.items():
        for answers in (True, False):
            for _, step_id, inputs, outputs in sorted(paths):
                parent_id = None
                for position, message in enumerate(inputs + outputs):
                    said = tuple(part for call in message.tool_calls for part in (call.name or "", call.arguments))
                    message_id = ids.message_id(parent_id or run_id, message.role, message.text, said)
                    if message_id not in rows.messages and answers == (position >= len(inputs)):
                        calls_said = [
                            {"id": c.id, "name": c.name, "arguments": c.arguments} for c in message.tool_calls
                        ]
                        rows.messages[message_id] = MessageRow(
                            trace_id=trace_id,
                            id=message_id,
                            parent_id=parent_id,
                            role=message.role,
                            content_hash=message.content_hash,
                            name=message.name,
                            tool_calls=canonical_json(calls_said) if calls_said else None,
                            tool_call_id=message.tool_call_id,
                            step_id=step_id,
                            run_id=run_id if ("run", run_id) not in deleted else None,
                            position=position,
                        )
                    parent_id = message_id
    return rows


def step_of(head: Span, members: list[Span], entries: list[Entry]) -> str | None:
    """The step of a tool call: the explicit one above it; else of the request that asked for it; else of the latest
    entry begun before it, of the same agent if there is one."""
    if head.below.step is not None:
        return head.below.step
    call_ids = {span.facts.call_id for span in members if span.facts.call_id is not None}
    of_scope = [entry for entry in entries if entry.scope == head.below.scope]
    asking = [entry for entry in of_scope if entry.asked & call_ids]
    if asking:
        return ([entry for entry in asking if entry.order[0] <= head.start] or asking[:1])[-1].step
    of_agent = [entry for entry in entries if entry.agent is not None and entry.agent is head.below.agent]
    for timeline in (of_agent, of_scope):
        before = [e for e in timeline if e.order[0] <= head.start and e.spans[0].above.tool is not head]
        if before:
            return before[-1].step
    return None
