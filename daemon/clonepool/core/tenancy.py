"""How leases of one pool begin, are written down, are renewed, and end in time.

A lease that outlives its connection is written down before anybody hears of it: between the two it
is *unwritten* here. Clones are the pool's matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clonepool.core.decisions import Decision, Grant, Lease, Record, Renewed, Request, Source
from clonepool.core.leases import LeaseBook

if TYPE_CHECKING:
    from collections.abc import ItemsView


class Unwritten(msgspec.Struct, frozen=True):
    """A lease that is being written down, and what was asked; a renewal has no `source`."""

    lease: Lease
    request: Request
    source: Source | None


class Tenancy:
    """The leases of one pool.

    Args:
        template: its name.
        max_lease: seconds after which a lease ends whatever its holder does; None for never.
    """

    def __init__(self, template: str, max_lease: float | None) -> None:
        self.book = LeaseBook()
        self.last_begun = 0.0
        self._template = template
        self._max_lease = max_lease
        self._unwritten: dict[int, Unwritten] = {}
        self._begun: set[str] = set()  # clones of living leases that were to be written down

    def begin(
        self, request: Request, source: Source, clone: str, generation: str, now: float
    ) -> Grant | Record:
        """Enter the lease of a clone that was just taken, and say how its holder is told."""
        lease = self._lease(request, clone, generation, now)
        self.book.enter(lease)
        self.last_begun = now
        if not lease.outlives_connection:
            return _grant(request, lease, source, now)
        self._begun.add(clone)
        self._unwritten[request.waiter] = Unwritten(lease, request, source)
        return Record(request.waiter, lease)

    def renew(self, lease: Lease, ttl: float | None, request: Request) -> Renewed | Record:
        """Let a lease last `ttl` seconds from now; None for as long as it was given before.

        A lease without a TTL gets one, and outlives its connection from then on. Whoever renews
        is told when it is about to end.
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
        self._begun.add(lease.clone)
        self._unwritten[request.waiter] = Unwritten(longer, request, None)
        return Record(request.waiter, longer)

    def recorded(self, waiter: int, now: float) -> Decision | None:
        """The lease is written down: say how its holder is told.

        None when nobody is to be told: it was taken back, or the lease has ended meanwhile, or has
        another clone.
        """
        unwritten = self._unwritten.get(waiter)
        current = None if unwritten is None else self.book.current(unwritten.lease)
        if unwritten is None or current is None or current.clone != unwritten.lease.clone:
            return None
        del self._unwritten[waiter]
        if unwritten.source is not None:
            return _grant(unwritten.request, unwritten.lease, unwritten.source, now)
        longer = unwritten.lease
        renewed = msgspec.structs.replace(
            current, ttl=longer.ttl, expires_at=longer.expires_at, holder=longer.holder
        )
        self.book.enter(renewed)
        return Renewed(waiter, renewed)

    def take_back(self, waiter: int) -> Unwritten | None:
        """Stop to wait for a writing; return what was being written."""
        return self._unwritten.pop(waiter, None)

    def continued_by(self, waiter: int) -> Lease | None:
        """Return the lease whose new clone is being written down for this request, None if none."""
        unwritten = self._unwritten.get(waiter)
        continues = unwritten is not None and unwritten.request.continues is not None
        return unwritten.lease if unwritten is not None and continues else None

    def withdraw(self, waiter: int) -> Unwritten | None:
        """Do the same for a client that has gone, unless what is written is an older lease's clone.

        That lease goes on, though its reset is told to nobody.
        """
        unwritten = self._unwritten.get(waiter)
        if unwritten is not None and unwritten.request.continues is not None:
            return None
        return self.take_back(waiter)

    def is_new(self, unwritten: Unwritten) -> bool:
        """Say whether the lease itself is to be taken back, and still is the same."""
        lease = unwritten.lease
        return unwritten.source is not None and self.book.current(lease) is lease

    def end(self, lease: Lease) -> bool:
        """Strike a lease out; say whether it is, or may yet be, written down as living."""
        self.book.end(lease)
        return self.part(lease)

    def part(self, lease: Lease) -> bool:
        """Part a lease that goes on from its clone; say as `end` does what is written down."""
        begun = lease.clone in self._begun
        self._begun.discard(lease.clone)
        return begun or lease.outlives_connection

    def unwritten(self) -> ItemsView[int, Unwritten]:
        """Return what is being written down, by waiter."""
        return self._unwritten.items()

    def next_time(self) -> float | None:
        """Return when a lease or the patience for a writing ends, in monotonic seconds."""
        ending = self.book.next_time()
        if not self._unwritten:
            return ending
        times = [unwritten.request.deadline for unwritten in self._unwritten.values()]
        return min(times if ending is None else [*times, ending])

    def _lease(self, request: Request, clone: str, generation: str, now: float) -> Lease:
        if request.continues is not None:
            lease = self.book.current(request.continues) or request.continues
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
        ends = [] if ttl is None else [now + ttl]
        ends += [] if self._max_lease is None else [granted_at + self._max_lease]
        return min(ends, default=None)


def _grant(request: Request, lease: Lease, source: Source, now: float) -> Grant:
    return Grant(request.waiter, lease, source, now - request.asked_at, request.asked_at)
