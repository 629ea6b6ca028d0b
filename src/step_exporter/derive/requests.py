"""Which spans are one LLM request.

Several instrumentations may see one request: a framework's span around a client library's around the SDK's own,
or two siblings. Spans are *compatible* unless something that both carry says otherwise. One request are compatible
spans that are nested with nothing of the agent's loop between; siblings with one response id; siblings of
different scopes, one within the other's time, that agree in something, or one right after the other with the same
counts; a zero-length span that follows a streaming one and carries its usage. A span above several requests (a router,
a retry, a fallback) is none itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from step_exporter.derive.steps import in_caches, in_reasoning, out_of_time
from step_exporter.facts import SpanFacts

from .intervals import Order
from .tree import Node

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .tree import Family


_MINTED = re.compile(r"chatcmpl-[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$|resp_bGl0ZWxsbT")
"""The ids that litellm gives to answers of its own (a UUID; "litellm" in base64): inside, they have the provider's."""


def agreement(a: SpanFacts, b: SpanFacts, *, nested: bool = False) -> int | None:
    """In how many values two LLM spans agree, of those that both carry: None where one of them differs.

    One response id settles it: of one streamed answer two instrumentations counted 47 and 48 tokens. Of ``nested`` ones
    the providers may differ: a client library calls everything that it talks to by its own maker's name. Counts agree
    as well where one of them leaves out what was read from or written to a cache, or reasoning.
    """
    if (
        a.request_id is not None
        and b.request_id is not None
        and not (nested and (_MINTED.match(a.request_id) or _MINTED.match(b.request_id)))
    ):
        return 1 if a.request_id == b.request_id else None
    agreed = 0
    if a.served_model is not None and b.served_model is not None:
        if a.served_model != b.served_model:
            return None
        agreed += 1
    if a.provider_name is not None and b.provider_name is not None:
        if _family(a.provider_name) == _family(b.provider_name):
            agreed += 1
        elif not nested:
            return None
    if a.asked_call_ids and b.asked_call_ids:
        if set(a.asked_call_ids) != set(b.asked_call_ids):
            return None
        agreed += 1
    if a.usage is not None and b.usage is not None:
        for mine, its, left_out in (
            (a.usage.prompt, b.usage.prompt, in_caches),
            (a.usage.completion, b.usage.completion, in_reasoning),
        ):
            if mine is not None and its is not None:
                if mine != its and abs(mine - its) not in (left_out(a.usage), left_out(b.usage)):
                    return None
                agreed += 1
    return agreed


def _family(provider_name: str) -> str:
    """Google's platforms have several names for one model."""
    return "gcp" if provider_name.startswith("gcp.") else provider_name


def is_tail(facts: SpanFacts) -> bool:
    """Whether an LLM span only marks the end of a stream: it takes no time."""
    return facts.end_ns is not None and facts.end_ns == facts.start_ns


def twins(a: Node, b: Node) -> bool:
    """Whether two sibling LLM spans look like one request seen twice (tails apart, see ``tail_of``)."""
    if a.facts.request_id is not None and a.facts.request_id == b.facts.request_id:
        return True
    if a.facts.scope_name == b.facts.scope_name:
        return False
    inside = (a.order[0] <= b.order[0] and b.end <= a.end) or (b.order[0] <= a.order[0] and a.end <= b.end)
    return inside and bool(agreement(a.facts, b.facts))


def tail_of(tail: Node, head: Node | None) -> bool:
    """Whether a zero-length span is the end of the stream that the LLM sibling just before it began."""
    return (
        head is not None
        and is_tail(tail.facts)
        and not is_tail(head.facts)
        and head.facts.usage is None
        and agreement(tail.facts, head.facts) is not None
    )


def handed_on(first: SpanFacts, then: SpanFacts) -> bool:
    """Whether an LLM sibling that comes right after another one has ended is the same request: LlamaIndex's span of a
    stream ends when it hands the stream over, OpenAI's client begins to count then, and both have the same counts."""
    mine, its = first.usage, then.usage
    return (
        first.scope_name != then.scope_name
        and mine is not None
        and its is not None
        and mine.prompt is not None
        and mine.completion is not None
        and (mine.prompt, mine.completion) == (its.prompt, its.completion)
        and first.end_ns is not None
        and then.start_ns is not None
        and first.end_ns <= then.start_ns
        and agreement(first, then) is not None
    )


def sibling_pairs(node: Node, family: Family) -> Iterator[Node]:
    """The LLM siblings that may be one request with this span."""
    llms = family.llms
    seen: set[Node] = {node}
    before, after = llms.before(node.order), llms.after(node.order)
    if before is not None and (tail_of(node, before) or handed_on(before.facts, node.facts)):
        seen.add(before)
        yield before
    if after is not None and (tail_of(after, node) or handed_on(node.facts, after.facts)):
        seen.add(after)
        yield after
    if len(family.scopes) > 1:  # else only those with one response id are twins
        for other in (*llms.covering(node.order[0], node.end), *llms.begun_within(node.order[0], node.end)):
            if other not in seen and twins(node, other):
                seen.add(other)
                yield other
    if node.facts.request_id is not None:
        for other in family.by_request_id.get(node.facts.request_id, {}).values():
            if other not in seen:
                seen.add(other)
                yield other


