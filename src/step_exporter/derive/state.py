"""What the derivation keeps between two batches: entries, calls and steps, in their scopes and runs."""

from __future__ import annotations

from step_exporter.facts import Role

from .intervals import NO_END, Order, Timeline
from .linked import Linked
from .messages import MessageTree, Source
from .rows import RunRow
from .runs import UNHAPPY
from .steps import Built
from .tree import Node, step_key


class Entry(Linked, eq=False):
    """A point of the loop that tools can belong to."""

    spans: list[Node]
    """Of an LLM request those that saw it; else the one of the step without a request."""
    scope: Scope
    step: Step
    is_request: bool = True
    order: Order = (0, "")
    end: int = 0
    agent: Node | None = None
    asked: dict[str, None] = {}
    """The ids of the tool calls that it asked for."""

    def __post_init__(self) -> None:
        spans = self.spans
        self.order = spans[0].order
        self.end = spans[0].end if len(spans) == 1 else max(node.end for node in spans)
        self.agent = spans[0].below.agent


class Call(Linked, eq=False):
    """A tool call: the span that stands for it, and those of the same call below it."""

    head: Node
    order: Order = (0, "")
    end: int = 0
    scope: Scope | None = None
    """None while its head is not known as such."""
    agent: Node | None = None
    """The innermost agent above it then."""
    spans: dict[str, Node] = {}
    step: Step | None = None

    def __post_init__(self) -> None:
        self.order, self.end = self.head.order, self.head.end

    @property
    def ids(self) -> set[str]:
        """The call ids that its spans carry."""
        if len(self.spans) == 1:
            (node,) = self.spans.values()
            return {node.facts.call_id} if node.facts.call_id is not None else set()
        return {node.facts.call_id for node in self.spans.values() if node.facts.call_id is not None}

    def enter(self, scope: Scope) -> None:
        """Take its place among the calls of a scope."""
        self.order, self.end, self.scope = self.head.order, self.head.end, scope
        scope.calls.add(self)
        for call_id in self.ids:
            scope.calls_by_id.setdefault(call_id, {})[self.head.facts.span_id] = self

    def leave(self) -> None:
        """Leave that place, under what its spans say now."""
        if self.scope is not None:
            self.scope.calls.remove(self)
            for call_id in self.ids:
                del self.scope.calls_by_id[call_id][self.head.facts.span_id]
            self.scope = None


