"""The tree of a trace's spans, and where in the agent's loop each of them stands.

Spans arrive in any order, mostly children first, so a node may wait for its parent. What a span inherits
from above is its ``Context``. When a span arrives, only the contexts that it really changes are made again:
a plain span changes none of those below it, an agent moves its whole subtree, once.

Two rules bend the tree where instrumentations put a span beside what it belongs to:

* A *twin container*: a plain span beside an agent span, within its time, that repeats its name, stands for
  that agent (OpenLLMetry's ``execute_task math-agent`` beside ``invoke_agent math-agent``).
* An *inferred parent*: an agent span directly below another agent or workflow, within the time of a tool of that
  agent or of an agent beside it, which has no agent below it, was called by that tool.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from step_exporter.facts import Role, SpanFacts, Value

from .intervals import UNKNOWN, Order, Timeline, by_order
from .linked import Linked

TOOL_BETWEEN, STEP_BETWEEN, SERVICE_BETWEEN = 1, 2, 4


class Context(Value, frozen=True):
    """What a span inherits from the spans above it."""

    run: str = ""
    """The key of the run: the span id of the agent or workflow that opens it, ``id:`` and a native run id, or
    empty for the run of the trace."""
    agent: Node | None = None
    """The innermost agent or workflow."""
    step: str | None = None
    """The key of the nearest explicit step, see ``step_key``."""
    tool: Node | None = None
    """The tool span that stands for the call that we are in."""
    llm: Node | None = None
    """The nearest LLM span with no agent, tool or step between."""
    service: str | None = None
    """The service of ``agent``. What is asked of a node above stands here by value, so that contexts differ with it."""
    call_id: str | None = None
    """The call id of ``tool``."""
    between: int = 0
    """What lies between here and ``agent``: TOOL_BETWEEN | STEP_BETWEEN | SERVICE_BETWEEN."""
    agent_name: str | None = None


OUTSIDE = Context()


class Node(Linked, eq=False):
    """A span in the tree."""

    facts: SpanFacts
    order: Order = (0, "")
    end: int = 0
    """In ns; ``UNKNOWN`` while the span is open."""
    parent_id: str | None = None
    base: Node | None = None
    """Where it hangs, but for an inferred parent."""
    twin_of: Node | None = None
    """The agent that it stands for."""
    inferred: Node | None = None
    """The tool that called it."""
    cut: bool = False
    """Taken as a root, to break a cycle of parents."""
    kids: dict[str, Node] = {}
    context: Context = OUTSIDE
    base_context: Context = OUTSIDE
    below: Context = OUTSIDE
    fresh: bool = True
    """Contexts not made yet."""
    noted: int = 0
    """1 while the inference of parents knows it, 2 where it is an agent that may have been called."""
    agents_below: int = 0
    """Of a tool: agents that it called."""
    called_in: Node | None = None
    """Of an agent: the tool whose agents_below counts it."""

    # What the loop has registered of it
    request: Any = None
    call: Any = None
    step: Any = None
    llm_above: Node | None = None
    llm_kids: dict[str, Node] = {}
    native_of: str | None = None
    """The run that its native run id gives a name to."""
    opened: Any = None
    """Of an agent or workflow: the scope that it opens, and the one that it stands in."""
    member_of: Any = None
    """Of an agent: the scope that it is in."""
    load: int = 0
    """Of an agent: what makes it no step of its own."""
    loaded: tuple[Node, ...] = ()
    """The agents whose load counts it."""

    def __post_init__(self) -> None:
        self.take(self.facts)

    def take(self, facts: SpanFacts) -> None:
        """Become what the facts say."""
        self.facts = facts
        self.parent_id = facts.parent_span_id if facts.parent_span_id != facts.span_id else None  # no span is its own
        start = facts.start_ns
        if start is None:
            start = UNKNOWN
        self.order = (start, facts.span_id)
        self.end = UNKNOWN if not facts.ended else start if facts.end_ns is None else max(facts.end_ns, start)

    def __repr__(self) -> str:
        return f"<Node {self.facts.role} {self.facts.name} {self.facts.span_id}>"


class Family:
    """The spans under one parent id, whether that parent is known or not."""

    __slots__ = ("agents", "by_request_id", "children", "llms", "plain", "scopes")

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.agents: Timeline[Node] | None = None
        self.plain: Timeline[Node] | None = None  # kept once there is an agent, whose twins they may be
        # Kept by the derivation for the grouping of requests
        self.llms: Timeline[Node] = Timeline()
        self.by_request_id: dict[str, dict[str, Node]] = {}
        self.scopes: dict[str, int] = {}  # of the LLM spans, and how many each has

    def add_llm(self, node: Node) -> None:
        """Take in a child's LLM span."""
        facts = node.facts
        self.llms.add(node)
        self.scopes[facts.scope_name] = self.scopes.get(facts.scope_name, 0) + 1
        if facts.request_id is not None:
            self.by_request_id.setdefault(facts.request_id, {})[facts.span_id] = node

    def remove_llm(self, node: Node) -> None:
        """Let it go, as what it came."""
        facts = node.facts
        self.llms.remove(node)
        self.scopes[facts.scope_name] -= 1
        if not self.scopes[facts.scope_name]:
            del self.scopes[facts.scope_name]
        if facts.request_id is not None:
            del self.by_request_id[facts.request_id][facts.span_id]

    def add(self, node: Node) -> None:
        """Take in a child."""
        span_id, role = node.facts.span_id, node.facts.role
        self.children[span_id] = node
        if role is Role.AGENT:
            if self.agents is None:
                self.agents, self.plain = Timeline(), Timeline()
                for child in sorted(self.children.values(), key=by_order):
                    if child.facts.role is Role.OTHER:
                        self.plain.add(child)
            self.agents.add(node)
        elif role is Role.OTHER and self.plain is not None:
            self.plain.add(node)

    def remove(self, node: Node) -> None:
        """Let a child go, as what it came."""
        del self.children[node.facts.span_id]
        if self.agents is None or self.plain is None:
            return
        if node.facts.role is Role.AGENT:
            self.agents.remove(node)
        elif node.facts.role is Role.OTHER:
            self.plain.remove(node)


