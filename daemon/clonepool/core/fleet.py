"""All pools of one server under one limit, and who holds which lease.

Routes an event to the pool that it concerns. Beyond that it decides one thing that no pool can
decide alone: whose ready clone gives way when a request waits and the common limit is reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.pool import Budget, Limits, Pool
from clonepool.errors import NotYourLeaseError, ShuttingDownError, UnknownTemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.core.decisions import Decision, Lease, Request
    from clonepool.core.naming import Namer, Serials


class Fleet:
    """The pools by template, and the leases by token and by holder."""

    def __init__(
        self, limits: Mapping[str, Limits], max_clones: int, namer: Namer, serials: Serials
    ) -> None:
        self.budget = Budget(max_clones)
        self.pools = {
            name: Pool(name, limit, self.budget, namer, serials) for name, limit in limits.items()
        }
        self.stopping = False

    def acquire(self, template: str, request: Request, now: float) -> list[Decision]:
        """Grant, queue or refuse.

        Raises:
            UnknownTemplateError: no such template; nothing changed.
            ShuttingDownError: `stop` was called; nothing changed.
        """
        pool = self.pool(template)
        if self.stopping:
            raise ShuttingDownError(
                "the daemon is stopping", remedy="try again when it has been started"
            )
        decisions = pool.acquire(request, now)
        return [*decisions, *self._make_way(now)] if pool.waiting else decisions

    def pool(self, template: str) -> Pool:
        """Return the pool of that template, or raise UnknownTemplateError."""
        try:
            return self.pools[template]
        except KeyError:
            known = ", ".join(sorted(self.pools)) or "none"
            raise UnknownTemplateError(
                f"there is no template {template!r}", remedy=f"configured are: {known}"
            ) from None

    def release(self, token: str, holder: int) -> list[Decision]:
        """End a lease on its holder's behalf.

        Raises:
            NotYourLeaseError: the token is stale, wrong, or another holder's; nothing changed.
        """
        for pool in self.pools.values():
            lease = pool.leases.get(token)
            if lease is not None and lease.holder == holder:
                return pool.release(token)
        raise NotYourLeaseError(
            "this connection holds no lease of that token",
            remedy="a lease ends once: when released, or when its connection ends",
        )

    def holder_gone(self, holder: int, waiters: list[int]) -> list[Decision]:
        """End all leases of a connection that ended, and forget what it waited for."""
        for pool in self.pools.values():
            for waiter in waiters:
                pool.forget(waiter)
        return [
            decision
            for pool in self.pools.values()
            for token in [t for t, lease in pool.leases.items() if lease.holder == holder]
            for decision in pool.release(token)
        ]

    def dropped(self, template: str, name: str, now: float) -> list[Decision]:
        """A database is gone: its place may be another pool's gain."""
        self.pools[template].dropped(name)
        return self.plan(now)

    def expire(self, now: float) -> list[Decision]:
        """Refuse what is overdue, then retry what failed a while ago."""
        late = [d for pool in self.pools.values() for d in pool.expire(now)]
        return [*late, *self.plan(now)]

    def plan(self, now: float) -> list[Decision]:
        """Let every pool start what it misses: first what tests wait for, then refills."""
        if self.stopping:
            return []
        pools = self.pools.values()
        decisions = [d for pool in pools for d in pool.plan(now, refill=False)]
        decisions += [d for pool in pools for d in pool.plan(now)]
        return [*decisions, *self._make_way(now)]

    def pause(self) -> None:
        """Grant and start nothing: the server is away. Leases and waiters stay."""
        self.budget.paused = True

    def resume(self, now: float) -> list[Decision]:
        """Go on: the server is back."""
        self.budget.paused = False
        return self.plan(now)

    def stop(self) -> list[Decision]:
        """Grant nothing from now on, refuse who waits, and drop what is ready."""
        self.stopping = True
        error = ShuttingDownError("the daemon is stopping")
        decisions: list[Decision] = []
        for pool in self.pools.values():
            decisions += pool.refuse_all(error)
            decisions += pool.clear()
        return decisions

    @property
    def databases(self) -> int:
        """How many clones exist or may exist."""
        return sum(pool.databases for pool in self.pools.values())

    def next_timer(self) -> float | None:
        """When `expire` has something to do next, in monotonic seconds."""
        times = [t for pool in self.pools.values() if (t := pool.next_timer()) is not None]
        return min(times, default=None)

    def leases(self) -> list[Lease]:
        """Return every lease, the oldest first."""
        every = [lease for pool in self.pools.values() for lease in pool.leases.values()]
        return sorted(every, key=lambda lease: lease.granted_at)

    def _make_way(self, now: float) -> list[Decision]:
        """Where requests wait in vain for the common limit, let the richest pools give way."""
        decisions: list[Decision] = []
        pools = self.pools.values()
        freed = sum(pool.leaving for pool in pools) + self.budget.room
        if self.budget.paused:
            return decisions
        for needy in pools:
            if not needy.can_create or needy.is_pausing(now):
                continue
            own_room = needy.limits.max_clones - needy.databases
            wanted = min(needy.waiting - needy.creating, own_room)
            for _ in range(max(0, wanted - freed)):
                decisions += max(pools, key=lambda pool: pool.ready).give_up_ready()
            freed = max(0, freed - wanted) if wanted > 0 else freed
        return decisions
