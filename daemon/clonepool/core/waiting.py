"""Requests that wait, in the order in which they came and in the order of their deadlines."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.core.decisions import Request

_SPARE_ENTRIES = 64


class WaitingLine:
    """First come, first served; whoever is to be served before all others is put in front.

    Every operation takes time that grows at most with the logarithm of the line's length: a line
    of thousands is what overload looks like, and then each event must stay cheap.
    """

    def __init__(self) -> None:
        self._line: OrderedDict[int, Request] = OrderedDict()
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._line.values())

    def add(self, request: Request) -> None:
        """Let a request wait; one that continues a lease goes to the front."""
        self._line[request.waiter] = request
        if request.continues is not None:
            self._line.move_to_end(request.waiter, last=False)
        heapq.heappush(self._deadlines, (request.deadline, request.waiter))

    def remove(self, waiter: int) -> Request | None:
        """Take a request out, wherever it stands; None when it does not wait."""
        request = self._line.pop(waiter, None)
        if len(self._deadlines) > 2 * len(self._line) + _SPARE_ENTRIES:
            self._deadlines = [(r.deadline, r.waiter) for r in self._line.values()]
            heapq.heapify(self._deadlines)
        return request

    def pop(self) -> Request:
        """Take out the first."""
        waiter = next(iter(self._line))
        request = self._line[waiter]
        self.remove(waiter)
        return request

    def pop_overdue(self, now: float) -> list[Request]:
        """Take out every request whose deadline has come, the most overdue first."""
        late = []
        while (deadline := self.first_deadline()) is not None and deadline <= now:
            _, waiter = heapq.heappop(self._deadlines)
            late.append(self._line.pop(waiter))
        return late

    def pop_all(self) -> list[Request]:
        """Take out all, in order."""
        everybody = list(self._line.values())
        self._line.clear()
        self._deadlines.clear()
        return everybody

    def first_deadline(self) -> float | None:
        """Return when the next deadline comes, in monotonic seconds."""
        while self._deadlines and self._deadlines[0][1] not in self._line:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def position(self, waiter: int) -> int | None:
        """Return how many are served before that one; for people, it counts."""
        for place, found in enumerate(self._line):
            if found == waiter:
                return place
        return None
