"""How the leases of one pool begin, are written down, are renewed, reset, and end.

A lease that outlives its connection is recorded before its client is told of it; until then it is
*unwritten* here. The pool decides which request gets a clone, and `queue` orders the waiters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clonepool.core import refusals
from clonepool.core.clone import CloneEvent
from clonepool.core.deadlines import Deadlines
from clonepool.core.decisions import (
    Decision,
    Grant,
    Keep,
    Lease,
    News,
    Notice,
    Record,
    Recycle,
    Refuse,
    Renewed,
    Request,
    Source,
)

if TYPE_CHECKING:
    from clonepool.core.inventory import Inventory
    from clonepool.core.leases import LeaseBook
    from clonepool.core.limits import Limits
    from clonepool.core.queue import WaitQueue
    from clonepool.core.resets import Resets
    from clonepool.errors import ClonepoolError


class Unwritten(msgspec.Struct, frozen=True):
    """A lease that is being written down, and what was asked; a renewal has no `source`."""

    lease: Lease
    request: Request
    source: Source | None


class Leasing:
    """The leases of one pool.

    Args:
        template: its name.
        limits: how long a lease may last, and how many clones may be kept.
        book: the leases.
        queue: requests that wait for a clone.
        resets: leases that are being reset.
        inventory: the clones.

    Attributes:
        last_begun: when the latest lease began, in monotonic seconds; 0 before the first.
    """

    def __init__(
        self,
        template: str,
        limits: Limits,
        book: LeaseBook,
        queue: WaitQueue,
        resets: Resets,
        inventory: Inventory,
    ) -> None:
        self.last_begun = 0.0
        self._template = template
        self._limits = limits
        self._book = book
        self._queue = queue
        self._resets = resets
        self._inventory = inventory
        self._unwritten: dict[int, Unwritten] = {}
        self._deadlines: Deadlines[int] = Deadlines()  # of the unwritten ones
        self._begun: set[str] = set()  # clones of living leases that were to be written down

    # A lease begins -----------------------------------------------------------------------

    def begin(
        self, request: Request, source: Source, clone: str, generation: str, now: float
    ) -> Grant | Record:
        """Enter the lease of a clone that was just taken, and say how its holder is told.

        If the request continues a lease, the lease now has this clone, and is not being reset
        any more.
        """
        if request.continues is not None:
            self._resets.end(request.continues)
        lease = self._lease(request, clone, generation, now)
        self._book.enter(lease)
        self.last_begun = now
        if not lease.outlives_connection:
            return _grant(request, lease, source, now)
        return self._write(Unwritten(lease, request, source))

    def recorded(self, waiter: int, now: float) -> list[Decision]:
        """The lease is recorded: its client can be told.

        The request is refused if the lease has ended since, or has another clone. A request that
        was withdrawn gets no answer.
        """
        unwritten = self._unwritten.get(waiter)
        current = None if unwritten is None else self._book.current(unwritten.lease)
        if unwritten is None or current is None or current.clone != unwritten.lease.clone:
            return self.not_recorded(waiter, refusals.not_your_lease())
        self._take_back(waiter)
        if unwritten.source is not None:
            return [_grant(unwritten.request, unwritten.lease, unwritten.source, now)]
        longer = unwritten.lease
        renewed = msgspec.structs.replace(
            current, ttl=longer.ttl, expires_at=longer.expires_at, holder=longer.holder
        )
        self._book.enter(renewed)
        return [Renewed(waiter, renewed)]

    def not_recorded(self, waiter: int, error: ClonepoolError) -> list[Decision]:
        """The lease could not be written down: a new one is taken back, an old one stays."""
        unwritten = self._take_back(waiter)
        if unwritten is None:
            return []
        back = self.release(unwritten.lease) if self._is_new(unwritten) else []
        return [Refuse(waiter, self._template, error), *back]

    # Continuing ---------------------------------------------------------------------------

    def renew(self, lease: Lease, ttl: float | None, request: Request) -> Renewed | Record:
        """Renew a lease for `ttl` seconds from now; None for its former TTL.

        A lease without a TTL gets one, and outlives its connection from then on. The connection
        that renews it is told when it is about to end.
        """
        ttl = lease.ttl if ttl is None else ttl
        if ttl is None:
            return Renewed(request.waiter, lease)
        longer = msgspec.structs.replace(
            lease,
            ttl=ttl,
            expires_at=self._expiry(lease.granted_at, ttl, request.asked_at),
            holder=request.holder,
        )
        return self._write(Unwritten(longer, request, None))

    def reset(self, lease: Lease, request: Request) -> Recycle:
        """Detach a lease from its clone, which is recycled; the lease waits for it, or for another.

        Args:
            lease: which.
            request: continues the lease. It waits here where the clone is expected to be rewound,
                and is the pool's to serve where not.
        """
        own_clone = self._limits.rewinds
        self._resets.begin(lease, request, own_clone=own_clone)
        return self._recycle(lease, self._part(lease), same_holder=own_clone)

    # It ends ------------------------------------------------------------------------------

    def release(self, lease: Lease) -> list[Decision]:
        """End a lease, which must be in the book; a reset of it is refused."""
        request = self._resets.end(lease)
        if request is None:
            return [self._recycle(lease, self._end(lease))]
        self._queue.remove(request.waiter)
        self._end(lease)  # its clone is being recycled already
        return [Refuse(request.waiter, self._template, refusals.ended_while_reset())]

    def keep(self, lease: Lease, seconds: float, now: float) -> list[Decision]:
        """End a lease and keep its clone for inspection; the oldest kept one may be dropped."""
        self._end(lease)
        self._inventory.keep(lease.clone, now + seconds)
        kept = Keep(self._template, lease.generation, lease.clone, lease.label, seconds)
        return [kept, *self._inventory.drop_kept(self._limits.max_kept)]

    def forget(self, waiter: int) -> list[Decision]:
        """Withdraw a request whose client has gone.

        A reset continues without an answer: the lease stays with its holder, or ends in time.
        """
        if self._queue.withdraw(waiter) is not None:
            return []
        unwritten = self._unwritten.get(waiter)
        if unwritten is None or unwritten.request.continues is not None:
            return []
        self._take_back(waiter)
        return self.release(unwritten.lease) if self._is_new(unwritten) else []

    def cancel(self, waiter: int) -> list[Decision]:
        """Take back a request that its client has withdrawn.

        A lease that it resets is over: the client may not know where its clone is by now.
        """
        continued = self._resets.lease_of(waiter) or self._continued_by(waiter)
        lease = None if continued is None else self._book.current(continued)
        return self.forget(waiter) if lease is None else self.release(lease)

    def refuse(self, request: Request, error: ClonepoolError) -> list[Decision]:
        """Answer with an error; if that was a reset, its lease is over, and the holder is told."""
        refused: list[Decision] = [Refuse(request.waiter, self._template, error)]
        lease = None if request.continues is None else self._book.current(request.continues)
        if lease is not None:
            self._resets.end(lease)
            self._end(lease)
            told = lease.holder == request.holder
            refused += [] if told else [Notice(News.EXPIRED, lease, 0.0)]
        return refused

    def refuse_all(self, error: ClonepoolError) -> list[Decision]:
        """Refuse all in the queue; a reset that waits for its own clone continues."""
        return [each for request in self._queue.pop_all() for each in self.refuse(request, error)]

    def refuse_new(self, error: ClonepoolError) -> list[Decision]:
        """Refuse all in the queue that continue no lease."""
        return [Refuse(each.waiter, self._template, error) for each in self._queue.pop_new()]

    def end_connection_bound(self) -> list[Decision]:
        """End every lease that does not outlive the daemon."""
        bound = [lease for lease in self._book.values() if not lease.outlives_connection]
        return [decision for lease in bound for decision in self.release(lease)]

    # Time ---------------------------------------------------------------------------------

    def pop_overdue(self, now: float) -> list[Request]:
        """Return the requests whose leases are still being written down past their deadlines."""
        return [self._unwritten[waiter].request for waiter in self._deadlines.pop_due(now)]

    def expire(self, now: float) -> list[Decision]:
        """End the leases whose time is over, and announce the end of those where it is near."""
        decisions: list[Decision] = []
        for news, lease in self._book.pop_due(now):
            decisions.append(Notice(news, lease, max(0.0, (lease.expires_at or now) - now)))
            if news is News.EXPIRED:
                decisions += self.release(lease)
        return decisions

    def next_time(self) -> float | None:
        """Return when a lease or the patience for a record ends, in monotonic seconds."""
        times = self._book.next_time(), self._deadlines.first()
        return min((time for time in times if time is not None), default=None)

    # Inside -------------------------------------------------------------------------------

    def _lease(self, request: Request, clone: str, generation: str, now: float) -> Lease:
        if request.continues is not None:
            lease = self._book.current(request.continues) or request.continues
            return msgspec.structs.replace(
                lease, clone=clone, generation=generation, resets=lease.resets + 1
            )
        return Lease(
            token=request.token,
            template=self._template,
            generation=generation,
            clone=clone,
            holder=request.holder,
            label=request.label,
            granted_at=now,
            ttl=request.ttl,
            expires_at=self._expiry(now, request.ttl, now),
        )

    def _expiry(self, granted_at: float, ttl: float | None, now: float) -> float | None:
        """Return when a lease ends: its TTL from now on, and never past the ceiling."""
        most = self._limits.max_lease
        ends = [] if ttl is None else [now + ttl]
        ends += [] if most is None else [granted_at + most]
        return min(ends, default=None)

    def _write(self, unwritten: Unwritten) -> Record:
        waiter, lease = unwritten.request.waiter, unwritten.lease
        self._begun.add(lease.clone)
        self._unwritten[waiter] = unwritten
        self._deadlines.set(waiter, unwritten.request.deadline)
        return Record(waiter, lease)

    def _take_back(self, waiter: int) -> Unwritten | None:
        """Wait no longer for a record; return what was being written."""
        self._deadlines.discard(waiter)
        return self._unwritten.pop(waiter, None)

    def _is_new(self, unwritten: Unwritten) -> bool:
        """Say whether the lease itself is to be taken back, and still is the same."""
        lease = unwritten.lease
        return unwritten.source is not None and self._book.current(lease) is lease

    def _continued_by(self, waiter: int) -> Lease | None:
        """Return the lease whose new clone is being written down for this request, None if none."""
        unwritten = self._unwritten.get(waiter)
        if unwritten is None or unwritten.request.continues is None:
            return None
        return unwritten.lease

    def _recycle(self, lease: Lease, written_down: bool, *, same_holder: bool = False) -> Recycle:
        self._inventory.move(lease.clone, CloneEvent.RETURN)
        return Recycle(self._template, lease.generation, lease.clone, written_down, same_holder)

    def _end(self, lease: Lease) -> bool:
        """Remove a lease; say whether it is, or may yet be, recorded as living."""
        self._book.end(lease)
        return self._part(lease)

    def _part(self, lease: Lease) -> bool:
        """Detach a lease that continues from its clone; say what is recorded, as `_end` does."""
        begun = lease.clone in self._begun
        self._begun.discard(lease.clone)
        return begun or lease.outlives_connection


def _grant(request: Request, lease: Lease, source: Source, now: float) -> Grant:
    return Grant(request.waiter, lease, source, now - request.asked_at, request.asked_at)
