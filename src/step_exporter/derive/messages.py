"""The messages of a run, as a tree: each prompt and its answer is a path, what paths share is stored once.

A message's id is a hash of what was said and of what came before it, from the run on. So an answer and its echo in
the next prompt are one message, two runs never share one, and arrival order does not matter.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring
from typing import TypeVar

from step_exporter.facts import Message, ToolCall, Value

from . import ids
from .intervals import Order
from .linked import Linked
from .rows import MessageRow


class Source(Value, frozen=True):
    """A span whose prompt and answer are a path."""

    order: Order
    """Of the span: an earlier span's prompt claims a message first."""
    step_id: str | None
    inputs: tuple[Message, ...]
    outputs: tuple[Message, ...]


class Said(Linked, eq=False):
    """A message in the tree."""

    id: str
    parent: Said | None
    position: int
    kids: dict[str, Said] = {}
    by_message: dict[tuple[object, ...], Said] = {}
    """Spares the hash of what was said before."""
    prompts: list[tuple[Order, Source]] = []
    """Prompts that end here."""
    answers: list[tuple[Order, int, Source]] = []
    """Answers that this is part of, with its index there."""
    first_input: Source | None = None
    """The first prompt that contains it."""


class MessageTree:
    """All messages of one run. ``add`` and ``remove`` collect what changed in ``dirty``."""

    __slots__ = ("_last", "dirty", "gone", "root", "start")

    def __init__(self, start: str) -> None:
        self.start = start
        self.root = Said(start, None, -1)
        self.dirty: dict[str, Said] = {}
        self.gone: set[str] = set()
        self._last: tuple[tuple[Message, ...], Said] = ((), self.root)
        """The prompt added last, and where it ends: the next one mostly continues it."""

    def add(self, source: Source) -> None:
        """Take in a span's prompt and answer."""
        inputs = source.inputs
        known, node = self._last
        if inputs[: len(known)] != known:
            known, node = (), self.root
        for message in inputs[len(known) :]:
            node = self._kid(node, message)
        self._last = inputs, node
        _insert(node.prompts, (source.order, source))
        walk = node
        while walk.parent is not None:
            first = walk.first_input
            if first is not None and first.order <= source.order:
                break
            walk.first_input = source
            self.dirty[walk.id] = walk
            walk = walk.parent
        for index, message in enumerate(source.outputs):
            node = self._kid(node, message)
            _insert(node.answers, (source.order, index, source))
            self.dirty[node.id] = node

    def remove(self, source: Source) -> None:
        """Take a span's prompt and answer out again."""
        self._last = (), self.root
        node = self.root
        path: list[Said] = []
        for message in source.inputs:
            node = self._kid(node, message)
        path.append(node)
        del node.prompts[_index(node.prompts, source)]
        for message in source.outputs:
            node = self._kid(node, message)
            del node.answers[_index(node.answers, source)]
            self.dirty[node.id] = node
            path.append(node)
        walk = path[0]
        while walk.parent is not None and walk.first_input is source:  # else it is not the first above either
            candidates = [kid.first_input for kid in walk.kids.values() if kid.first_input is not None]
            candidates += [walk.prompts[0][1]] if walk.prompts else []
            walk.first_input = min(candidates, key=lambda other: other.order, default=None)
            self.dirty[walk.id] = walk
            walk = walk.parent
        for node in reversed(path):
            self._prune(node)

    def doubt_all(self) -> None:
        """Have every row made again."""
        todo = list(self.root.kids.values())
        while todo:
            said = todo.pop()
            self.dirty[said.id] = said
            todo.extend(said.kids.values())

    def release(self) -> None:
        """Break the circles of references, see ``Derivation.__del__``."""
        todo = [self.root]
        while todo:
            said = todo.pop()
            todo.extend(said.kids.values())
            said.parent = None
            said.kids.clear()
            said.by_message.clear()

    def _kid(self, node: Said, message: Message) -> Said:
        said = (message.role, message.text, message.tool_calls)
        kid = node.by_message.get(said)
        if kid is not None and node.kids.get(kid.id) is kid:
            return kid
        message_id = _id(node.id, message)
        kid = node.kids.get(message_id)
        if kid is None:
            kid = node.kids[message_id] = Said(message_id, node, node.position + 1)
            self.gone.discard(message_id)
            self.dirty[message_id] = kid
        node.by_message[said] = kid
        return kid

    def _prune(self, node: Said) -> None:
        while node.parent is not None and not (node.kids or node.prompts or node.answers):
            if node.parent.kids.pop(node.id, None) is None:
                return  # gone with what was below it
            self.dirty.pop(node.id, None)
            self.gone.add(node.id)
            node.by_message.clear()  # of those that went before it, which refer to it
            node = node.parent

    def row(self, said: Said, trace_id: str, run_id: str | None) -> MessageRow:
        """A message's row, told by the first step whose answer it is, else by the first whose prompt has it."""
        if said.answers:
            _, index, source = said.answers[0]
            message = source.outputs[index]
        else:
            assert said.first_input is not None
            source = said.first_input
            message = source.inputs[said.position]
        parent = said.parent
        before = parent.id if parent is not None and parent.parent is not None else None
        return _row(message, trace_id, said.id, before, source.step_id, run_id, said.position)


