"""What lies around a point of time is found in any timeline, and without looking at all that was before it."""

from __future__ import annotations

import random

import pytest

from step_exporter.derive.intervals import UNKNOWN, Order, Timeline


class Item:
    """From a start to an end; counts how often its end is looked at."""

    looks = 0

    def __init__(self, number: int, start: int, end: int) -> None:
        self.order: Order = (start, f"{number:016x}")
        self._end = end

    @property
    def end(self) -> int:
        Item.looks += 1
        return self._end


def covering(items: list[Item], start: int, end: int) -> list[Item]:
    found = [item for item in items if item.order[0] <= start and item.end >= end]
    return sorted(found, key=lambda item: item.order, reverse=True)


@pytest.mark.parametrize("longest", [3, 50, 4000])
def test_what_covers_a_time_is_found_while_items_come_and_go(longest: int) -> None:
    rng = random.Random(longest)
    timeline: Timeline[Item] = Timeline()
    items: list[Item] = []
    for number in range(400):
        start = rng.randrange(200)
        items.append(Item(number, start, rng.choice((UNKNOWN, *[start + rng.randrange(longest)] * 9))))
        timeline.add(items[-1])
        if rng.random() < 0.3:
            timeline.remove(items.pop(rng.randrange(len(items))))
        start = rng.randrange(220)
        end = start + rng.randrange(60)
        assert list(timeline.covering(start, end)) == covering(items, start, end)


def test_one_item_that_covers_all_later_ones_is_found_without_a_look_at_those_between() -> None:
    timeline: Timeline[Item] = Timeline()
    straggler = Item(0, 0, 10**9)
    timeline.add(straggler)
    for number in range(1, 2_000):
        timeline.add(Item(number, 10 * number, 10 * number + 5))
    Item.looks = 0
    for number in range(100, 2_000):
        assert list(timeline.covering(10 * number + 6, 10 * number + 7)) == [straggler]
    assert Item.looks < 1_900 * 100
