"""Intervals of time, in nanoseconds, and spans sorted by them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator
from heapq import merge
from itertools import accumulate
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

Order = tuple[int, str]
"""(start_ns, span_id): what first, latest and closest mean, everywhere."""

UNKNOWN = 2**63
"""Sorts a span without a start after all others."""

NO_END = -1
"""Where no end is known of what is over: before all that are."""


class Timed(Protocol):
    """Something with a place in time."""

    @property
    def order(self) -> Order:
        """Where it begins."""
        ...

    @property
    def end(self) -> int:
        """The end in ns; ``UNKNOWN`` while it is open, ``NO_END`` where it is not known."""
        ...


def union_ns(intervals: Collection[tuple[int, int]]) -> int:
    """How much time the intervals cover together: overlaps count once, gaps not at all."""
    if len(intervals) == 1:
        ((start, end),) = intervals
        return end - start
    total, reach = 0, -1
    for start, end in sorted(intervals):
        if start > reach:
            total += end - start
            reach = end
        elif end > reach:
            total += end - reach
            reach = end
    return total


T = TypeVar("T", bound=Timed)

by_order = attrgetter("order")
"""The key that sorts nodes, entries and calls by (start, span_id)."""

_AFTER_ALL = "\U0010ffff"
"""Sorts after every span_id."""
_NEAR = 32
"""So many items are looked at one by one before those of each length."""


class Timeline(Generic[T]):
    """Things sorted by (start, span_id), asked for what lies around a point of time.

    Spans mostly arrive in the order of time, so adding at the end is O(log n).
    """

    __slots__ = ("_items", "_keys", "_lengths", "_reach")

    def __init__(self) -> None:
        self._keys: list[Order] = []
        self._items: list[T] = []
        self._reach: list[int] | None = None  # the latest end of the items up to here, once somebody asks
        # Those of one length, in bits of its ns, by themselves, once somebody asks: keys and items
        self._lengths: dict[int, tuple[list[Order], list[T]]] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def add(self, item: T) -> None:
        """Put an item in its place."""
        key, keys = item.order, self._keys
        if not keys or key > keys[-1]:
            index = len(keys)
            keys.append(key)
            self._items.append(item)
        else:
            index = bisect_left(keys, key)
            keys.insert(index, key)
            self._items.insert(index, item)
        if self._lengths is not None:
            self._add_by_length(self._lengths, item)
        reach = self._reach
        if reach is None:
            return
        reach.insert(index, max(item.end, reach[index - 1]) if index else item.end)
        for later in range(index + 1, len(reach)):
            if reach[later] >= item.end:
                break
            reach[later] = item.end

    def remove(self, item: T) -> None:
        """Take an item out; it must be there, under the order that it had when it was added."""
        index = bisect_left(self._keys, item.order)
        del self._keys[index], self._items[index]
        if self._lengths is not None:
            keys, items = self._lengths[_bits(item)]
            at = bisect_left(keys, item.order)
            del keys[at], items[at]
        if self._reach is None:
            return
        del self._reach[index]
        reach = self._reach[index - 1] if index else NO_END
        for later in range(index, len(self._items)):
            reach = max(reach, self._items[later].end)
            if self._reach[later] == reach:
                break
            self._reach[later] = reach

    def clear(self) -> None:
        """Take all out."""
        self._keys.clear()
        self._items.clear()
        self._reach = self._lengths = None

    def _reaches(self) -> list[int]:
        if self._reach is None:
            self._reach = list(accumulate((item.end for item in self._items), max))
        return self._reach

    @property
    def last(self) -> T | None:
        """The one that began last."""
        return self._items[-1] if self._items else None

    @property
    def first(self) -> T | None:
        """The one that began first."""
        return self._items[0] if self._items else None

    @property
    def latest_end(self) -> int | None:
        """The latest end of all; None where none is known."""
        latest = self._reaches()[-1] if self._items else NO_END
        return latest if latest != NO_END else None

    def at_or_before(self, start: int) -> T | None:
        """The latest that began at or before a time."""
        index = bisect_right(self._keys, (start, _AFTER_ALL))
        return self._items[index - 1] if index else None

    def after(self, order: Order) -> T | None:
        """The first that comes after a place."""
        index = bisect_right(self._keys, order)
        return self._items[index] if index < len(self._items) else None

    def before(self, order: Order) -> T | None:
        """The last that comes before a place."""
        index = bisect_left(self._keys, order)
        return self._items[index - 1] if index else None

    def reach_before(self, order: Order) -> int:
        """The latest end of all that come before a place; -1 where nothing does."""
        index = bisect_left(self._keys, order)
        return self._reaches()[index - 1] if index else -1

    def begun_within(self, start: int, end: int) -> list[T]:
        """All that began within [start, end]."""
        low = bisect_left(self._keys, (start, ""))
        return self._items[low : bisect_right(self._keys, (end, _AFTER_ALL))]

    def covering(self, start: int, end: int) -> Iterator[T]:
        """All that began at or before ``start`` and end at or after ``end``, latest first."""
        reach = self._reaches()
        latest = bisect_right(self._keys, (start, _AFTER_ALL)) - 1
        index = latest
        while index >= 0:
            if reach[index] < end:
                return
            if latest - index == _NEAR:
                break
            if self._items[index].end >= end:
                yield self._items[index]
            index -= 1
        else:
            return
        # One that began long ago may cover all since: look only where those of each length can still reach ``end``.
        found: list[Iterator[T]] = []
        for bits, (keys, items) in self._by_length().items():
            low = bisect_left(keys, (end - (1 << bits) + 1, ""))
            high = bisect_right(keys, self._keys[index])
            if low < high:
                found.append(_back_to(low, high, items, end))
        yield from merge(*found, key=by_order, reverse=True)

    def _by_length(self) -> dict[int, tuple[list[Order], list[T]]]:
        if self._lengths is None:
            self._lengths = {}
            for item in self._items:
                self._add_by_length(self._lengths, item)
        return self._lengths

    def _add_by_length(self, lengths: dict[int, tuple[list[Order], list[T]]], item: T) -> None:
        keys, items = lengths.setdefault(_bits(item), ([], []))
        at = bisect_left(keys, item.order)
        keys.insert(at, item.order)
        items.insert(at, item)


def _bits(item: Timed) -> int:
    """How long an item takes: less than 2 to the power of this, in ns."""
    return (item.end - item.order[0]).bit_length()


def _back_to(low: int, high: int, items: list[T], end: int) -> Iterator[T]:
    """Of the items from ``high`` down to ``low`` those that end at or after ``end``."""
    for index in range(high - 1, low - 1, -1):
        if items[index].end >= end:
            yield items[index]
