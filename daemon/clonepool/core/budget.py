"""The common limit: how many clones all pools may hold, and which request has the next place.

A *claim* is a waiting request for which no clone is on its way, though its own pool's limit has
room for one. Claims are served in the order in which they were made, whatever their template: by a
free place, by one that a leaving clone makes free, by the place of an idle clone, and at last by
that of a clone which came back to a pool whose own waiters came later.

The last costs a drop and a copy where a rewind would have done, so it takes a claim that is older
by `HANDOVER_SECONDS`: a pool serves its waiters from the places that it has for that long before
it hands one over. (The quantum of a time-sharing scheduler: it bounds both the wait and the share
of the time that is lost to changing over.)
"""

from __future__ import annotations

from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

from clonepool.core.queue import WaiterCount

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from clonepool.core.decisions import Lease, Request
    from clonepool.core.pool_state import PoolState

HANDOVER_SECONDS = 0.25
"""Seconds by which a claim must be older than a pool's own waiters to take a place from them."""
_FIRST_OF_ALL = float("-inf")


class Budget(WaiterCount):
    """The places for clones, and the claims to them.

    Args:
        limit: how many clones may exist at a time.
        pools: all that share the places, by template.

    Attributes:
        limit: how many clones may exist at a time.
        used: how many exist or may exist.
        waiting: requests in the queues of all pools.
        idle: clones that are ready.
        paused: whether the server is away: nothing is granted or started.
        held: how many reasons there are to grant nothing for the moment.
        pools: all that share the places, by template.
        changed: pools whose clones have changed state since these were counted last.
        server_problem: what is wrong with the server while it is away.
    """

    def __init__(self, limit: int, pools: Mapping[str, PoolState]) -> None:
        super().__init__()
        self.limit = limit
        self.used = 0
        self.idle = 0
        self.paused = False
        self.held = 0
        self.changed: set[PoolState] = set()
        self._counted: dict[PoolState, tuple[int, int]] = {}
        self._leaving = self._owed = 0
        self.pools = pools
        self.server_problem = ""

    @property
    def grants(self) -> bool:
        """Whether clones that are ready are granted."""
        return not (self.paused or self.held)

    @property
    def room(self) -> int:
        """How many more may be made now; negative when an earlier run left too many."""
        return 0 if self.paused else self.limit - self.used

    @property
    def owed(self) -> int:
        """How many clones all pools together lack of what min_ready promises."""
        self._recount()
        return self._owed

    @property
    def coming_free(self) -> int:
        """How many places there are, or will be by themselves."""
        self._recount()
        return self.room + self._leaving

    def pause(self, problem: str) -> None:
        """Grant and start nothing: the server is away, `problem` says how."""
        self.paused = True
        self.server_problem = problem

    def resume(self) -> None:
        """Grant and start again: the server is back."""
        self.paused = False
        self.server_problem = ""

    def hold(self) -> None:
        """Grant nothing until a matching `let_go`."""
        self.held += 1

    def let_go(self) -> None:
        """Take back one `hold`."""
        self.held -= 1

    def leases(self) -> list[Lease]:
        """Return the leases of all pools."""
        return [lease for pool in self.pools.values() for lease in pool.leases.values()]

    def claimants(self, places: int, now: float) -> list[str]:
        """Return the templates that have the first claims: one entry per claim.

        Args:
            places: how many entries at most.
            now: monotonic seconds.
        """
        if places <= 0 or not self.waiting:
            return []
        ranked = merge(*(_ranked(pool, now) for pool in self.pools.values() if pool.queue))
        return [template for _, template in islice(ranked, places)]

    def to_evict(self, now: float) -> int:
        """Return how many idle clones must give their places to claims."""
        if not self.waiting or not self.idle or self.paused:
            return 0
        coming = max(0, self.coming_free)
        return max(0, len(self.claimants(coming + self.idle, now)) - coming)

    def is_overtaken(self, pool: PoolState, request: Request, now: float) -> bool:
        """Say whether the place of a clone that could serve `request` is due to another pool.

        That is when more claims of others, each older by `HANDOVER_SECONDS`, are to be served than
        places come free.
        """
        if self.waiting <= len(pool.queue):
            return False
        limit = rank(request) - HANDOVER_SECONDS
        others = (other for other in self.pools.values() if other is not pool and other.queue)
        older = sum(_count(_until(other.claims(now), limit)) for other in others)
        return older > 0 and older > max(0, self.coming_free)

    def forget(self, pool: PoolState) -> None:
        """Count for a pool no more that holds nothing."""
        self._recount()
        leaving, owed = self._counted.pop(pool, (0, 0))
        self._leaving -= leaving
        self._owed -= owed

    def _recount(self) -> None:
        """Count again what is leaving and what is owed, in the pools that have changed."""
        while self.changed:
            pool = self.changed.pop()
            leaving_before, owed_before = self._counted.get(pool, (0, 0))
            leaving, owed = self._counted[pool] = pool.leaving, pool.shortage.owed
            self._leaving += leaving - leaving_before
            self._owed += owed - owed_before


def rank(request: Request) -> float:
    """Return what orders requests of all templates: when they were made, resets before all."""
    return request.asked_at if request.continues is None else _FIRST_OF_ALL


def _ranked(pool: PoolState, now: float) -> Iterator[tuple[float, str]]:
    return ((at, pool.template) for at in pool.claims(now))


def _until(ranks: Iterable[float], limit: float) -> Iterator[float]:
    return (at for at in ranks if at < limit)


def _count(ranks: Iterable[float]) -> int:
    return sum(1 for _ in ranks)
