"""Requests that wait, in the order in which they came and in the order of their deadlines."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING

from clonepool.core.deadlines import Deadlines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.core.decisions import Request


class WaiterCount:
    """How many wait in all queues together."""

    def __init__(self) -> None:
        self.waiting = 0


class WaitQueue:
    """First come, first served; requests that continue a lease before those that begin one.

    Every operation on one request takes time that grows at most with the logarithm of the queue's
    length: a queue of thousands is what overload looks like, and then each event must stay cheap.

    Args:
        count: counts the waiters of several queues together; None to count none.

    Attributes:
        fresh: how many of the waiters want a clone that was never leased.
    """

    def __init__(self, count: WaiterCount | None = None) -> None:
        self._count = WaiterCount() if count is None else count
        self._continuing: OrderedDict[int, Request] = OrderedDict()
        self._new: OrderedDict[int, Request] = OrderedDict()
        # Of the new ones: those that take any clone, and those that want a fresh one, which stand
        # before or behind the first that takes any. Values are places in the order of arrival.
        self._any: OrderedDict[int, int] = OrderedDict()
        self._fresh_before: OrderedDict[int, int] = OrderedDict()
        self._fresh_behind: OrderedDict[int, int] = OrderedDict()
        self._arrivals = 0
        self._deadlines: Deadlines[int] = Deadlines()
        self.fresh = 0

    def __len__(self) -> int:
        return len(self._continuing) + len(self._new)

    def __iter__(self) -> Iterator[Request]:
        return chain(self._continuing.values(), self._new.values())

    def __contains__(self, waiter: int) -> bool:
        return waiter in self._new or waiter in self._continuing

    def add(self, request: Request) -> None:
        """Add a request."""
        if request.continues is None:
            self._new[request.waiter] = request
            self._arrivals += 1
            self._place(request)[request.waiter] = self._arrivals
        else:
            self._continuing[request.waiter] = request
        self.fresh += request.fresh
        self._count.waiting += 1
        self._deadlines.set(request.waiter, request.deadline)

    def remove(self, waiter: int) -> Request | None:
        """Remove a request from any place; None if it does not wait."""
        request = self._new.pop(waiter, None)
        if request is not None:
            self._leave(waiter)
        else:
            request = self._continuing.pop(waiter, None)
        if request is not None:
            self.fresh -= request.fresh
            self._count.waiting -= 1
            self._deadlines.discard(waiter)
        return request

    def first(self, *, fresh: bool = True) -> Request | None:
        """Return the first, or the first that does not want a fresh clone; None if there is none.

        Args:
            fresh: whether a fresh clone is available.
        """
        for request in self._continuing.values():
            if fresh or not request.fresh:
                return request
        waiters: OrderedDict[int, Request] | OrderedDict[int, int] = (
            self._new if fresh else self._any
        )
        waiter = next(iter(waiters), None)
        return None if waiter is None else self._new[waiter]

    def fresh_before(self, request: Request) -> int:
        """Return how many waiters want a fresh clone and come before that one.

        Args:
            request: one that `first` returned.
        """
        if request.continues is not None or request.fresh:
            return 0
        return len(self._fresh_before) + sum(each.fresh for each in self._continuing.values())

    def pop(self, *, fresh: bool = True) -> Request | None:
        """Remove and return what `first` returns."""
        request = self.first(fresh=fresh)
        return None if request is None else self.remove(request.waiter)

    def pop_overdue(self, now: float) -> list[Request]:
        """Remove and return the requests whose deadlines have come, the most overdue first."""
        late = (self.remove(waiter) for waiter in self._deadlines.pop_due(now))
        return [request for request in late if request is not None]

    def withdraw(self, waiter: int) -> Request | None:
        """Remove a request unless it continues a lease, which goes on without an answer."""
        return self.remove(waiter) if waiter in self._new else None

    def pop_new(self) -> list[Request]:
        """Remove and return all requests that continue no lease, in order."""
        return [request for request in list(self._new.values()) if self.remove(request.waiter)]

    def pop_all(self) -> list[Request]:
        """Remove and return all requests, in order."""
        return [request for request in list(self) if self.remove(request.waiter)]

    def first_deadline(self) -> float | None:
        """Return when the next deadline comes, in monotonic seconds."""
        return self._deadlines.first()

    def position(self, waiter: int) -> int | None:
        """Return how many are served before that one; counts, so for display only."""
        for place, request in enumerate(self):
            if request.waiter == waiter:
                return place
        return None

    def _place(self, request: Request) -> OrderedDict[int, int]:
        """Return where a request belongs that has just arrived."""
        if not request.fresh:
            return self._any
        return self._fresh_behind if self._any else self._fresh_before

    def _leave(self, waiter: int) -> None:
        """Remove a waiter from its place; each fresh one is overtaken once, so this is cheap."""
        if self._any.pop(waiter, None) is None:
            self._fresh_before.pop(waiter, None)
            self._fresh_behind.pop(waiter, None)
            return
        first = next(iter(self._any.values()), None)
        while self._fresh_behind:
            behind, place = next(iter(self._fresh_behind.items()))
            if first is not None and place > first:
                return
            self._fresh_before[behind] = self._fresh_behind.pop(behind)
