"""Facts of one trace in, changes of its rows out: the incremental derivation.

For every order, batching and duplication of facts, the changes folded together equal what deriving everything
at once gives. Each stage hands on what became doubtful, and only that is made again:

    spans -> tree (contexts) -> requests -> entries -> calls -> steps -> runs, messages

An *entry* is a point of the loop that tools can belong to: an LLM request, or a step without one. The *scope* of
entries and calls is the run as the tree sees it; beside it each agent keeps a timeline of its own entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from step_exporter.facts import Annotation, Deletion, Role, SpanFacts

from . import ids
from .intervals import UNKNOWN, Order, Timeline
from .messages import MessageTree, Source
from .requests import closest_to_wire, component, group, is_alone, is_tail
from .rows import Changes, MessageRow, RunRow, StepMetricsRow, StepRow
from .runs import RunParts, build_run
from .state import Call, Entry, RunState, Scope, Step
from .steps import Built, Outcome, StepParts, build_step
from .tree import Node, Tree, opens_run, step_key

_AGENTS = (Role.AGENT, Role.WORKFLOW)


class Derivation:
    """What is known of one trace, and the rows that follow from it."""

    def __init__(self, trace_id: str) -> None:
        self.trace_id = trace_id
        self._tree = Tree()
        self._scopes: dict[str, Scope] = {}
        self._runs: dict[str, RunState] = {}
        self._explicit: dict[str, Step] = {}
        self._calls: dict[Node, Call] = {}  # by the tool span that stands for the call
        self._agent_entries: dict[Node, Timeline[Entry]] = {}
        self._agent_calls: dict[Node, Timeline[Call]] = {}
        self._agent_steps: dict[Node, dict[Step, None]] = {}
        self._inner_steps: dict[Node, dict[Step, None]] = {}  # by the tool span below which their run began
        self._registered: set[Node] = set()
        self._annotations: dict[str, dict[str, Annotation]] = {}
        self._deleted_steps: set[str] = set()
        self._deleted_runs: set[str] = set()
        self._deleted = False
        # The rows as last handed out
        self._step_rows: dict[str, tuple[StepRow, StepMetricsRow]] = {}
        self._message_rows: dict[str, MessageRow] = {}
        # What is doubtful, empty between two calls of ``apply``
        self._llms: dict[Node, None] = {}
        self._agents: dict[Node, None] = {}
        self._doubtful_calls: dict[Call, None] = {}
        self._doubtful_steps: dict[Step, None] = {}
        self._doubtful_scopes: dict[Scope, None] = {}
        self._doubtful_runs: dict[RunState, None] = {}
        self._doubtful_messages: dict[MessageTree, None] = {}

    def __len__(self) -> int:
        return len(self._tree.nodes)

    def __contains__(self, span_id: str) -> bool:
        return span_id in self._tree.nodes

    def step_of(self, span_id: str) -> str | None:
        """The id of the step that a span belongs to: it is one of its spans, or lies below one."""
        node = self._tree.nodes.get(span_id)
        step = self._step_of(node) if node is not None else None
        return step.id if step is not None and step.id in self._step_rows else None

    def apply(self, facts: Iterable[SpanFacts | Annotation | Deletion]) -> Changes:
        """Take new facts, and new versions of known ones, in any order. Returns the rows to write and to delete."""
        spans: dict[str, SpanFacts] = {}
        said: list[Annotation] = []
        for fact in facts:
            if isinstance(fact, SpanFacts):
                spans[fact.span_id] = fact
            elif isinstance(fact, Annotation):
                self._annotations.setdefault(fact.span_id, {})[fact.key] = fact
                said.append(fact)
            else:
                self._delete(fact)
        nodes = self._tree.nodes
        for span_id in [span_id for span_id in spans if span_id in nodes]:
            if nodes[span_id].facts == spans[span_id]:
                del spans[span_id]
            else:
                self._withdraw(nodes[span_id])
        moved = self._tree.update(spans.values())
        for node in moved.values():
            if node in self._registered:
                self._withdraw(node)
        for node in moved.values():
            self._contribute(node)
        self._group_requests()
        self._place_bare_steps()
        self._place_agents()
        self._find_last()
        self._attribute_calls()
        for fact in said:
            node = nodes.get(fact.span_id)
            step = self._step_of(node) if node is not None else None
            if step is not None:
                self._doubtful_steps[step] = None
        changes = self._changes()
        return Changes() if self._deleted else changes  # the store has no row of it any more

    # ---- registering a span, and taking it back

    def _contribute(self, node: Node) -> None:
        facts, below = node.facts, node.below
        role = facts.role
        self._registered.add(node)
        if facts.run_id is not None and role not in _AGENTS and node.context.run != below.run:
            scope = self._scope(node.context.run)
            scope.natives[facts.span_id] = (node.order, facts.run_id)
            node.native_of = scope.key
            self._doubtful_scopes[scope] = None
        if (key := step_key(facts)) is not None:
            step = self._explicit_step(key)
            step.carriers[facts.span_id] = node
            node.step = step
            self._scope(below.run)
            self._doubtful_steps[step] = None
            self._load(node, below.agent if below.agent is not node else node.context.agent)
        if role is Role.LLM:
            self._contribute_llm(node)
        elif role is Role.TOOL:
            self._contribute_tool(node)
        elif role in _AGENTS:
            self._contribute_agent(node)

    def _withdraw(self, node: Node) -> None:
        facts = node.facts
        self._registered.discard(node)
        if node.native_of is not None:
            scope = self._scopes[node.native_of]
            del scope.natives[facts.span_id]
            node.native_of = None
            self._doubtful_scopes[scope] = None
        if node.step is not None:
            step: Step = node.step
            if step.pseudo is not None and step.pseudo.spans[0] is node:
                self._dissolve(step.pseudo)
            del step.carriers[facts.span_id]
            self._doubtful_steps[step] = None
            node.step = None
        for agent in node.loaded:
            agent.load -= 1
            self._agents[agent] = None
        node.loaded = ()
        if facts.role is Role.LLM:
            self._withdraw_llm(node)
        elif node.call is not None:
            self._withdraw_tool(node)
        elif facts.role in _AGENTS:
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
            family = self._tree.families[parent_id]
            family.llms.add(node)
            if node.facts.request_id is not None:
                family.by_request_id.setdefault(node.facts.request_id, {})[node.facts.span_id] = node
            self._doubt_tail(node)
        if node.context.llm is not None:
            node.llm_above = node.context.llm
            node.llm_above.llm_kids[node.facts.span_id] = node
        self._llms[node] = None

    def _withdraw_llm(self, node: Node) -> None:
        parent_id = node.parent_id
        if parent_id is not None:
            self._doubt_tail(node)
            family = self._tree.families[parent_id]
            family.llms.remove(node)
            if node.facts.request_id is not None:
                del family.by_request_id[node.facts.request_id][node.facts.span_id]
        if node.llm_above is not None:
            del node.llm_above.llm_kids[node.facts.span_id]
            self._llms[node.llm_above] = None
            node.llm_above = None
        for kid in node.llm_kids.values():
            self._llms[kid] = None
        if node.request is not None:
            self._dissolve(node.request)
        self._llms.pop(node, None)

    def _doubt_tail(self, node: Node) -> None:
        """What came after a span may have been the tail of what was before it."""
        parent_id = node.parent_id
        after = self._tree.families[parent_id].llms.after(node.order) if parent_id is not None else None
        if after is not None and is_tail(after.facts):
            self._llms[after] = None

    def _contribute_tool(self, node: Node) -> None:
        head = node.below.tool
        assert head is not None
        call = self._calls.get(head)
        if call is None:
            call = self._calls[head] = Call(head)
        self._leave_scope(call)
        node.call = call
        call.spans[node.facts.span_id] = node
        self._enter_scope(call)
        self._doubtful_calls[call] = None
        if call.step is not None:
            self._doubtful_steps[call.step] = None

    def _withdraw_tool(self, node: Node) -> None:
        call: Call = node.call
        self._leave_scope(call)
        node.call = None
        del call.spans[node.facts.span_id]
        self._enter_scope(call)
        self._doubtful_calls[call] = None
        if call.step is not None:
            self._doubtful_steps[call.step] = None

    def _enter_scope(self, call: Call) -> None:
        """Put a call among those of its scope and its agent, where its head is known as such."""
        if call.head.facts.span_id not in call.spans:
            return
        call.enter(self._scope(call.head.below.run))
        agent = call.agent = call.head.below.agent
        if agent is not None:
            calls = self._agent_calls.get(agent)
            if calls is None:
                calls = self._agent_calls[agent] = Timeline()
            calls.add(call)

    def _leave_scope(self, call: Call) -> None:
        if call.scope is not None:
            call.leave()
            if call.agent is not None:
                self._agent_calls[call.agent].remove(call)

    def _contribute_agent(self, node: Node) -> None:
        above, facts = node.context, node.facts
        opens = opens_run(facts, above)
        scope = self._scope(node.below.run)
        if opens or facts.run_id is not None:
            scope.openers[facts.span_id] = node
            outer = self._scope(above.run)
            outer.called[facts.span_id] = scope
            node.opened = (scope, outer)
            for step in scope.steps:  # their parent step, and how their run ended
                self._doubtful_steps[step] = None
            self._doubtful_scopes[scope] = None
        if not opens:
            self._load(node, above.agent)
        for step in self._agent_steps.get(node, ()):
            self._doubtful_steps[step] = None
        self._agents[node] = None

    def _withdraw_agent(self, node: Node) -> None:
        if node.opened is not None:
            scope, above = node.opened
            del scope.openers[node.facts.span_id]
            del above.called[node.facts.span_id]
            node.opened = None
            self._doubtful_scopes[scope] = None
        if node.request is not None:
            self._dissolve(node.request)
        self._agents.pop(node, None)

    # ---- requests and other entries

    def _group_requests(self) -> None:
        while self._llms:
            node = next(iter(self._llms))
            if node not in self._registered or node.facts.role is not Role.LLM:
                del self._llms[node]
                continue
            if is_alone(node, self._tree.families):
                del self._llms[node]
                if node.request is None:
                    self._enter(Entry([node], is_request=True))
                    continue
                if len(node.request.spans) == 1:
                    continue
            members = component(node, self._tree.families)
            groups = group(members, self._tree.families)
            wrappers = set(members).difference(*groups)
            for span in wrappers:
                if span.request is not None:
                    self._dissolve(span.request)
            for spans in groups:
                if spans[0].request is None or spans[0].request.spans != spans:
                    for span in spans:
                        if span.request is not None:
                            self._dissolve(span.request)
                    self._enter(Entry(spans, is_request=True))
            for span in members:
                self._llms.pop(span, None)

    def _enter(self, entry: Entry) -> None:
        """Put an entry where its first span stands, and into its step."""
        anchor = entry.spans[0]
        below = anchor.below
        entry.scope = self._scope(below.run)
        entry.scope.entries.add(entry)
        entry.agent = below.agent
        if entry.agent is not None:
            timeline = self._agent_entries.get(entry.agent)
            if timeline is None:
                timeline = self._agent_entries[entry.agent] = Timeline()
            timeline.add(entry)
        if entry.is_request:
            key = next((key for span in entry.spans if (key := span.below.step) is not None), None)
            entry.step = self._explicit_step(key) if key is not None else Step(None)
            entry.step.entries[entry] = None
            for span in entry.spans:
                span.request = entry
                for call_id in span.facts.asked_call_ids:
                    entry.asked[call_id] = None
            for call_id in entry.asked:
                entry.scope.asked.setdefault(call_id, Timeline()).add(entry)
            self._load(anchor, entry.agent)
        self._doubtful_steps[entry.step] = None
        self._doubt_calls(entry)
        self._doubtful_scopes[entry.scope] = None

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
        self._doubtful_steps[step] = None
        self._doubtful_scopes[entry.scope] = None

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
        for step in list(self._doubtful_steps):
            if step.key is None or not step.carriers:
                continue
            anchor = step.anchor()
            bare = anchor is not None and not step.entries
            if step.pseudo is not None and (not bare or step.pseudo.spans[0] is not anchor):
                self._dissolve(step.pseudo)
            if bare and step.pseudo is None and anchor is not None:
                step.pseudo = Entry([anchor], is_request=False)
                step.pseudo.step = step
                self._enter(step.pseudo)

    def _place_agents(self) -> None:
        """An ended agent span that no LLM request belongs to is one step."""
        while self._agents:
            node = next(iter(self._agents))
            del self._agents[node]
            facts = node.facts
            alone = (
                node in self._registered
                and facts.role is Role.AGENT
                and facts.ended
                and node.load == 0
                and step_key(facts) is None
            )
            entry: Entry | None = node.request
            if alone and entry is None:
                entry = node.request = Entry([node], is_request=False)
                entry.step = Step(None)
                entry.step.pseudo = entry
                entry.step.carriers[facts.span_id] = node
                self._enter(entry)
            elif not alone and entry is not None and not entry.is_request:
                self._dissolve(entry)
                self._agents.pop(node, None)

    def _find_last(self) -> None:
        """Whether a later request follows decides of a step's failure: the last one's step, and the one's before."""
        for scope in self._doubtful_scopes:
            for entry in (scope.last, scope.entries.last):
                if entry is not None:
                    self._doubtful_steps[entry.step] = None
                elif scope.last is not scope.entries.last:  # without any, each of its steps is the last
                    self._doubtful_steps.update(scope.steps)
            scope.last = scope.entries.last

    # ---- calls

    def _attribute_calls(self) -> None:
        for call in self._doubtful_calls:
            step = self._asking_step(call) if call.scope is not None else None
            if not call.spans:
                del self._calls[call.head]
            if step is call.step:
                continue
            if call.step is not None:
                call.step.calls.pop(call, None)
                self._doubtful_steps[call.step] = None
            call.step = step
            if step is not None:
                step.calls[call] = None
                self._doubtful_steps[step] = None
            for inner in self._inner_steps.get(call.head, ()):
                self._doubtful_steps[inner] = None
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
            return max(before, key=_order).step if before else min(asking, key=_order).step
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

    # ---- rows

    def _changes(self) -> Changes:
        self._name_runs()
        steps, metrics, deleted_steps, named = self._build_steps()
        runs, deleted_runs = self._build_runs()
        messages, deleted_messages = self._build_messages()
        return Changes(
            steps=steps,
            step_metrics=metrics,
            runs=runs,
            messages=messages,
            deleted_steps=deleted_steps,
            deleted_runs=deleted_runs,
            deleted_messages=deleted_messages,
            organizations=tuple(sorted({built.organization for built in named if built.organization is not None})),
            providers=tuple(sorted({built.provider for built in named if built.provider is not None})),
        )

    def _name_runs(self) -> None:
        """Which row each scope's steps are counted in. An agent without a run id of its own takes the first that a span
        directly in it names."""
        for scope in self._doubtful_scopes:
            if scope.key.startswith("id:"):
                run_id = scope.key[3:]
            elif scope.key == "":
                run_id = ids.trace_run_id(self.trace_id)
            elif scope.natives:
                run_id = min(scope.natives.values())[1]
            else:
                run_id = ids.run_id(self.trace_id, scope.key)
            run = self._runs.get(run_id)
            if run is None:
                run = self._runs[run_id] = RunState(run_id)
            if scope.run is not run:
                if scope.run is not None:
                    del scope.run.scopes[scope.key]
                    self._doubtful_runs[scope.run] = None
                scope.run = run
                run.scopes[scope.key] = scope
                for step in scope.steps:
                    self._doubtful_steps[step] = None
                for called in scope.called.values():
                    if called.run is not None:
                        self._doubtful_runs[called.run] = None
            self._doubtful_runs[run] = None
        self._doubtful_scopes.clear()

    def _build_steps(self) -> tuple[tuple[StepRow, ...], tuple[StepMetricsRow, ...], tuple[str, ...], list[Built]]:
        gone: set[str] = set()
        made: dict[str, Built] = {}
        doubtful, self._doubtful_steps = self._doubtful_steps, {}
        for step in doubtful:
            self._leave(step)
            if step.id:
                gone.add(step.id)
        for step in doubtful:
            if not step.carriers and not step.entries:
                if step.key is not None and self._explicit.get(step.key) is step:
                    del self._explicit[step.key]
                self._set_sources(step, {})
                continue
            built = self._build(step)
            if step.id not in self._deleted_steps:
                made[step.id] = built
        deleted = tuple(step_id for step_id in gone if step_id not in made and self._step_rows.pop(step_id, None))
        written = [
            (step_id, built)
            for step_id, built in made.items()
            if self._step_rows.get(step_id) != (built.step, built.metrics)
        ]
        self._step_rows.update((step_id, (built.step, built.metrics)) for step_id, built in written)
        return (
            tuple(built.step for _, built in written),
            tuple(built.metrics for _, built in written),
            deleted,
            [built for _, built in written],
        )

    def _leave(self, step: Step) -> None:
        """Take a step out of its run, as it was built."""
        if step.run is not None and step.built is not None:
            self._doubtful_runs[step.run] = None
            step.run.discount(step, step.built)
        if step.scope is not None:
            step.scope.steps.pop(step, None)
        for agent in step.agents:
            self._agent_steps[agent].pop(step, None)
        step.agents.clear()
        if step.parent_tool is not None:
            self._inner_steps[step.parent_tool].pop(step, None)
        step.scope = step.parent_tool = None

    def _build(self, step: Step) -> Built:
        anchor = step.anchor()
        assert anchor is not None
        facts, below = anchor.facts, anchor.below
        if not step.id:
            native = step.key is not None and step.key.startswith("id:")
            step.id = step.key[3:] if native and step.key is not None else ids.step_id(self.trace_id, facts.span_id)
        scope = step.scope = self._scope(below.run)
        scope.steps[step] = None
        if below.agent is not None:
            self._depend(step, below.agent)
        run = scope.run
        assert run is not None
        opener = scope.opener()
        last = scope.entries.last
        parent_step_id = self._parent_step_id(step, anchor)
        requests = sorted(step.entries, key=_order) if len(step.entries) > 1 else list(step.entries)
        calls = sorted(step.calls, key=_order) if len(step.calls) > 1 else list(step.calls)
        spans = [closest_to_wire(entry.spans) if len(entry.spans) > 1 else entry.spans for entry in requests]
        parts = StepParts(
            trace_id=self.trace_id,
            id=step.id,
            anchor=facts,
            carriers=tuple(node.facts for node in _led_by(anchor, step.carriers)),
            requests=tuple(tuple(node.facts for node in found) for found in spans),
            calls=tuple(tuple(node.facts for node in _led_by(call.head, call.spans)) for call in calls),
            run_id=run.id if run.id not in self._deleted_runs else None,
            parent_step_id=parent_step_id if parent_step_id not in self._deleted_steps else None,
            agent=below.agent.facts if below.agent is not None else None,
            agent_name=below.agent_name,
            last=last is None or last.step is step,
            outcome=Outcome(opener.facts if opener is not None else None),
            annotations=self._annotations_of(step, calls) if self._annotations else (),
            flags=("parent_inferred",) if any(node.inferred for node in scope.openers.values()) else (),
        )
        built = step.built = build_step(parts)
        if step.id not in self._deleted_steps:
            run.count(step, built)
            self._doubtful_runs[run] = None
        self._set_sources(step, self._sources(step, anchor, requests, spans))
        return built

    def _parent_step_id(self, step: Step, anchor: Node) -> str | None:
        """The step around a step: the explicit one that it lies in, or the one whose tool called its run or itself."""
        above = anchor.context
        if above.step is not None and above.step != step.key:
            return self._explicit_step_id(above.step)
        opener = anchor
        while opener.opened is None:
            if opener.context.tool is not None or opener.context.agent is None:
                break
            opener = opener.context.agent
            self._depend(step, opener)
        above = opener.context
        if above.step is not None and above.step != step.key:
            return self._explicit_step_id(above.step)
        if above.tool is None:
            return None
        step.parent_tool = above.tool
        self._inner_steps.setdefault(above.tool, {})[step] = None
        call = self._calls.get(above.tool)
        asking = call.step if call is not None else None
        return self._id_of(asking) if asking is not None and asking is not step else None

    def _depend(self, step: Step, agent: Node) -> None:
        """Make a step again when an agent changes."""
        step.agents[agent] = None
        self._agent_steps.setdefault(agent, {})[step] = None

    def _id_of(self, step: Step) -> str | None:
        if step.key is not None:
            return self._explicit_step_id(step.key)
        anchor = step.anchor()
        return ids.step_id(self.trace_id, anchor.facts.span_id) if anchor is not None else None

    def _explicit_step_id(self, key: str) -> str:
        return key[3:] if key.startswith("id:") else ids.step_id(self.trace_id, key)

    def _annotations_of(self, step: Step, calls: list[Call]) -> tuple[Annotation, ...]:
        spans = [*step.carriers]
        spans += [node.facts.span_id for entry in step.entries for node in entry.spans]
        spans += [span_id for call in calls for span_id in call.spans]
        return tuple(note for span_id in spans for note in self._annotations.get(span_id, {}).values())

    # ---- runs

    def _build_runs(self) -> tuple[tuple[RunRow, ...], tuple[str, ...]]:
        written: list[RunRow] = []
        deleted: list[str] = []
        todo = list(self._doubtful_runs)
        self._doubtful_runs.clear()
        for run in todo:  # whether a run is there decides what those that it called give as their parent
            if run.has_row() != (run.row is not None):
                for scope in run.scopes.values():
                    for called in scope.called.values():
                        if called.run is not None and called.run not in todo:
                            todo.append(called.run)
        for run in todo:
            row = self._run_row(run) if run.has_row() and run.id not in self._deleted_runs else None
            if row is None:
                if run.row is not None:
                    deleted.append(run.id)
                if not run.scopes and not len(run.steps) and run.id in self._runs:
                    del self._runs[run.id]
            elif row != run.row:
                written.append(row)
            run.row = row
        return tuple(written), tuple(deleted)

    def _run_row(self, run: RunState) -> RunRow:
        opener = run.opener()
        first, last = run.steps.first, run.steps.last
        prompt, completion = run.sums
        token = conversation = None
        if run.with_first_token:
            token = next(
                step.built.first_token_ns
                for step in run.steps
                if step.built is not None and step.built.first_token_ns is not None
            )
        if run.with_conversation:
            conversation = next(
                step.built.conversation_id
                for step in run.steps
                if step.built and step.built.conversation_id is not None
            )
        return build_run(
            RunParts(
                trace_id=self.trace_id,
                id=run.id,
                opener=opener.facts if opener is not None else None,
                parent_run_id=self._parent_run_id(run, opener),
                first=first.built.step if first is not None and first.built is not None else None,
                last=last.built.step if last is not None and last.built is not None else None,
                start_ns=first.built.metrics.step_start_ns if first is not None and first.built is not None else None,
                end_ns=run.steps.latest_end,
                first_token_ns=token,
                conversation_id=conversation,
                step_count=len(run.steps),
                prompt_tokens=prompt,
                completion_tokens=completion,
                open_steps=run.open_steps,
            )
        )

    def _parent_run_id(self, run: RunState, opener: Node | None) -> str | None:
        """The run that the opener stands in, if an agent is above it or a tool or step called it."""
        if opener is None or (opener.context.agent is None and not opener.context.between and not opener.context.run):
            return None
        outer = self._scope(opener.context.run).run
        if outer is None or outer is run or outer.id in self._deleted_runs or not outer.has_row():
            return None
        return outer.id

    # ---- messages

    def _sources(self, step: Step, anchor: Node, requests: list[Entry], spans: list[list[Node]]) -> dict[str, Source]:
        """The prompts and answers of a step: of each request from the span closest to the wire that has them."""
        step_id = step.id if step.id not in self._deleted_steps else None
        sources: dict[str, Source] = {}
        for entry, found in zip(requests, spans, strict=True):
            inputs = next((node.facts.input_messages for node in found if node.facts.input_messages), ())
            outputs = next((node.facts.output_messages for node in found if node.facts.output_messages), ())
            if inputs or outputs:
                sources[entry.spans[0].facts.span_id] = Source(entry.order, step_id, inputs, outputs)
        if not requests and (anchor.facts.input_messages or anchor.facts.output_messages):
            facts = anchor.facts
            sources[facts.span_id] = Source(anchor.order, step_id, facts.input_messages, facts.output_messages)
        return sources

    def _set_sources(self, step: Step, sources: dict[str, Source]) -> None:
        tree = step.scope.run.messages if sources and step.scope is not None and step.scope.run is not None else None
        for span_id, (held, source) in list(step.sources.items()):
            if held is not tree or sources.get(span_id) != source:
                held.remove(source)
                self._doubtful_messages[held] = None
                del step.sources[span_id]
        for span_id, source in sources.items():
            if span_id not in step.sources and tree is not None:
                tree.add(source)
                self._doubtful_messages[tree] = None
                step.sources[span_id] = (tree, source)

    def _build_messages(self) -> tuple[tuple[MessageRow, ...], tuple[str, ...]]:
        written: list[MessageRow] = []
        deleted: list[str] = []
        for tree in self._doubtful_messages:
            run_id = tree.start if tree.start not in self._deleted_runs else None
            for said in tree.dirty.values():
                row = tree.row(said, self.trace_id, run_id)
                if self._message_rows.get(row.id) != row:
                    self._message_rows[row.id] = row
                    written.append(row)
            deleted += [message_id for message_id in tree.gone if self._message_rows.pop(message_id, None)]
            tree.dirty.clear()
            tree.gone.clear()
        self._doubtful_messages.clear()
        return tuple(written), tuple(deleted)

    # ---- small things

    def _delete(self, deletion: Deletion) -> None:
        if deletion.kind == "trace":
            self._deleted = True
        elif deletion.kind == "run":
            self._deleted_runs.add(deletion.id)
            run = self._runs.get(deletion.id)
            if run is not None:
                self._doubtful_scopes.update(dict.fromkeys(run.scopes.values()))
                self._doubtful_steps.update(dict.fromkeys(run.steps))
                run.messages.doubt_all()
                self._doubtful_messages[run.messages] = None
                for scope in run.scopes.values():
                    self._doubtful_runs.update({called.run: None for called in scope.called.values() if called.run})
        elif deletion.kind == "step":
            self._deleted_steps.add(deletion.id)
            for scope in self._scopes.values():
                for step in scope.steps:
                    parent = step.built.step.parent_step_id if step.built is not None else None
                    if deletion.id in (step.id, parent):
                        self._doubtful_steps[step] = None

    def _scope(self, key: str) -> Scope:
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = Scope(key)
            self._doubtful_scopes[scope] = None
        return scope

    def _explicit_step(self, key: str) -> Step:
        step = self._explicit.get(key)
        if step is None:
            step = self._explicit[key] = Step(key)
        return step

    def _step_of(self, node: Node) -> Step | None:
        below = node.below
        if below.step is not None:
            return self._explicit.get(below.step)
        role = node.facts.role
        if role in _AGENTS:
            return node.request.step if node.request is not None else None
        llm = node if role is Role.LLM else below.llm
        if llm is not None and llm.request is not None:
            return llm.request.step
        tool = below.tool
        return self._calls[tool].step if tool is not None and tool in self._calls else None


def _order(item: Node | Entry | Call) -> Order:
    return item.order


def _led_by(first: Node, nodes: Mapping[str, Node]) -> Iterable[Node]:
    """The nodes by (start, span_id), one of them first."""
    if len(nodes) < 2:
        return nodes.values()
    return sorted(nodes.values(), key=lambda node: (node is not first, node.order))
