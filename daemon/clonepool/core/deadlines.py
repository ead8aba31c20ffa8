"""Times by key: which comes first, and which have come; what happens then is for others."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

    Key = TypeVar("Key", bound=Hashable)
else:
    Key = TypeVar("Key")

_SPARE_ENTRIES = 64


class Deadlines(Generic[Key]):
    """A time for each key, in monotonic seconds.

    Every operation takes time that grows at most with the logarithm of the number of keys. Times
    that were replaced or discarded stay in the heap until they come up or outnumber the others.
    """

    __slots__ = ("_heap", "_last", "_number_of")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._number_of: dict[Key, int] = {}
        self._last = 0

    def set(self, key: Key, at: float) -> None:
        """Give the key a time, in place of the one that it had."""
        self._last += 1
        self._number_of[key] = self._last
        heapq.heappush(self._heap, (at, self._last, key))
        self._tidy()

    def discard(self, key: Key) -> None:
        """Forget the key's time, if it has one."""
        if self._number_of.pop(key, None) is not None:
            self._tidy()

    def first(self) -> float | None:
        """Return the earliest time, None when there is none."""
        heap = self._heap
        while heap and self._number_of.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> list[Key]:
        """Forget every time up to `now`; return the keys, the earliest first."""
        due: list[Key] = []
        while (at := self.first()) is not None and at <= now:
            key = heapq.heappop(self._heap)[2]
            del self._number_of[key]
            due.append(key)
        return due

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._number_of) + _SPARE_ENTRIES:
            self._heap = [
                entry for entry in self._heap if self._number_of.get(entry[2]) == entry[1]
            ]
            heapq.heapify(self._heap)
