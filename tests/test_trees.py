"""What has nothing to do with agents leaves nothing behind; what has is written whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from step_exporter.facts import RawSpan
from step_exporter.store.codec import Sources
from step_exporter.store.prepare import Prepared, prepare
from step_exporter.trees import LocalTrees

TRACE = "0af7651916cd43dd8448eb211c80319c"
LLM = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}


def span(
    number: int,
    parent: int | None,
    llm: bool = False,
    remote: bool = False,
    trace: str = TRACE,
    kind: str = "internal",
) -> Prepared:
    raw = RawSpan(
        trace,
        f"{number:016x}",
        None if parent is None else f"{parent:016x}",
        f"span {number}",
        kind=kind,
        start_ns=number,
        end_ns=number + 1,
        attributes=LLM if llm else {},
        parent_is_remote=None if parent is None else remote,
    )
    ((prepared,), _) = prepare([raw], Sources())
    return prepared


def numbers(spans: Iterable[Prepared]) -> set[int]:
    return {int(found.facts.span_id, 16) for found in spans}


def test_a_tree_without_an_agent_is_let_go_when_its_root_has_ended() -> None:
    trees = LocalTrees()
    assert trees.add([span(3, 2), span(2, 1)]) == ([], 0)
    assert trees.waiting == 2
    assert trees.add([span(1, None)]) == ([], 3)
    assert trees.waiting == 0


def test_a_tree_with_an_llm_span_is_written_whole_and_at_once() -> None:
    trees = LocalTrees()
    trees.add([span(4, 2), span(5, 1)])
    to_write, let_go = trees.add([span(3, 2, llm=True)])
    assert (numbers(to_write), let_go) == ({3, 4}, 0)  # 5 is not known to hang together with it yet
    assert numbers(trees.add([span(2, 1)]).to_write) == {2, 5}
    assert numbers(trees.add([span(1, None)]).to_write) == {1}
    assert numbers(trees.add([span(9, 5)]).to_write) == {9}


@pytest.mark.parametrize("meaningful", [0, 1, 4])
def test_every_order_and_batching_writes_the_same_spans(meaningful: int) -> None:
    shape = [(0, None), (1, 0), (2, 0), (3, 1), (4, 3)]
    spans = [span(number + 1, None if up is None else up + 1, llm=number == meaningful) for number, up in shape]
    for order in itertools.permutations(spans):
        for size in (1, 2, 5):
            trees = LocalTrees()
            sifted = [trees.add(order[at : at + size]) for at in range(0, 5, size)]
            written = [item for found in sifted for item in found.to_write]
            assert meaningful + 1 in numbers(written)
            assert len(written) + sum(found.let_go for found in sifted) == 5
            if order[-1] is spans[0] or size == 5:  # nothing came after the root had ended
                assert numbers(written) == {1, 2, 3, 4, 5}


def test_what_comes_after_a_tree_was_let_go_goes_too_until_something_is_meaningful() -> None:
    trees = LocalTrees()
    assert trees.add([span(2, 1), span(1, None)]) == ([], 2)
    assert trees.add([span(3, 1)]) == ([], 1)
    assert numbers(trees.add([span(4, 1, llm=True)]).to_write) == {4}
    assert numbers(trees.add([span(5, 1)]).to_write) == {5}


def test_a_span_below_another_process_is_a_root_here() -> None:
    trees = LocalTrees()
    assert trees.add([span(2, 1, remote=True)]) == ([], 1)
    assert numbers(trees.add([span(4, 3), span(3, 1, remote=True, llm=True)]).to_write) == {3, 4}


def test_what_another_process_called_is_taken_back_for_an_agent_that_goes_on_in_the_background() -> None:
    trees = LocalTrees()
    assert trees.add([span(4, 3, kind="client"), span(3, 2), span(2, 1, remote=True)]) == ([], 3)
    assert trees.add([span(5, 3)]) == ([], 1)
    assert trees.waiting == 0
    to_write, let_go = trees.add([span(6, 5, llm=True)])
    assert (numbers(to_write), let_go) == ({2, 3, 5, 6}, -3)
    assert numbers(trees.add([span(7, 3)]).to_write) == {7}


def test_what_was_let_go_and_what_came_after_it_become_one_tree_in_any_order() -> None:
    spans = [span(3, 2), span(2, 1, remote=True), span(4, 3), span(5, 4), span(6, 5, llm=True)]
    for order in itertools.permutations(spans):
        trees = LocalTrees()
        sifted = [trees.add([item]) for item in order]
        assert numbers(item for found in sifted for item in found.to_write) == {2, 3, 4, 5, 6}
        assert sum(found.let_go for found in sifted) == 0


def test_of_what_was_let_go_a_quarter_of_what_may_wait_is_remembered() -> None:
    trees = LocalTrees(max_spans=40)
    for number in range(100, 200):
        trees.add([span(number, number + 1000, remote=True)])
    late = [trees.add([span(number + 500, number, llm=True)]) for number in range(170, 200)]
    assert [len(found.to_write) for found in late] == [1] * 20 + [2] * 10
    assert sum(found.let_go for found in late) == -10


def test_what_was_let_go_is_remembered_within_a_bound_of_characters_too() -> None:
    trees = LocalTrees(max_chars=40_000)
    raws = [replace(span(number, 100, remote=True).encoded.raw, attributes={"a": "x" * 9_000}) for number in (1, 2)]
    for item in prepare(raws, Sources())[0]:
        trees.add([item])
    assert numbers(trees.add([span(3, 1, llm=True), span(4, 2, llm=True)]).to_write) == {2, 3, 4}


def test_the_same_ids_in_another_trace_are_another_tree() -> None:
    trees = LocalTrees()
    trees.add([span(2, 1)])
    assert numbers(trees.add([span(1, None, llm=True, trace="1" + TRACE[1:])]).to_write) == {1}
    assert trees.waiting == 1


def test_at_the_bound_what_waits_longest_is_written_rather_than_dropped() -> None:
    trees = LocalTrees(max_spans=3)
    written: list[Prepared] = []
    for number in range(10, 20):
        written += trees.add([span(number, number + 100)]).to_write
        assert trees.waiting <= 3
    assert numbers(written) == set(range(10, 17))
    assert numbers(trees.drain()) == {17, 18, 19}


def test_memory_is_bounded_by_characters_too() -> None:
    trees = LocalTrees(max_chars=10_000)
    raws = [replace(span(number, 100 + number).encoded.raw, attributes={"a": "x" * 9_000}) for number in (1, 2)]
    (first, second), _ = prepare(raws, Sources())
    assert trees.add([first]).to_write == []
    assert numbers(trees.add([second]).to_write) == {1}


def test_ids_of_finished_trees_are_forgotten_in_the_end() -> None:
    trees = LocalTrees(max_spans=10)
    for number in range(1, 1000):
        trees.add([span(number, None)])
    assert len(trees._by_key) <= 40
    assert len(trees._trees) <= 40


def test_at_shutdown_what_waits_is_written() -> None:
    trees = LocalTrees()
    trees.add([span(2, 1), span(4, 3)])
    assert numbers(trees.drain()) == {2, 4}
    assert trees.drain() == []


def test_a_cycle_of_parents_waits_and_is_written_in_the_end() -> None:
    trees = LocalTrees()
    assert trees.add([span(1, 2), span(2, 1), span(3, 3)]) == ([], 0)
    assert numbers(trees.drain()) == {1, 2, 3}


def test_ten_thousand_spans_in_a_row_hang_together() -> None:
    trees = LocalTrees()
    chain = [span(number, number - 1) for number in range(2, 5_001)]
    assert trees.add(chain[::-2]).to_write == []
    assert trees.add(chain[-2::-2]).to_write == []
    assert len(trees.add([span(1, None, llm=True)]).to_write) == 5_000
