"""Where each span stands in an agent's loop: which are one request, which tools belong to it, what is one step.

Each stage hands on what became doubtful, and only that is looked at again:

    spans -> tree (contexts) -> requests -> entries -> calls -> doubtful steps

An *entry* is a point of the loop that tools can belong to: an LLM request, or a step without one. The *scope* of
entries and calls is the run as the tree sees it; beside it each agent keeps a timeline of its own entries.
"""

from __future__ import annotations

from collections.abc import Iterable

from step_exporter.derive.intervals import UNKNOWN, Timeline, by_order
from step_exporter.derive.requests import component, group, handed_on, is_alone, is_tail
from step_exporter.derive.state import Call, Entry, Scope, Step
from step_exporter.derive.tree import Node, Tree, may_be_called, opens_run, step_key
from step_exporter.facts import Role, SpanFacts

AGENTS = (Role.AGENT, Role.WORKFLOW)


class Loop:
    """The loop of one trace, as far as its spans are known. ``take`` leaves in ``doubtful_steps`` and
    ``doubtful_scopes`` what has to be made again."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.scopes: dict[str, Scope] = {}
        self.explicit: dict[str, Step] = {}
        self.calls: dict[Node, Call] = {}  # by the tool span that stands for the call
        self.agent_steps: dict[Node, dict[Step, None]] = {}  # the steps whose rows depend on an agent
        self.inner_steps: dict[Node, dict[Step, None]] = {}  # by the tool span below which their run began
        self.doubtful_steps: dict[Step, None] = {}
        self.doubtful_scopes: dict[Scope, None] = {}
        self._agent_entries: dict[Node, Timeline[Entry]] = {}
        self._agent_calls: dict[Node, Timeline[Call]] = {}
        self._registered: set[Node] = set()
        # Empty between two calls of ``take``
        self._llms: dict[Node, None] = {}
        self._agents: dict[Node, None] = {}
        self._doubtful_calls: dict[Call, None] = {}
        self._entered: list[Entry] = []

    def take(self, spans: Iterable[SpanFacts]) -> None:
        """Take new spans, and new versions of known ones."""
        nodes = self.tree.nodes
        news = {facts.span_id: facts for facts in spans}  # of several versions of a span the last
        for span_id in [span_id for span_id in news if span_id in nodes]:
            if nodes[span_id].facts == news[span_id]:
                del news[span_id]
            else:
                self._withdraw(nodes[span_id])
        # Timelines are taken apart from their ends and put together in order: at the front, each node would shift all
        # others, and when the agent of 50,000 steps arrives, all of them move.
        moved = sorted(self.tree.update(news.values()).values(), key=by_order)
        for node in reversed(moved):
            if node in self._registered:
                self._withdraw(node)
        for node in moved:
            self._contribute(node)
        self._group_requests()
        self._place_bare_steps()
        self._place_agents()
        self._find_last()
        self._attribute_calls()

    def doubt(self, span_id: str) -> None:
        """Have the steps that a span is part of made again."""
        node = self.tree.nodes.get(span_id)
        if node is not None:
            for step in (node.step, *(part.step for part in (node.request, node.call) if part is not None)):
                if step is not None:
                    self.doubtful_steps[step] = None

    def release(self) -> None:
        """Break the circles of references, see ``Derivation.__del__``."""
        self.tree.release()
        for step in self.explicit.values():
            step.release()
        for call in self.calls.values():
            if call.step is not None:
                call.step.release()
        for scope in self.scopes.values():
            for entry in scope.entries:
                entry.step.release()
            scope.release()

    # ---- registering a span, and taking it back

    def _contribute(self, node: Node) -> None:
        facts, below = node.facts, node.below
        role = facts.role
        self._registered.add(node)
        if facts.run_id is not None and role not in AGENTS and node.context.run != below.run:
            scope = self.scope(node.context.run)
            scope.natives[facts.span_id] = (node.order, facts.run_id)
            node.native_of = scope.key
            self.doubtful_scopes[scope] = None
        if (key := step_key(facts)) is not None:
            step = self._explicit_step(key)
            step.carriers[facts.span_id] = node
            node.step = step
            self.scope(below.run)
            self.doubtful_steps[step] = None
            self._load(node, below.agent if below.agent is not node else node.context.agent)
        if role is Role.LLM:
            self._contribute_llm(node)
        elif role is Role.TOOL:
            self._contribute_tool(node)
        elif role in AGENTS:
            self._contribute_agent(node)

    def _withdraw(self, node: Node) -> None:
        facts = node.facts
        self._registered.discard(node)
        if node.native_of is not None:
            scope = self.scopes[node.native_of]
            del scope.natives[facts.span_id]
            node.native_of = None
            self.doubtful_scopes[scope] = None
        if node.step is not None:
            step: Step = node.step
            if step.pseudo is not None and step.pseudo.spans[0] is node:
                self._dissolve(step.pseudo)
            del step.carriers[facts.span_id]
            self.doubtful_steps[step] = None
            node.step = None
        for agent in node.loaded:
            agent.load -= 1
            self._agents[agent] = None
        node.loaded = ()
        if facts.role is Role.LLM:
            self._withdraw_llm(node)
        elif node.call is not None:
            self._withdraw_tool(node)
        elif facts.role in AGENTS:
            self._withdraw_agent(node)

    def _load(self, node: Node, agent: Node | None) -> None:
        """Something that makes an agent no step of its own."""
        if agent is not None:
            agent.load += 1
            node.loaded = (*node.loaded, agent)
            self._agents[agent] = None

    def _contribute_llm(self, node: Node) -> None:
        parent_id = node.parent_id
        if parent_id is not None:
            self.tree.families[parent_id].add_llm(node)
            self._doubt_next(node)
        if node.context.llm is not None:
            node.llm_above = node.context.llm
            node.llm_above.llm_kids[node.facts.span_id] = node
        self._llms[node] = None

    def _withdraw_llm(self, node: Node) -> None:
        parent_id = node.parent_id
        if parent_id is not None:
            self._doubt_next(node)
            self.tree.families[parent_id].remove_llm(node)
        if node.llm_above is not None:
            del node.llm_above.llm_kids[node.facts.span_id]
            self._llms[node.llm_above] = None
            node.llm_above = None
        for kid in node.llm_kids.values():
            self._llms[kid] = None
        if node.request is not None:
            self._dissolve(node.request)
        self._llms.pop(node, None)

    def _doubt_next(self, node: Node) -> None:
        """What comes after a span may have been the tail of what was before it, or what that was handed on to."""
        if node.parent_id is None:
            return
        family = self.tree.families[node.parent_id]
        after = family.llms.after(node.order)
        if after is None:
            return
        before = family.llms.before(node.order) if len(family.scopes) > 1 else None
        if is_tail(after.facts) or (before is not None and handed_on(before.facts, after.facts)):
            self._llms[after] = None

    def _contribute_tool(self, node: Node) -> None:
        head = node.below.tool
        assert head is not None
        call = self.calls.get(head)
        if call is None:
            call = self.calls[head] = Call(head)
        self._leave_scope(call)
        node.call = call
        call.spans[node.facts.span_id] = node
        self._enter_scope(call)
        self._doubtful_calls[call] = None
        if call.step is not None:
            self.doubtful_steps[call.step] = None

    def _withdraw_tool(self, node: Node) -> None:
        call: Call = node.call
        self._leave_scope(call)
        node.call = None
        del call.spans[node.facts.span_id]
        self._enter_scope(call)
        self._doubtful_calls[call] = None
        if call.step is not None:
            self.doubtful_steps[call.step] = None

    def _enter_scope(self, call: Call) -> None:
        """Put a call among those of its scope and its agent, where its head is known as such."""
        if call.head.facts.span_id not in call.spans:
            return
        call.enter(self.scope(call.head.below.run))
        agent = call.agent = call.head.below.agent
        if agent is not None:
            self._agents[agent] = None
            calls = self._agent_calls.get(agent)
            if calls is None:
                calls = self._agent_calls[agent] = Timeline()
            calls.add(call)

    def _leave_scope(self, call: Call) -> None:
        if call.scope is not None:
            call.leave()
            if call.agent is not None:
                self._agent_calls[call.agent].remove(call)
                self._agents[call.agent] = None

    def _contribute_agent(self, node: Node) -> None:
        above, facts = node.context, node.facts
        opens = opens_run(facts, above)
        scope = self.scope(node.below.run)
        if opens or facts.run_id is not None:
            scope.openers[facts.span_id] = node
            outer = self.scope(above.run)
            if may_be_called(above):  # else a trace of 1,000 agents side by side would be 1,000 calls of its own run
                outer.called[facts.span_id] = scope
            node.opened = (scope, outer)
            for step in scope.steps:  # their parent step, and how their run ended
                self.doubtful_steps[step] = None
            self.doubtful_scopes[scope] = None
        if facts.role is Role.AGENT:
            node.member_of = scope
            scope.agents[node] = None
            if above.agent is not None and above.agent.facts.role is Role.WORKFLOW:
                self.doubtful_scopes[scope] = None  # how it ended tells how the workflow did
        if not opens:
            self._load(node, above.agent)
        for step in self.agent_steps.get(node, ()):
            self.doubtful_steps[step] = None
        self._agents[node] = None

    def _withdraw_agent(self, node: Node) -> None:
        if node.opened is not None:
            scope, above = node.opened
            for step in scope.steps:
                self.doubtful_steps[step] = None
            del scope.openers[node.facts.span_id]
            above.called.pop(node.facts.span_id, None)
            node.opened = None
            self.doubtful_scopes[scope] = None
        if node.member_of is not None:
            node.member_of.agents.pop(node, None)
            self.doubtful_scopes[node.member_of] = None
            node.member_of = None
        if node.request is not None:
            self._dissolve(node.request)
        self._agents.pop(node, None)

    # ---- requests and other entries

    def _group_requests(self) -> None:
        while self._llms:
            doubtful, self._llms = self._llms, {}
            grouped: set[Node] = set()
            for node in sorted(doubtful, key=by_order):
                if node in self._registered and node.facts.role is Role.LLM and node not in grouped:
                    self._group_around(node, grouped)

    def _group_around(self, node: Node, grouped: set[Node]) -> None:
        """Find the request of an LLM span, and those of all that have to be looked at with it (``grouped``)."""
        if is_alone(node, self.tree.families):
            if node.request is None:
                self._enter_request([node])
                return
            if len(node.request.spans) == 1:
                return
        members = component(node, self.tree.families)
        grouped.update(members)
        groups = group(members, self.tree.families)
        wrappers = set(members).difference(*groups)
        for span in wrappers:
            if span.request is not None:
                self._dissolve(span.request)
        for spans in groups:
            if spans[0].request is None or spans[0].request.spans != spans:
                for span in spans:
                    if span.request is not None:
                        self._dissolve(span.request)
                self._enter_request(spans)
        for span in members:
            self._llms.pop(span, None)

    def _enter_request(self, spans: list[Node]) -> None:
        """Put the spans of a request where the first of them stands, and into its step."""
        anchor = spans[0]
        key = anchor.below.step
        if key is None and len(spans) > 1:
            key = next((key for span in spans if (key := span.below.step) is not None), None)
        step = self._explicit_step(key) if key is not None else Step()
        entry = Entry(spans, self.scope(anchor.below.run), step)
        step.entries[entry] = None
        for span in spans:
            span.request = entry
            for call_id in span.facts.asked_call_ids:
                entry.asked[call_id] = None
        for call_id in entry.asked:
            entry.scope.asked.setdefault(call_id, Timeline()).add(entry)
        self._load(anchor, entry.agent)
        self._enter(entry)
        entry.scope.requests += 1
        if entry.scope.requests == 1:
            self._agents.update(entry.scope.agents)

    def _enter_bare(self, anchor: Node, step: Step) -> Entry:
        """Put a step without a request where its anchor stands."""
        entry = step.pseudo = Entry([anchor], self.scope(anchor.below.run), step, is_request=False)
        self._enter(entry)
        return entry

    def _enter(self, entry: Entry) -> None:
        entry.scope.entries.add(entry)
        if entry.agent is not None:
            timeline = self._agent_entries.get(entry.agent)
            if timeline is None:
                timeline = self._agent_entries[entry.agent] = Timeline()
            timeline.add(entry)
        self.doubtful_steps[entry.step] = None
        self._entered.append(entry)
        self.doubtful_scopes[entry.scope] = None

    def _dissolve(self, entry: Entry) -> None:
        """Take an entry out again."""
        self._doubt_calls(entry)
        entry.scope.entries.remove(entry)
        if entry.agent is not None:
            self._agent_entries[entry.agent].remove(entry)
        for call_id in entry.asked:
            entry.scope.asked[call_id].remove(entry)
        step = entry.step
        if entry.is_request:
            entry.scope.requests -= 1
            if not entry.scope.requests:
                self._agents.update(entry.scope.agents)
            step.entries.pop(entry, None)
            for span in entry.spans:
                span.request = None
                self._llms[span] = None
            anchor = entry.spans[0]
            if entry.agent is not None and entry.agent in anchor.loaded:
                loaded = list(anchor.loaded)
                loaded.remove(entry.agent)
                anchor.loaded = tuple(loaded)
                entry.agent.load -= 1
                self._agents[entry.agent] = None
        else:
            step.pseudo = None
            if step.key is None:
                step.carriers.clear()
            if entry.spans[0].request is entry:
                entry.spans[0].request = None
                self._agents[entry.spans[0]] = None
        for call in step.calls:
            self._doubtful_calls[call] = None
        self.doubtful_steps[step] = None
        self.doubtful_scopes[entry.scope] = None

    def _doubt_calls(self, entry: Entry) -> None:
        """The calls that may belong to an entry, or did until it came: asked for by it, or begun after it."""
        scope, agent = entry.scope, entry.agent
        timelines = [(scope.entries, scope.calls)]
        if agent is not None and agent in self._agent_calls:
            timelines.append((self._agent_entries[agent], self._agent_calls[agent]))
        for entries, calls in timelines:
            if not len(calls):
                continue
            after = entries.after(entry.order)
            while after is not None and after.spans[0].context.tool is not None:  # a call passes over what is inside it
                after = entries.after(after.order)
            end = after.order[0] if after is not None else UNKNOWN
            self._doubtful_calls.update(dict.fromkeys(calls.begun_within(entry.order[0], end)))
        for call_id in entry.asked:
            for call in scope.calls_by_id.get(call_id, {}).values():
                self._doubtful_calls[call] = None

    def _place_bare_steps(self) -> None:
        """Explicit steps without an LLM request are entries themselves, at their anchor."""
        for step in list(self.doubtful_steps):
            if step.key is None or not step.carriers:
                continue
            anchor = step.anchor()
            bare = anchor is not None and not step.entries
            if step.pseudo is not None and (not bare or step.pseudo.spans[0] is not anchor):
                self._dissolve(step.pseudo)
            if bare and step.pseudo is None and anchor is not None:
                self._enter_bare(anchor, step)

    def _place_agents(self) -> None:
        """An ended agent span that no LLM request belongs to is one step; but not where it called no tool either, nor
        failed, in a run with requests: graph nodes, hand-offs and users are put down as agents, too."""
        while self._agents:
            node, _ = self._agents.popitem()
            facts = node.facts
            alone = (
                node in self._registered
                and facts.role is Role.AGENT
                and facts.ended
                and node.load == 0
                and step_key(facts) is None
                and (
                    not self.scope(node.below.run).requests
                    or facts.failed
                    or facts.cancelled
                    or len(self._agent_calls.get(node, ())) > 0
                )
            )
            entry: Entry | None = node.request
            if alone and entry is None:
                node.request = self._enter_bare(node, Step(carriers={facts.span_id: node}))
            elif not alone and entry is not None and not entry.is_request:
                self._dissolve(entry)
                self._agents.pop(node, None)

    def _find_last(self) -> None:
        """Whether a later request follows decides of a step's failure: the last one's step, and the one's before."""
        for scope in self.doubtful_scopes:
            for entry in (scope.last, scope.entries.last):
                if entry is not None:
                    self.doubtful_steps[entry.step] = None
                elif scope.last is not scope.entries.last:  # without any, each of its steps is the last
                    self.doubtful_steps.update(scope.steps)
            scope.last = scope.entries.last

    # ---- calls

    def _attribute_calls(self) -> None:
        for entry in self._entered:  # once all are there: before its successor came, all later calls were the first's
            self._doubt_calls(entry)
        self._entered.clear()
        for call in self._doubtful_calls:
            step = self._asking_step(call) if call.scope is not None else None
            if not call.spans:
                del self.calls[call.head]
            if step is call.step:
                continue
            if call.step is not None:
                call.step.calls.pop(call, None)
                self.doubtful_steps[call.step] = None
            call.step = step
            if step is not None:
                step.calls[call] = None
                self.doubtful_steps[step] = None
            for inner in self.inner_steps.get(call.head, ()):
                self.doubtful_steps[inner] = None
        self._doubtful_calls.clear()

    def _asking_step(self, call: Call) -> Step | None:
        """The step that a call belongs to: the nearest explicit one above it, else the one of the request that asked
        for it, else of the latest entry begun before it, of the same agent if that has one."""
        head, scope = call.head, call.scope
        assert scope is not None
        if head.below.step is not None:
            return self._explicit_step(head.below.step)
        start = call.order[0]
        asked = [scope.asked[call_id] for call_id in call.ids if call_id in scope.asked]
        asking = [entry for timeline in asked if (entry := timeline.at_or_before(start) or timeline.first) is not None]
        if asking:
            before = [entry for entry in asking if entry.order[0] <= start]
            return max(before, key=by_order).step if before else min(asking, key=by_order).step
        timelines = [scope.entries]
        if head.below.agent is not None and (own := self._agent_entries.get(head.below.agent)) is not None:
            timelines.insert(0, own)
        for timeline in timelines:
            entry = timeline.at_or_before(start)
            while entry is not None and entry.spans[0].context.tool is head:  # begun by the call, in the same instant
                entry = timeline.before(entry.order)
            if entry is not None:
                return entry.step
        return None

    # ---- small things

    def scope(self, key: str) -> Scope:
        """The scope of a key (``Context.run``)."""
        scope = self.scopes.get(key)
        if scope is None:
            scope = self.scopes[key] = Scope(key)
            self.doubtful_scopes[scope] = None
        return scope

    def _explicit_step(self, key: str) -> Step:
        step = self.explicit.get(key)
        if step is None:
            step = self.explicit[key] = Step(key)
        return step

    def step_of(self, node: Node) -> Step | None:
        """The step that a span is in, or below a span of."""
        below = node.below
        if below.step is not None:
            return self.explicit.get(below.step)
        role = node.facts.role
        if role in AGENTS:
            return node.request.step if node.request is not None else None
        llm = node if role is Role.LLM else below.llm
        if llm is not None and llm.request is not None:
            return llm.request.step
        tool = below.tool
        return self.calls[tool].step if tool is not None and tool in self.calls else None
