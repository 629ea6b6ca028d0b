"""Keeps spans that have nothing to do with agents out of the database.

A *local tree* is a local root (a span without a parent, or with one in another process) and what is below it. In a
web service most trees are health checks and page views: their spans wait here, in bounded memory, until one of them
turns out to be a step, a workflow, an agent, an LLM request or a tool; then the whole tree is written, and what is
still to come of it. A tree whose root has ended without is let go. Where its root was called by another process, that
one may hold who called an agent that goes on in the background: then it is remembered for a while, and taken back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from step_exporter.facts import REDACTION_FAILED, Role, SpanFacts
from step_exporter.store.prepare import Prepared

Key = tuple[str, str]
"""A trace's id and a span's."""


def is_meaningful(facts: SpanFacts) -> bool:
    """Whether a span makes its tree worth keeping. Where its redaction failed nobody can say."""
    return (
        facts.role is not Role.OTHER
        or facts.step_id is not None
        or facts.run_id is not None
        or REDACTION_FAILED in facts.flags
    )


class Sifted(NamedTuple):
    """What to do with spans now."""

    to_write: list[Prepared]
    let_go: int
    """How many were let go, spans that had waited included, less those that were taken back."""


@dataclass(slots=True, eq=False)
class _Tree:
    """The spans that are known to hang together. Children mostly end before their parents, so it grows at its top,
    where a parent that has not ended yet is known by its id only."""

    waiting: list[Prepared] = field(default_factory=list[Prepared])
    counted: int = 0
    """How many of these, from the first on, are counted as waiting."""
    chars: int = 0
    """Their characters."""
    keys: list[Key] = field(default_factory=list[Key])
    """The ids that lead here: of spans, and of parents that have not ended."""
    meaningful: bool = False
    ended: bool = False
    """Whether its root has ended."""
    called: bool = False
    """Whether its root has a parent in another process."""
    let_go: list[Prepared] = field(default_factory=list[Prepared])
    """What was let go and is remembered."""
    let_go_chars: int = 0


class LocalTrees:
    """Sifts the ended spans of one process; a span costs the same in a large tree as in a small. Not thread-safe."""

    def __init__(self, max_spans: int = 10_000, max_chars: int = 32 << 20) -> None:
        """
        Args:
            max_spans: Spans that wait at most; four times as many ids are remembered, and of those that were let go a
                quarter as many spans.
            max_chars: Characters of attributes that wait at most. Beyond a bound, the trees that were quiet for
                longest are written rather than dropped, and forgotten.
        """
        self._max_spans = max_spans
        self._max_chars = max_chars
        self._waiting = 0
        self._chars = 0
        self._by_key: dict[Key, _Tree] = {}
        self._trees: OrderedDict[_Tree, None] = OrderedDict()
        self._let_go: OrderedDict[_Tree, None] = OrderedDict()  # that remember what was let go
        self._let_go_spans = 0
        self._let_go_chars = 0

    @property
    def waiting(self) -> int:
        """How many spans wait."""
        return self._waiting

    def add(self, spans: Iterable[Prepared]) -> Sifted:
        """Take ended spans, in any order."""
        touched: dict[_Tree, None] = {}
        by_key = self._by_key
        for span in spans:
            raw = span.encoded.raw
            parent_id = raw.parent_span_id
            is_root = parent_id is None or raw.parent_is_remote is True
            own = (raw.trace_id, raw.span_id)
            above = None if is_root else (raw.trace_id, parent_id or "")
            tree = by_key.get(above) if above is not None and own not in by_key else None
            if tree is None:  # else it is one more in a tree, as most spans are
                tree = self._tree_of(own, above, touched)
            else:
                by_key[own] = tree
                tree.keys.append(own)
            tree.waiting.append(span)
            if is_root and raw.ended:
                tree.ended = True
                tree.called = parent_id is not None
            if not tree.meaningful:
                tree.meaningful = is_meaningful(span.facts)
            touched[tree] = None
        to_write: list[Prepared] = []
        let_go = 0
        for tree in touched:
            self._trees.move_to_end(tree)
            if tree.meaningful:
                taken_back = self._taken_back(tree)
                let_go -= len(taken_back)
                to_write += taken_back
                to_write += self._emptied(tree)
            elif tree.ended:
                gone = self._emptied(tree)
                let_go += len(gone)
                if tree.called:
                    self._remember(tree, gone)
            else:
                self._count(tree)
        return Sifted(to_write + self._shrink(), let_go)

    def drain(self) -> list[Prepared]:
        """Everything that waits, to be written: at the end nobody knows what it would have become."""
        spans = [span for tree in self._trees for span in self._emptied(tree)]
        self._by_key.clear()
        self._trees.clear()
        self._let_go.clear()
        self._let_go_spans = self._let_go_chars = 0
        return spans

    def _tree_of(self, own: Key, above: Key | None, touched: dict[_Tree, None]) -> _Tree:
        """The tree of a span: the one below it and the one above become one."""
        below = self._by_key.get(own)
        parent = self._by_key.get(above) if above is not None else None
        if below is not None and parent is not None:
            tree = below if below is parent else self._joined(below, parent, touched)
        else:
            tree = below or parent or _Tree()
        for key in (own, above):
            if key is not None and key not in self._by_key:
                self._by_key[key] = tree
                tree.keys.append(key)
        self._trees[tree] = None
        return tree

    def _joined(self, one: _Tree, other: _Tree, touched: dict[_Tree, None]) -> _Tree:
        """The two as one: the smaller goes into the larger, so that an id moves at most log(n) times."""
        if len(one.keys) < len(other.keys):
            one, other = other, one
        for key in other.keys:
            self._by_key[key] = one
        one.keys += other.keys
        self._count(one)
        self._count(other)
        one.waiting += other.waiting
        one.counted += other.counted
        one.chars += other.chars
        one.meaningful = one.meaningful or other.meaningful
        one.ended = one.ended or other.ended
        one.called = one.called or other.called
        if other.let_go:
            del self._let_go[other]
            one.let_go += other.let_go
            one.let_go_chars += other.let_go_chars
            self._let_go[one] = None
        del self._trees[other]
        touched.pop(other, None)
        return one

    def _emptied(self, tree: _Tree) -> list[Prepared]:
        """Take what waits. The tree stays known, so that what is still to come of it goes the same way."""
        spans, tree.waiting = tree.waiting, []
        self._waiting -= tree.counted
        self._chars -= tree.chars
        tree.counted = tree.chars = 0
        return spans

    def _remember(self, tree: _Tree, spans: list[Prepared]) -> None:
        """Keep in mind what is let go; of all trees, those of which something was let go last."""
        # what goes out to other services is not what work in the background hangs under
        spans = [span for span in spans if span.encoded.raw.kind != "client"]
        chars = sum(span.encoded.chars for span in spans)
        if spans:
            tree.let_go += spans
            tree.let_go_chars += chars
            self._let_go_spans += len(spans)
            self._let_go_chars += chars
            self._let_go[tree] = None
            self._let_go.move_to_end(tree)
        while 4 * self._let_go_spans > self._max_spans or 4 * self._let_go_chars > self._max_chars:
            self._taken_back(next(iter(self._let_go)))

    def _taken_back(self, tree: _Tree) -> list[Prepared]:
        """What is remembered of a tree that was let go, and from now on no more."""
        spans = tree.let_go
        if spans:
            del self._let_go[tree]
            self._let_go_spans -= len(spans)
            self._let_go_chars -= tree.let_go_chars
            tree.let_go, tree.let_go_chars = [], 0
        return spans

    def _count(self, tree: _Tree) -> None:
        """Count what has come since the last time."""
        spans = tree.waiting[tree.counted :]
        chars = sum(span.encoded.chars for span in spans)
        self._waiting += len(spans)
        self._chars += chars
        tree.counted += len(spans)
        tree.chars += chars

    def _shrink(self) -> list[Prepared]:
        """Forget trees, quiet ones first, while there is too much; what waits in them is to be written."""
        to_write: list[Prepared] = []
        while self._trees and (
            self._waiting > self._max_spans or self._chars > self._max_chars or len(self._by_key) > 4 * self._max_spans
        ):
            tree, _ = self._trees.popitem(last=False)
            to_write += self._emptied(tree)
            self._taken_back(tree)
            for key in tree.keys:
                del self._by_key[key]
        return to_write