def rows_at_once(trace_id: str, run_id: str, sources: Iterable[Source]) -> list[MessageRow]:
    """The rows of all messages of a run, whose prompts and answers come in order: those of a ``MessageTree``, without
    what it needs to go on."""
    rows: dict[str, MessageRow] = {}
    answers: set[str] = set()
    known: tuple[Message, ...] = ()
    path: list[str] = []
    for source in sources:
        inputs, step_id = source.inputs, source.step_id
        if inputs[: len(known)] != known:
            known, path = (), []
        for message in inputs[len(known) :]:
            before = path[-1] if path else None
            message_id = _id(before or run_id, message)
            if message_id not in rows:
                rows[message_id] = _row(message, trace_id, message_id, before, step_id, run_id, len(path))
            path.append(message_id)
        known = inputs
        before, position = path[-1] if path else None, len(path)
        for message in source.outputs:
            message_id = _id(before or run_id, message)
            if message_id not in answers:
                answers.add(message_id)
                rows[message_id] = _row(message, trace_id, message_id, before, step_id, run_id, position)
            before = message_id
            position += 1
    return list(rows.values())


def _id(start: str, message: Message) -> str:
    calls: list[str] = []
    for call in message.tool_calls:
        calls += (call.name or "", call.arguments)
    return ids.message_id(start, message.role, message.text, calls)


def _row(
    message: Message,
    trace_id: str,
    message_id: str,
    parent_id: str | None,
    step_id: str | None,
    run_id: str | None,
    position: int,
) -> MessageRow:
    return MessageRow(  # by position: keywords cost 1 µs
        trace_id,
        message_id,
        parent_id,
        message.role,
        message.content_hash,
        message.name,
        _calls_json(message.tool_calls) if message.tool_calls else None,
        message.tool_call_id,
        step_id,
        run_id,
        position,
    )


def _calls_json(calls: Iterable[ToolCall]) -> str:
    """``canonical_json`` of the calls, which are texts: 0.5 µs instead of 3."""
    parts = [
        f'{{"arguments":{_quoted(call.arguments)},"id":{_quoted(call.id)},"name":{_quoted(call.name)}}}'
        for call in calls
    ]
    return f"[{','.join(parts)}]"


def _quoted(text: str | None) -> str:
    return "null" if text is None else encode_basestring(text)


def _place(entry: tuple[Order, Source] | tuple[Order, int, Source]) -> Order:
    return entry[0]


_Entry = TypeVar("_Entry", tuple[Order, Source], tuple[Order, int, Source])


def _insert(entries: list[_Entry], entry: _Entry) -> None:
    """Add an entry in order; nearly always it comes last."""
    if entries and entries[-1][0] > entry[0]:
        insort(entries, entry, key=_place)
    else:
        entries.append(entry)


def _index(entries: Sequence[tuple[Order, Source] | tuple[Order, int, Source]], source: Source) -> int:
    """Where a source stands: by its place, which only its own answers share."""
    index = bisect_left(entries, source.order, key=_place)
    while entries[index][-1] is not source:
        index += 1
    return index
