"""Leases that are being reset: each waits for its own clone to be rewound, or for another one.

A lease stays in the book while it is reset, so that it ends as usual: when it is released, with its
connection, or in time. What is here is the request that its reset goes back to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.queue import WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.decisions import Lease, Request


class Resets:
    """The requests by the lease that each continues, and by the clone that it waits for.

    A request whose clone cannot be rewound waits in the pool's queue instead; it stays known here
    until `end`.

    Args:
        changed: called when another number of requests waits here.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._queue = WaitQueue()
        self._for_clone: dict[str, Request] = {}
        self._by_token: dict[str, Request] = {}
        self._changed = changed

    def __contains__(self, lease: Lease) -> bool:
        return lease.token in self._by_token

    @property
    def waiting(self) -> int:
        """How many wait for their own clones."""
        return len(self._queue)

    def begin(self, lease: Lease, request: Request, *, own_clone: bool) -> None:
        """Note that a lease is being reset, waiting for its own clone or in the pool's queue."""
        self._by_token[lease.token] = request
        if own_clone:
            self._queue.add(request)
            self._for_clone[lease.clone] = request
            self._changed()

    def lease_of(self, waiter: int) -> Lease | None:
        """Return the lease that this request resets, as it was when that began; None if none."""
        requests = (each for each in self._by_token.values() if each.waiter == waiter)
        request = next(requests, None)
        return None if request is None else request.continues

    def end(self, lease: Lease) -> Request | None:
        """Forget the reset of a lease, wherever it waits here; None when there was none."""
        request = self._by_token.pop(lease.token, None)
        if request is not None:
            self._queue.remove(request.waiter)
            self._changed()
        return request

    def take(self, clone: str) -> Request | None:
        """Return the request that waits for this clone, if it still does, to serve it or queue it.

        The lease counts as being reset until `end`.
        """
        request = self._for_clone.pop(clone, None)
        if request is None:
            return None
        self._changed()
        return self._queue.remove(request.waiter)

    def pop_overdue(self, now: float) -> list[Request]:
        """Remove and return the requests here whose deadlines have come."""
        overdue = self._queue.pop_overdue(now)
        self._changed()
        return overdue

    def first_deadline(self) -> float | None:
        """Return when the next deadline comes of those that wait here, in monotonic seconds."""
        return self._queue.first_deadline()