def is_alone(node: Node, families: Mapping[str, Family]) -> bool:
    """Whether nothing can be one request with an LLM span: what most of them are, told quickly."""
    if node.llm_kids or node.context.llm is not None or is_tail(node.facts):
        return False
    if node.parent_id is None:
        return True
    family = families[node.parent_id]
    if node.facts.request_id is not None and len(family.by_request_id[node.facts.request_id]) > 1:
        return False
    after = family.llms.after(node.order)
    if after is not None and is_tail(after.facts):
        return False
    if len(family.scopes) == 1:  # none of those at the same time is its twin
        return True
    if after is not None and (after.order[0] <= node.end or handed_on(node.facts, after.facts)):
        return False
    before = family.llms.before(node.order)
    if before is not None and handed_on(before.facts, node.facts):
        return False
    return family.llms.reach_before(node.order) < node.order[0]


def component(node: Node, families: Mapping[str, Family]) -> list[Node]:
    """All LLM spans that grouping has to look at together with this one."""
    found = {node: None}
    todo = [node]
    while todo:
        member = todo.pop()
        near: list[Node] = list(member.llm_kids.values())
        if member.context.llm is not None:
            near.append(member.context.llm)
        parent_id = member.parent_id
        if parent_id is not None and len(families[parent_id].llms) > 1:
            near.extend(sibling_pairs(member, families[parent_id]))
        for other in near:
            if other not in found:
                found[other] = None
                todo.append(other)
    return list(found)


def group(members: Sequence[Node], families: Mapping[str, Family]) -> list[list[Node]]:
    """Part the spans of a component into requests; wrappers are in none. The first of each is its anchor: by
    (start, span_id), of those whose times are to be believed."""
    if len(members) == 1:
        return [list(members)]
    groups = {node: [node] for node in members}

    def join(a: Node, b: Node) -> None:
        into, out = groups[a], groups[b]
        into.extend(out)
        for node in out:
            groups[node] = into

    def may_join(a: Node, b: Node, *, nested: bool = False) -> bool:
        return groups[a] is not groups[b] and all(
            agreement(x.facts, y.facts, nested=nested) is not None for x in groups[a] for y in groups[b]
        )

    pairs: list[tuple[int, Order, Order, Node, Node]] = []
    for node in members:
        parent_id = node.parent_id
        if parent_id is not None and len(families[parent_id].llms) > 1:
            for other in sibling_pairs(node, families[parent_id]):
                if node.order < other.order:
                    pairs.append((other.order[0] - node.order[0], node.order, other.order, node, other))
    for _, _, _, a, b in sorted(pairs, key=lambda pair: pair[:3]):
        same_id = a.facts.request_id is not None and a.facts.request_id == b.facts.request_id
        is_end = b.parent_id is not None and families[b.parent_id].llms.before(b.order) is a and tail_of(b, a)
        if may_join(a, b) and (same_id or is_end or _scopes(groups[a]).isdisjoint(_scopes(groups[b]))):
            join(a, b)

    # Nested spans, the innermost first: a span is one with the only request below it, or a wrapper of several.
    kids: dict[Node, list[Node]] = {}
    for node in members:
        if node.context.llm is not None:
            kids.setdefault(node.context.llm, []).append(node)
    wrappers: set[Node] = set()
    below: dict[Node, list[Node]] = {}  # of a wrapper: one span of each request below it
    for node in sorted(kids, key=lambda node: (-depth(node), node.order)):
        inner: dict[int, Node] = {}
        for kid in sorted(kids[node], key=lambda kid: kid.order):
            for member in below[kid] if kid in wrappers else [kid]:
                inner.setdefault(id(groups[member]), member)
        inner.pop(id(groups[node]), None)
        if len(inner) > 1:
            wrappers.add(node)
            below[node] = list(inner.values())
        elif inner:
            (only,) = inner.values()
            if may_join(only, node, nested=True):
                join(only, node)
    distinct = {id(found): found for found in groups.values()}
    return [
        _anchored(kept) for found in distinct.values() if (kept := [node for node in found if node not in wrappers])
    ]


def _anchored(spans: list[Node]) -> list[Node]:
    """The spans of one request in their order, those last whose times say nothing."""
    spans = sorted(spans, key=lambda node: node.order)
    if len(spans) > 1 and any(node.facts.service_name != spans[0].facts.service_name for node in spans):
        off = out_of_time([node.facts for node in spans], closest_to_wire(spans)[-1].facts)
        spans.sort(key=lambda node: node.facts in off)
    return spans


def depth(node: Node) -> int:
    """How many LLM spans a span lies in."""
    count, walk = 0, node.context.llm
    while walk is not None:
        count, walk = count + 1, walk.context.llm
    return count


def closest_to_wire(spans: Iterable[Node]) -> list[Node]:
    """The spans of one request, the one that saw the request itself first: the innermost, then the shortest."""
    return sorted(spans, key=lambda node: (-depth(node), node.end - node.order[0], node.order))


def _scopes(nodes: Iterable[Node]) -> set[str]:
    return {node.facts.scope_name for node in nodes}
