"""Requests that wait, in the order in which they came and in the order of their deadlines."""

from __future__ import annotations

import heapq
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.core.decisions import Request

_SPARE_ENTRIES = 64


class Crowd:
    """How many wait in all lines together."""

    def __init__(self) -> None:
        self.waiting = 0


class WaitQueue:
    """First come, first served; those who continue a lease before those who have none.

    Every operation takes time that grows at most with the logarithm of the line's length: a line
    of thousands is what overload looks like, and then each event must stay cheap.

    Args:
        crowd: counts the waiters of several lines together; None to count none.

    Attributes:
        fresh: how many of the waiters want a clone that nobody had before.
    """

    def __init__(self, crowd: Crowd | None = None) -> None:
        self._crowd = Crowd() if crowd is None else crowd
        self._continuing: dict[int, Request] = {}
        self._others: dict[int, Request] = {}
        self._deadlines: list[tuple[float, int]] = []
        self.fresh = 0

    def __len__(self) -> int:
        return len(self._continuing) + len(self._others)

    def __iter__(self) -> Iterator[Request]:
        return chain(self._continuing.values(), self._others.values())

    def __contains__(self, waiter: int) -> bool:
        return waiter in self._others or waiter in self._continuing

    def add(self, request: Request) -> None:
        """Let a request wait."""
        line = self._others if request.continues is None else self._continuing
        line[request.waiter] = request
        self.fresh += request.fresh
        self._crowd.waiting += 1
        heapq.heappush(self._deadlines, (request.deadline, request.waiter))

    def remove(self, waiter: int) -> Request | None:
        """Take a request out, wherever it stands; None when it does not wait."""
        request = self._others.pop(waiter, None) or self._continuing.pop(waiter, None)
        self.fresh -= request is not None and request.fresh
        self._crowd.waiting -= request is not None
        if len(self._deadlines) > 2 * len(self) + _SPARE_ENTRIES:
            self._deadlines = [(waiting.deadline, waiting.waiter) for waiting in self]
            heapq.heapify(self._deadlines)
        return request

    def first(self, *, fresh: bool = True) -> Request | None:
        """Return the first, or the first that does not want a fresh clone; None if there is none.

        Args:
            fresh: whether there is a fresh clone to be had.
        """
        for request in self:
            if fresh or not request.fresh:
                return request
        return None

    def pop(self, *, fresh: bool = True) -> Request | None:
        """Take out what `first` returns."""
        request = self.first(fresh=fresh)
        return None if request is None else self.remove(request.waiter)

    def pop_overdue(self, now: float) -> list[Request]:
        """Take out every request whose deadline has come, the most overdue first."""
        late = []
        while (deadline := self.first_deadline()) is not None and deadline <= now:
            request = self.remove(self._deadlines[0][1])
            late += [request] if request is not None else []
        return late

    def withdraw(self, waiter: int) -> Request | None:
        """Take a request out unless it continues a lease, which goes on without an answer too."""
        return self.remove(waiter) if waiter in self._others else None

    def pop_new(self) -> list[Request]:
        """Take out all that continue no lease, in order."""
        return [request for request in list(self._others.values()) if self.remove(request.waiter)]

    def pop_all(self) -> list[Request]:
        """Take out all, in order."""
        return [request for request in list(self) if self.remove(request.waiter)]

    def first_deadline(self) -> float | None:
        """Return when the next deadline comes, in monotonic seconds."""
        while self._deadlines and self._deadlines[0][1] not in self:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def position(self, waiter: int) -> int | None:
        """Return how many are served before that one; for people, it counts."""
        for place, request in enumerate(self):
            if request.waiter == waiter:
                return place
        return None