def step_key(facts: SpanFacts) -> str | None:
    """What tells the explicit step of a span: its native id, or the span itself where its role is step."""
    if facts.step_id is not None:
        return "id:" + facts.step_id
    return facts.span_id if facts.role is Role.STEP else None


def agent_label(facts: SpanFacts, above: str | None = None) -> str:
    """The name of an agent: its span's where it says none, unless that is only the operation's and one above has a name
    (OpenLIT puts an ``invoke_agent`` below ``invoke_agent NAME``)."""
    if facts.agent_name or above is None or facts.name != "invoke_agent":
        return facts.agent_name or facts.name
    return above


def stands_for(facts: SpanFacts, agent: SpanFacts) -> bool:
    """Whether a plain span's name says an agent's: the same, ``execute_task NAME`` or ``NAME.workflow``."""
    label, name = agent_label(agent), facts.name
    return name == label or facts.agent_name == label or name.endswith(" " + label) or name.startswith(label + ".")


def same_call(outer: str | None, inner: str | None) -> bool:
    """Whether two nested tool spans are one call (an MCP client's and its server's): no call ids that differ."""
    return outer is None or inner is None or outer == inner


def opens_run(facts: SpanFacts, above: Context) -> bool:
    """Whether an agent or workflow span begins a run of its own: it is the top one, or was called by a tool, from a
    step, or in another service. Directly below an agent, or by a hand-off, it does not."""
    if above.agent is None or above.between or facts.kind == "server" or facts.kind == "consumer":
        return True
    mine, its = facts.service_name, above.service
    return mine is not None and its is not None and mine != its


def calls_service(facts: SpanFacts, above: Context) -> bool:
    """Whether an agent called another service there. Without one above, the outermost agent below is the top run, be
    there a SERVER span above it or not."""
    return (facts.kind == "server" or facts.kind == "consumer") and above.agent is not None


def may_be_called(above: Context) -> bool:
    """Whether a run that is opened there has another one as its parent: an agent is above, or a tool or step called."""
    return above.agent is not None or above.between != 0 or above.run != ""


def context_below(node: Node, above: Context) -> Context:
    """What the spans below a span inherit."""
    facts = node.facts
    role = facts.role
    if role is Role.OTHER and facts.run_id is None and facts.step_id is None and facts.agent_name is None:
        if calls_service(facts, above) and not above.between & SERVICE_BETWEEN:
            return replace(above, between=above.between | SERVICE_BETWEEN)
        return above  # most spans: nothing to make
    run, agent, step, tool, llm = above.run, above.agent, above.step, above.tool, above.llm
    service, call_id, between, name = above.service, above.call_id, above.between, above.agent_name
    if role is Role.AGENT or role is Role.WORKFLOW:
        if opens_run(facts, above):
            run = facts.span_id
        agent, step, tool, llm, service, between = node, None, None, None, facts.service_name, 0
        name = agent_label(facts, name) if role is Role.AGENT else facts.agent_name or name
    else:
        name = facts.agent_name or name
        if role is Role.TOOL:
            if tool is None or not same_call(call_id, facts.call_id):
                tool, call_id = node, facts.call_id
            llm, between = None, between | TOOL_BETWEEN
        elif role is Role.LLM:
            llm, tool = node, None
        elif role is Role.STEP:
            llm = tool = None
        elif calls_service(facts, above):
            between |= SERVICE_BETWEEN
    if facts.run_id is not None:
        run = "id:" + facts.run_id
    key = step_key(facts)
    if key is not None:
        step = key
        if agent is not node:
            between |= STEP_BETWEEN
    return Context(run, agent, step, tool, llm, service, call_id if tool is not None else None, between, name)


