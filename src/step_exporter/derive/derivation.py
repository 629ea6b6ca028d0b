"""Facts of one trace in, changes of its rows out: the incremental derivation.

For every order, batching and duplication of facts, the changes folded together equal what deriving everything
at once gives. ``Loop`` tells which steps and runs became doubtful; here their rows are made again, and compared with
those handed out before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter

from step_exporter.derive import ids
from step_exporter.derive.intervals import Order, by_order
from step_exporter.derive.logs import Logs
from step_exporter.derive.loop import Loop
from step_exporter.derive.messages import MessageTree, Source
from step_exporter.derive.plain import derive_plain
from step_exporter.derive.requests import closest_to_wire
from step_exporter.derive.rows import Changes, MessageRow, RunRow, StepMetricsRow, StepRow
from step_exporter.derive.runs import RunParts, build_run
from step_exporter.derive.state import Call, Entry, RunState, Step
from step_exporter.derive.steps import Built, Outcome, StepParts, build_step
from step_exporter.derive.tree import Node, may_be_called
from step_exporter.facts import Annotation, Deletion, SpanFacts


class Derivation:
    """What is known of one trace, and the rows that follow from it."""

    def __init__(self, trace_id: str, *, is_whole: bool = False) -> None:
        """
        Args:
            trace_id: Whose facts these are.
            is_whole: The first facts are probably the last: of a plain trace nothing is kept but its rows, and what
                comes after all has to come with all facts again, to another derivation.
        """
        self.trace_id = trace_id
        self._is_whole = is_whole
        if not is_whole:
            self._begin()

    def _begin(self) -> None:
        """What is kept: 25 containers, and a plain trace needs none of them."""
        self._loop = Loop()
        self._logs = Logs()
        self._runs: dict[str, RunState] = {}
        self._annotations: dict[str, dict[str, Annotation]] = {}
        self._deleted_steps: set[str] = set()
        self._deleted_runs: set[str] = set()
        self._deleted = False
        # The rows as last handed out
        self._step_rows: dict[str, Built] = {}
        self._message_rows: dict[str, MessageRow] = {}
        # Empty between two calls of ``apply``
        self._doubtful_runs: dict[RunState, None] = {}
        self._doubtful_messages: dict[MessageTree, None] = {}

    def __len__(self) -> int:
        return 0 if self._is_whole else len(self._loop.tree.nodes)

    def __contains__(self, span_id: str) -> bool:
        return span_id in self._loop.tree.nodes

    def step_of(self, span_id: str) -> str | None:
        """The id of the step that a span belongs to: it is one of its spans, or lies below one."""
        node = self._loop.tree.nodes.get(span_id)
        step = self._loop.step_of(node) if node is not None else None
        return step.id if step is not None and step.id in self._step_rows else None

    def apply(self, facts: Iterable[SpanFacts | Annotation | Deletion]) -> Changes:
        """Take new facts, and new versions of known ones, in any order. Returns the rows to write and to delete."""
        if self._is_whole:
            facts = list(facts)
            plain = derive_plain(self.trace_id, facts)
            if plain is not None:
                return plain
            self._is_whole = False
            self._begin()
        spans: list[SpanFacts] = []
        annotated: list[str] = []
        for fact in facts:
            if isinstance(fact, SpanFacts):
                spans.append(fact)
            elif isinstance(fact, Annotation):
                self._annotations.setdefault(fact.span_id, {})[fact.key] = fact
                annotated.append(fact.span_id)
            else:
                self._delete(fact)
        self._loop.take(self._logs.merge(spans, self._loop.tree.nodes))
        for span_id in annotated:
            self._loop.doubt(span_id)
        changes = self._changes()
        return Changes() if self._deleted else changes  # the store has no row of it any more

    def __del__(self) -> None:
        """Break the circles in which what is known refers to itself: the garbage collector does not look at them
        (``Linked``). Nothing in them refers to the derivation, so this happens as soon as it is let go of."""
        if self._is_whole:
            return
        self._loop.release()
        for run in self._runs.values():
            run.release()

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
        for scope in self._loop.doubtful_scopes:
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
                    self._loop.doubtful_steps[step] = None
                for called in scope.called.values():
                    if called.run is not None:
                        self._doubtful_runs[called.run] = None
            self._doubtful_runs[run] = None
        self._loop.doubtful_scopes.clear()

    def _build_steps(self) -> tuple[tuple[StepRow, ...], tuple[StepMetricsRow, ...], tuple[str, ...], list[Built]]:
        gone: set[str] = set()
        made: dict[str, Built] = {}
        doubtful, self._loop.doubtful_steps = self._loop.doubtful_steps, {}
        for step in sorted(doubtful, key=by_order, reverse=True):  # as in ``Loop.take``
            self._leave(step)
            if step.id:
                gone.add(step.id)
        counted: list[tuple[Order, Step, RunState, Built]] = []
        sources: list[tuple[Step, dict[str, Source]]] = []
        for step in doubtful:
            if not step.carriers and not step.entries:
                if step.key is not None and self._loop.explicit.get(step.key) is step:
                    del self._loop.explicit[step.key]
                sources.append((step, {}))
                continue
            built, run, told_by = self._build(step)
            sources.append((step, told_by))
            if step.id not in self._deleted_steps:
                made[step.id] = built
                counted.append(((built.step.created_ns, built.step.span_id), step, run, built))
        for _, step, run, built in sorted(counted, key=_first):
            run.count(step, built)
            self._doubtful_runs[run] = None
        self._set_sources(sources)
        told = self._step_rows
        deleted = tuple([step_id for step_id in gone if step_id not in made and told.pop(step_id, None)])
        written: list[Built] = []
        for step_id, built in made.items():
            before = told.get(step_id)
            if before is None or before.step != built.step or before.metrics != built.metrics:
                written.append(built)
            told[step_id] = built
        steps, metrics = [built.step for built in written], [built.metrics for built in written]
        return tuple(steps), tuple(metrics), deleted, written

    def _leave(self, step: Step) -> None:
        """Take a step out of its run, as it was built."""
        if step.run is not None and step.built is not None:
            self._doubtful_runs[step.run] = None
            step.run.discount(step, step.built)
        if step.scope is not None:
            step.scope.steps.pop(step, None)
        for agent in step.agents:
            self._loop.agent_steps[agent].pop(step, None)
        step.agents.clear()
        if step.parent_tool is not None:
            self._loop.inner_steps[step.parent_tool].pop(step, None)
        step.scope = step.parent_tool = None

    def _build(self, step: Step) -> tuple[Built, RunState, dict[str, Source]]:
        anchor = step.anchor()
        assert anchor is not None
        facts, below = anchor.facts, anchor.below
        if not step.id:
            native = step.key is not None and step.key.startswith("id:")
            step.id = step.key[3:] if native and step.key is not None else ids.step_id(self.trace_id, facts.span_id)
        scope = step.scope = self._loop.scope(below.run)
        scope.steps[step] = None
        if below.agent is not None:
            self._depend(step, below.agent)
        run = scope.run
        assert run is not None
        opener = scope.opener()
        last = scope.entries.last
        parent_step_id = self._parent_step_id(step, anchor)
        requests = sorted(step.entries, key=by_order) if len(step.entries) > 1 else list(step.entries)
        calls = sorted(step.calls, key=by_order) if len(step.calls) > 1 else list(step.calls)
        spans = [closest_to_wire(entry.spans) if len(entry.spans) > 1 else entry.spans for entry in requests]
        parts = StepParts(  # by position, and of lists: with keywords and generators this took a third of the time
            self.trace_id,
            step.id,
            facts,
            tuple([node.facts for node in _led_by(anchor, step.carriers)]),
            tuple([tuple([node.facts for node in found]) for found in spans]),
            tuple([tuple([node.facts for node in _led_by(call.head, call.spans)]) for call in calls]),
            run.id if run.id not in self._deleted_runs else None,
            parent_step_id if parent_step_id not in self._deleted_steps else None,
            below.agent.facts if below.agent is not None else None,
            below.agent_name,
            last is None or last.step is step,
            Outcome(opener.facts if opener is not None else None),
            self._annotations_of(step, calls) if self._annotations else (),
            ("parent_inferred",) if opener is not None and scope.has_inferred_opener() else (),
        )
        built = step.built = build_step(parts)
        return built, run, self._sources(step, anchor, requests, spans)

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
        self._loop.inner_steps.setdefault(above.tool, {})[step] = None
        call = self._loop.calls.get(above.tool)
        asking = call.step if call is not None else None
        return self._id_of(asking) if asking is not None and asking is not step else None

    def _depend(self, step: Step, agent: Node) -> None:
        """Make a step again when an agent changes."""
        step.agents[agent] = None
        self._loop.agent_steps.setdefault(agent, {})[step] = None

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
        for run in todo:  # whether a run is there decides what those that it called give as their parent
            if run.has_row() != (run.row is not None):
                for scope in run.scopes.values():
                    for called in scope.called.values():
                        if called.run is not None and called.run not in self._doubtful_runs:
                            self._doubtful_runs[called.run] = None
                            todo.append(called.run)
        self._doubtful_runs.clear()
        for run in todo:
            row = self._run_row(run) if run.has_row() and run.id not in self._deleted_runs else None
            if row is None:
                if run.row is not None:
                    deleted.append(run.id)
                if not run.scopes and not len(run.steps) and run.id in self._runs:
                    del self._runs[run.id]
                    run.release()
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
                agents_failed=run.agents_failed(opener),
            )
        )

    def _parent_run_id(self, run: RunState, opener: Node | None) -> str | None:
        """The run that the opener stands in, if an agent is above it or a tool or step called it."""
        if opener is None or not may_be_called(opener.context):
            return None
        outer = self._loop.scope(opener.context.run).run
        if outer is None or outer is run or outer.id in self._deleted_runs or not outer.has_row():
            return None
        return outer.id

    # ---- messages

    def _sources(self, step: Step, anchor: Node, requests: list[Entry], spans: list[list[Node]]) -> dict[str, Source]:
        """The prompts and answers of a step: of each request from the span closest to the wire that has them."""
        step_id = step.id if step.id not in self._deleted_steps else None
        sources: dict[str, Source] = {}
        for entry, found in zip(requests, spans, strict=True):
            inputs = outputs = ()
            for node in found:
                inputs = inputs or node.facts.input_messages
                outputs = outputs or node.facts.output_messages
            if inputs or outputs:
                sources[entry.spans[0].facts.span_id] = Source(entry.order, step_id, inputs, outputs)
        if not requests and (anchor.facts.input_messages or anchor.facts.output_messages):
            facts = anchor.facts
            sources[facts.span_id] = Source(anchor.order, step_id, facts.input_messages, facts.output_messages)
        return sources

    def _set_sources(self, of_steps: list[tuple[Step, dict[str, Source]]]) -> None:
        """Have the messages told by these. The last ones go first: the first source of a message is looked for again
        where it goes, among all that follow it."""
        stale: list[tuple[Step, str, MessageTree, Source]] = []
        fresh: list[tuple[Step, str, MessageTree, Source]] = []
        for step, sources in of_steps:
            scope = step.scope
            tree = scope.run.messages if sources and scope is not None and scope.run is not None else None
            for span_id, (held, source) in step.sources.items():
                if held is not tree or sources.get(span_id) != source:
                    stale.append((step, span_id, held, source))
            if tree is not None:
                fresh += [(step, span_id, tree, source) for span_id, source in sources.items()]
        for step, span_id, tree, source in sorted(stale, key=_order_of_source, reverse=True):
            tree.remove(source)
            self._doubtful_messages[tree] = None
            del step.sources[span_id]
        for step, span_id, tree, source in sorted(fresh, key=_order_of_source):
            if span_id not in step.sources:
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
                self._loop.doubtful_scopes.update(dict.fromkeys(run.scopes.values()))
                self._loop.doubtful_steps.update(dict.fromkeys(run.steps))
                run.messages.doubt_all()
                self._doubtful_messages[run.messages] = None
                for scope in run.scopes.values():
                    self._doubtful_runs.update({called.run: None for called in scope.called.values() if called.run})
        elif deletion.kind == "step":
            self._deleted_steps.add(deletion.id)
            for scope in self._loop.scopes.values():
                for step in scope.steps:
                    parent = step.built.step.parent_step_id if step.built is not None else None
                    if deletion.id in (step.id, parent):
                        self._loop.doubtful_steps[step] = None


_first = itemgetter(0)


def _order_of_source(of: tuple[Step, str, MessageTree, Source]) -> Order:
    return of[3].order


def _led_by(first: Node, nodes: Mapping[str, Node]) -> Iterable[Node]:
    """The nodes by (start, span_id), one of them first."""
    if len(nodes) < 2:
        return nodes.values()
    return sorted(nodes.values(), key=lambda node: (node is not first, node.order))
