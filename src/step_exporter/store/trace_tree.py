"""How the runs, steps and spans of a trace hang together: rows in, one flat tree out.

Nothing here trusts the links: a parent may be missing, may be its own child, or a thousand spans may name
each other in a circle. What no root leads to is shown from its earliest member on, so every row is shown
exactly once. No recursion: a chain may be as deep as the trace is long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from step_exporter.store.records import RunRecord, SpanRecord, StepRecord, TreeNode

Key = tuple[str, str]
"""Kind and id; a run, a step and a span may have the same id."""


def arrange(
    runs: Sequence[RunRecord], steps: Sequence[StepRecord], spans: Sequence[SpanRecord]
) -> tuple[TreeNode, ...]:
    """The tree of a trace. A run stands below the step that started it, else below its parent run; a step
    below the step around it, else below its run; a span below its parent span where both belong to the same
    step or to none, else below its step; the span that a run began with below the run.
    """
    parents = {**_run_parents(runs, steps), **_step_parents(steps), **_span_parents(runs, spans)}
    starts: dict[Key, tuple[int, str]] = {}
    for run in runs:
        starts["run", run.id] = (run.start_ns or 0, run.id)
    for step in steps:
        starts["step", step.id] = (step_start_ns(step), step.span_id)
    for span in spans:
        starts["span", span.span_id] = (span.start_ns or 0, span.span_id)
    order = sorted(starts, key=lambda key: (starts[key], _KINDS[key[0]]))

    children: dict[Key, list[Key]] = {}
    roots: list[Key] = []
    for key in order:
        parent = parents.get(key)
        if parent is None or parent == key or parent not in starts:
            roots.append(key)
        else:
            children.setdefault(parent, []).append(key)

    nodes: list[TreeNode] = []
    seen: set[Key] = set()
    for root in (*roots, *order):  # after the roots, whoever is still unseen is on or below a cycle
        _append(root, children, nodes, seen)
    return tuple(nodes)


_KINDS = {"run": 0, "step": 1, "span": 2}


def step_start_ns(step: StepRecord) -> int:
    """When the step began; 0 where that is unknown."""
    return (step.metrics and step.metrics.step_start_ns) or 0


def _append(root: Key, children: dict[Key, list[Key]], nodes: list[TreeNode], seen: set[Key]) -> None:
    stack: list[tuple[Key, int | None]] = [(root, None)]
    while stack:
        key, parent = stack.pop()
        if key in seen:
            continue
        seen.add(key)
        depth = 0 if parent is None else nodes[parent].depth + 1
        kind, id_ = key
        nodes.append(TreeNode(kind, id_, depth, parent))  # pyright: ignore[reportArgumentType]  # kinds above
        place = len(nodes) - 1
        stack.extend((child, place) for child in reversed(children.get(key, ())))


def _run_parents(runs: Iterable[RunRecord], steps: Iterable[StepRecord]) -> dict[Key, Key]:
    parents: dict[Key, Key] = {("run", run.id): ("run", run.parent_run_id) for run in runs if run.parent_run_id}
    run_of = {step.id: step.run_id for step in steps}
    for step in steps:
        outer = step.parent_step_id
        if step.run_id and outer and outer in run_of and run_of[outer] != step.run_id:
            parents["run", step.run_id] = ("step", outer)
    return parents


def _step_parents(steps: Iterable[StepRecord]) -> dict[Key, Key]:
    run_of = {step.id: step.run_id for step in steps}
    parents: dict[Key, Key] = {}
    for step in steps:
        outer = step.parent_step_id
        if outer and outer in run_of and (step.run_id is None or run_of[outer] == step.run_id):
            parents["step", step.id] = ("step", outer)
        elif step.run_id:
            parents["step", step.id] = ("run", step.run_id)
    return parents


def _span_parents(runs: Iterable[RunRecord], spans: Iterable[SpanRecord]) -> dict[Key, Key]:
    begins = {run.span_id: run.id for run in runs if run.span_id}
    step_of = {span.span_id: span.step_id for span in spans}
    parents: dict[Key, Key] = {}
    for span in spans:
        key, outer = ("span", span.span_id), span.parent_span_id
        if span.step_id is None and span.span_id in begins:
            parents[key] = ("run", begins[span.span_id])
        elif outer in step_of and step_of[outer] == span.step_id:
            parents[key] = ("span", outer)  # pyright: ignore[reportArgumentType]  # None is no key of step_of
        elif span.step_id is not None:
            parents[key] = ("step", span.step_id)
        elif outer in step_of:
            parents[key] = ("span", outer)  # pyright: ignore[reportArgumentType]
    return parents
