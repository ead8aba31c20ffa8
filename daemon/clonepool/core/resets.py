"""Leases that are being reset: each waits for its own clone to be rewound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.waiting import WaitingLine

if TYPE_CHECKING:
    from clonepool.core.decisions import Request


class Resets:
    """The requests by the clone that each waits for."""

    def __init__(self) -> None:
        self._line = WaitingLine()
        self._waiters: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._line)

    def add(self, clone: str, request: Request) -> None:
        """Let a request wait for this clone."""
        self._line.add(request)
        self._waiters[clone] = request

    def take(self, clone: str) -> Request | None:
        """Take out the request that waits for this clone, if it still does."""
        request = self._waiters.pop(clone, None)
        return self._line.remove(request.waiter) if request is not None else None

    def remove(self, waiter: int) -> Request | None:
        """Take a request out, None when it does not wait."""
        return self._line.remove(waiter)

    def pop_overdue(self, now: float) -> list[Request]:
        """Take out every request whose deadline has come."""
        return self._line.pop_overdue(now)

    def pop_all(self) -> list[Request]:
        """Take out all."""
        return self._line.pop_all()

    def first_deadline(self) -> float | None:
        """Return when the next deadline comes, in monotonic seconds."""
        return self._line.first_deadline()