class Tree:
    """All known spans of a trace. ``update`` takes spans and tells whose facts or place changed."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.families: dict[str, Family] = {}
        self._cut: set[Node] = set()
        self._inferable: Timeline[Node] = Timeline()  # agents directly below an agent or workflow
        self._tools: Timeline[Node] | None = None  # heads of tool calls; kept once there is an inferable agent
        self._doubtful: dict[str, Node] = {}  # agents whose inferred parent is to be looked at

    def update(self, spans: Iterable[SpanFacts]) -> dict[str, Node]:
        """Take new spans and new versions of known ones. Returns every node whose facts or context changed."""
        moved: dict[str, Node] = {}
        loose: dict[str, Node] = {}
        for facts in spans:
            node = self.nodes.get(facts.span_id)
            if node is None:
                node = self.nodes[facts.span_id] = Node(facts)
            else:
                self._forget(node)
                self._infer(node, None)
                for called in [kid for kid in node.kids.values() if kid.inferred is node]:
                    self._infer(called, None)
                    loose[called.facts.span_id] = called
                if node.parent_id is not None:
                    self.families[node.parent_id].remove(node)
                node.take(facts)
                node.fresh = True
            moved[facts.span_id] = node
            parent_id = node.parent_id
            if parent_id is not None:
                family = self.families.get(parent_id)
                if family is None:
                    family = self.families[parent_id] = Family()
                family.add(node)
        loose.update(moved)
        if self._cut:
            loose.update((node.facts.span_id, node) for node in self._cut)
        self._link(loose)
        self._settle(loose.values(), moved)
        self._infer_parents(moved)
        return moved

    def release(self) -> None:
        """Break the circles of references, see ``Derivation.__del__``."""
        for node in self.nodes.values():
            node.context = node.base_context = node.below = OUTSIDE
            node.base = node.twin_of = node.inferred = node.called_in = node.llm_above = None
            node.request = node.call = node.step = node.opened = node.member_of = None
            node.loaded = ()
            node.kids.clear()
            node.llm_kids.clear()

    # ---- where spans hang

    def _link(self, loose: dict[str, Node]) -> None:
        """Hang these spans, those that waited for them, and those that a sibling's arrival moves; ``loose`` grows."""
        for node in list(loose.values()):
            node.cut = False
            self._cut.discard(node)
            family = self.families.get(node.facts.span_id)
            if family is not None:
                loose.update(family.children)
            if node.kids:
                loose.update((span_id, kid) for span_id, kid in node.kids.items() if kid.twin_of is node)
            if node.parent_id is not None and node.facts.role is Role.AGENT:
                siblings = self.families[node.parent_id].plain
                assert siblings is not None
                for kid in siblings.begun_within(node.order[0], node.end):
                    if kid.end <= node.end and stands_for(kid.facts, node.facts):
                        loose[kid.facts.span_id] = kid
        for node in loose.values():
            self._hang(node, self._parent(node))
        self._break_cycles(loose)
        for node in list(loose.values()):
            self._find_twin(node)

    def _parent(self, node: Node) -> Node | None:
        parent_id = node.parent_id
        return self.nodes.get(parent_id) if parent_id is not None else None

    def _hang(self, node: Node, base: Node | None) -> None:
        if node.base is not base:
            if node.base is not None:
                node.base.kids.pop(node.facts.span_id, None)
            node.base = base
            if base is not None:
                base.kids[node.facts.span_id] = node

    def _break_cycles(self, loose: dict[str, Node]) -> None:
        """Where parents go round in a circle, the first span of it by order is taken as a root."""
        done: set[Node] = set()
        for node in list(loose.values()):
            path: dict[Node, None] = {}
            walk: Node | None = node if node.facts.span_id in self.families else None  # only what has children
            while walk is not None and walk not in done and walk not in path:
                path[walk] = None
                walk = self._parent(walk) if walk.twin_of is not None else walk.base
            if walk in path:
                circle = list(path)
                lowest = min(circle[circle.index(walk) :], key=lambda member: member.order)
                lowest.cut = True
                self._cut.add(lowest)
                loose[lowest.facts.span_id] = lowest
                self._hang(lowest, None)
            done.update(path)

    def _find_twin(self, node: Node) -> None:
        best: Node | None = None
        parent_id = node.parent_id
        if node.facts.role is Role.OTHER and parent_id is not None and not node.cut:
            agents = self.families[parent_id].agents
            if agents is not None:
                around = agents.covering(node.order[0], node.end)
                best = next((agent for agent in around if stands_for(node.facts, agent.facts)), None)
        node.twin_of = best
        if best is not None:
            self._hang(node, best)

    # ---- contexts

    def _settle(self, loose: Iterable[Node], moved: dict[str, Node]) -> None:
        """Make the contexts of these nodes, and of what is below them where that changes, again. From the top: a chain
        settled from below would be settled again by each span above it."""
        waiting = dict.fromkeys(loose)
        while waiting:
            path = [waiting.popitem()[0]]
            while (above := path[-1].base) is not None and above in waiting:
                del waiting[above]
                path.append(above)
            while path:
                node = path.pop()
                waiting.pop(node, None)  # settling what is above it may have put it back
                self._settle_one(node, moved, waiting)

    def _settle_one(self, node: Node, moved: dict[str, Node], waiting: dict[Node, None]) -> None:
        base_context = node.base.below if node.base is not None else OUTSIDE
        if node.inferred is not None and base_context != node.base_context:
            self._infer(node, None)
        above = node.inferred.below if node.inferred is not None else base_context
        if not node.fresh and above == node.context and base_context == node.base_context:
            return
        self._forget(node)
        fresh, node.fresh = node.fresh, False
        node.context, node.base_context = above, base_context
        below = context_below(node, above)
        moved[node.facts.span_id] = node
        changed = below != node.below
        node.below = below
        self._note(node)
        if changed or fresh:
            waiting.update(dict.fromkeys(node.kids.values()))

    # ---- inferred parents

    def _note(self, node: Node) -> None:
        """Remember what the inference of parents has to know of a span."""
        role = node.facts.role
        if role is Role.AGENT or role is Role.WORKFLOW:
            above = node.base_context
            if above.agent is None:
                return
            node.noted = 1
            if above.tool is not None:
                node.called_in = above.tool
                above.tool.agents_below += 1
                self._doubt_within(above.tool)
            for other in self._inferable.begun_within(node.order[0], UNKNOWN):
                self._doubtful[other.facts.span_id] = other
            if not opens_run(node.facts, above):
                if self._tools is None:
                    self._tools = Timeline()
                    for other in self.nodes.values():
                        if not other.fresh and other.below.tool is other:
                            other.noted = 1
                            self._tools.add(other)
                node.noted = 2
                self._inferable.add(node)
                self._doubtful[node.facts.span_id] = node
        elif role is Role.TOOL and self._tools is not None and node.below.tool is node:
            node.noted = 1
            self._tools.add(node)
            self._doubt_within(node)

    def _forget(self, node: Node) -> None:
        """Take back what ``_note`` remembered."""
        if not node.noted:
            return
        inferable, node.noted = node.noted == 2, 0
        if node.facts.role is Role.TOOL:
            assert self._tools is not None
            self._tools.remove(node)
            self._doubt_within(node)
            return
        if node.called_in is not None:
            node.called_in.agents_below -= 1
            self._doubt_within(node.called_in)
            node.called_in = None
        if inferable:
            self._inferable.remove(node)
            self._doubtful.pop(node.facts.span_id, None)
        for other in self._inferable.begun_within(node.order[0], UNKNOWN):
            self._doubtful[other.facts.span_id] = other

    def _doubt_within(self, tool: Node) -> None:
        for agent in self._inferable.begun_within(tool.order[0], tool.end):
            self._doubtful[agent.facts.span_id] = agent

    def _infer_parents(self, moved: dict[str, Node]) -> None:
        while self._doubtful:
            doubtful, self._doubtful = self._doubtful, {}
            for agent in doubtful.values():
                tool = self._calling_tool(agent) if agent.noted == 2 else None
                if tool is not agent.inferred:
                    self._infer(agent, tool)
                    self._settle([agent], moved)

    def _infer(self, agent: Node, tool: Node | None) -> None:
        if agent.inferred is not None:
            agent.inferred.kids.pop(agent.facts.span_id, None)
        agent.inferred = tool
        if tool is not None:
            tool.kids[agent.facts.span_id] = agent

    def _calling_tool(self, agent: Node) -> Node | None:
        """The narrowest tool that an agent lies in the time of, where the tree does not say who called it."""
        above = agent.base_context
        best: Node | None = None
        assert self._tools is not None
        for tool in self._tools.covering(agent.order[0], agent.end):
            caller = tool.context.agent
            if (
                caller is not None
                and caller is not agent
                and caller.order < agent.order  # so that two agents can't call each other
                and tool.agents_below == 0
                and (caller is above.agent or caller.base_context.agent is above.agent)
                and (best is None or (tool.end - tool.order[0], tool.order) < (best.end - best.order[0], best.order))
            ):
                best = tool
        return best