class Scope:
    """The entries and calls of one run as the tree sees it (``Context.run``)."""

    __slots__ = (
        "agents",
        "asked",
        "called",
        "calls",
        "calls_by_id",
        "entries",
        "key",
        "last",
        "natives",
        "openers",
        "requests",
        "run",
        "steps",
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.entries: Timeline[Entry] = Timeline()
        self.requests = 0  # how many of them are LLM requests
        self.agents: dict[Node, None] = {}  # the agent spans in it
        self.asked: dict[str, Timeline[Entry]] = {}  # call id -> the requests that asked for it
        self.calls: Timeline[Call] = Timeline()
        self.calls_by_id: dict[str, dict[str, Call]] = {}
        self.steps: dict[Step, None] = {}
        self.natives: dict[str, tuple[Order, str]] = {}  # native run ids of spans directly in it
        self.openers: dict[str, Node] = {}  # the agent or workflow span that opens it; several where an id says so
        self.called: dict[str, Scope] = {}  # the scopes that openers directly in it open, as calls of it
        self.last: Entry | None = None
        self.run: RunState | None = None

    def opener(self) -> Node | None:
        """The first span that opens it."""
        if len(self.openers) < 2:
            return next(iter(self.openers.values()), None)
        return min(self.openers.values(), key=lambda node: node.order)

    def has_inferred_opener(self) -> bool:
        """Whether a span that opens it was not below the tool that called it."""
        return any(node.inferred is not None for node in self.openers.values())

    def release(self) -> None:
        """Break the circles of references, see ``Derivation.__del__``."""
        for held in (self.entries, self.asked, self.calls, self.calls_by_id):
            held.clear()
        for held in (self.steps, self.agents, self.openers, self.called):
            held.clear()
        self.last = self.run = None


class Step(Linked, eq=False):
    """A step: what belongs to it, and what was made of it."""

    key: str | None = None
    """Of an explicit step."""
    id: str = ""
    """Once it is built."""
    carriers: dict[str, Node] = {}
    """The spans that say they are this step, or the agent span it is."""
    entries: dict[Entry, None] = {}
    pseudo: Entry | None = None
    """Its own entry where it has no request."""
    calls: dict[Call, None] = {}
    built: Built | None = None
    scope: Scope | None = None
    agents: dict[Node, None] = {}
    """The agents that its rows depend on."""
    parent_tool: Node | None = None
    """The tool span whose call's step is its parent."""
    sources: dict[str, tuple[MessageTree, Source]] = {}

    run: RunState | None = None
    """The run that counts it, at this place:"""
    order: Order = (0, "")
    end: int = 0

    def anchor(self) -> Node | None:
        """Its first span: of an explicit step, of those whose parent does not say the same (baggage copies an id to
        all spans below)."""
        if not self.carriers:
            if len(self.entries) == 1:
                return next(iter(self.entries)).spans[0]
            first = min(self.entries, key=lambda entry: entry.order, default=None)
            return first.spans[0] if first is not None else None
        if len(self.carriers) == 1:
            return next(iter(self.carriers.values()))
        tops = [node for node in self.carriers.values() if not self._repeats(node)]
        return min(tops or self.carriers.values(), key=lambda node: node.order)

    def release(self) -> None:
        """Break the circles of references, see ``Derivation.__del__``."""
        self.entries.clear()
        self.calls.clear()
        self.pseudo = None

    def _repeats(self, node: Node) -> bool:
        parent = node.inferred or node.base
        return parent is not None and step_key(parent.facts) == self.key


class RunState:
    """A run as a row: what several scopes may share (an agent without an id, and steps in it that name their run)."""

    __slots__ = (
        "id",
        "messages",
        "open_steps",
        "row",
        "scopes",
        "steps",
        "sums",
        "with_conversation",
        "with_first_token",
    )

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.scopes: dict[str, Scope] = {}
        self.steps: Timeline[Step] = Timeline()
        self.sums = (0, 0)  # prompt and completion tokens
        self.open_steps = 0
        self.with_conversation = 0
        self.with_first_token = 0
        self.messages = MessageTree(run_id)
        self.row: RunRow | None = None

    def has_row(self) -> bool:
        """Whether there is such a run: a span opens it, or steps belong to it."""
        return len(self.steps) > 0 or any(scope.openers for scope in self.scopes.values())

    def opener(self) -> Node | None:
        """The agent or workflow span that opens the run; the first, where several share its id."""
        nodes = (node for scope in self.scopes.values() for node in scope.openers.values())
        return min(nodes, key=lambda node: node.order, default=None)

    def agents_failed(self, opener: Node | None) -> bool:
        """As of ``RunParts``. The agents are looked at only where it decides something."""
        last = self.steps.last
        if opener is None or opener.facts.role is not Role.WORKFLOW or last is None or last.built is None:
            return False
        if last.built.step.status not in UNHAPPY:
            return False
        agents = [a.facts for scope in self.scopes.values() for a in scope.agents if a.context.agent is opener]
        return bool(agents) and all(agent.failed or agent.cancelled for agent in agents)

    def count(self, step: Step, built: Built) -> None:
        """Add a step to the sums."""
        row = built.step
        step.run = self
        step.order = (built.step.created_ns, row.span_id)
        step.end = built.end_ns if built.end_ns is not None else NO_END
        self.steps.add(step)
        self._count(built, 1)

    def discount(self, step: Step, built: Built) -> None:
        """Take a step out of the sums, as it was counted."""
        self.steps.remove(step)
        step.run = None
        self._count(built, -1)

    def release(self) -> None:
        """Break the circles of references, see ``Derivation.__del__``."""
        self.scopes.clear()
        self.steps.clear()
        self.messages.release()

    def _count(self, built: Built, sign: int) -> None:
        prompt, completion = self.sums
        self.sums = (prompt + sign * built.step.prompt_tokens, completion + sign * built.step.completion_tokens)
        self.open_steps += sign * built.open
        self.with_conversation += sign * (built.conversation_id is not None)
        self.with_first_token += sign * (built.first_token_ns is not None)
