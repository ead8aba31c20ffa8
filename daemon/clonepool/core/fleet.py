"""All pools of one server under one limit, and who holds which lease.

Routes an event to the pool that it concerns. Beyond that it decides what no pool can decide alone:
whose waiter has the next place under the common limit, and whose ready clone gives way to a waiter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core import events as ev
from clonepool.core import refusals
from clonepool.core.budget import Budget
from clonepool.core.clone import State
from clonepool.core.pool import Pool
from clonepool.errors import UnknownTemplateError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from clonepool.core.decisions import Decision, Lease, Request
    from clonepool.core.events import Event
    from clonepool.core.limits import Limits
    from clonepool.core.naming import Namer, Serials
    from clonepool.errors import ClonepoolError


class Fleet:
    """The pools by template, and the leases by token and by holder."""

    def __init__(
        self, limits: Mapping[str, Limits], max_clones: int, namer: Namer, serials: Serials
    ) -> None:
        self.budget = Budget(max_clones)
        self._naming = namer, serials
        self._draining = False
        self.stopping = False
        self.pools: dict[str, Pool] = {}
        for name, limit in limits.items():
            self.enter(name, limit)
        self.budget.pools = self.pools

    # Events -------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Decision]:
        """Take what happened and return what is to be done: all that changes the fleet is this.

        Args:
            event: what happened.
            now: monotonic seconds.

        Raises:
            UnknownTemplateError, NotYourLeaseError, LeaseBusyError, TemplateFailedError,
            DrainingError, ShuttingDownError: a client asked for what cannot be; nothing changed.
        """
        return [*self._dispatch(event, now), *self.make_way(now)]

    def _dispatch(self, event: Event, now: float) -> list[Decision]:  # noqa: C901, PLR0911, PLR0912 - one case an event
        match event:
            case ev.Release(token):
                return self.release(token)
            case ev.Acquire(template, request):
                return self.acquire(template, request, now)
            case ev.HolderGone(holder, waiters):
                return self.holder_gone(holder, waiters, now)
            case ev.TimeCame():
                return self.expire(now)
            case ev.Reset(token, request):
                return self.reset(token, request, now)
            case ev.Renew(token, ttl, request):
                return self.renew(token, ttl, request)
            case ev.Keep(token, seconds):
                return self.keep(token, seconds, now)
            case ev.Reserve(template, holder, tests, parallelism):
                return self.reserve(template, holder, tests, parallelism, now)
            case ev.Cancel(waiter):
                return self.cancel(waiter, now)
            case ev.Drain(template, on):
                return self.drain(template, now, on=on)
            case ev.CloneDropped(template, clone):
                return self.dropped(template, clone, now)
            case ev.ClonesLost(template, clones):
                return self.lost(template, clones, now)
            case ev.CreateDeclined(template, clone, error):
                return self.create_declined(template, clone, error, now)
            case ev.ServerLost(problem):
                return self.pause(problem)
            case ev.ServerFound():
                return self.resume(now)
            case ev.GrantsHeld():
                return self.hold()
            case ev.GrantsResumed():
                return self.let_go(now)
            case ev.Stop():
                return self.stop()
            case ev.EndLeases():
                return self.end_leases()
            case ev.TemplateEntered(template, limits):
                self.enter(template, limits)
                return []
            case ev.TemplateRemoved(template):
                return self.remove(template)
            case ev.FoundLeased(lease):
                return self.pools[lease.template].handle(event, now)
            case _:
                return self.pools[event.template].handle(event, now)

    # Clients ------------------------------------------------------------------------------

    def acquire(self, template: str, request: Request, now: float) -> list[Decision]:
        """Grant, queue or refuse.

        Raises:
            UnknownTemplateError: no such template; nothing changed.
            ShuttingDownError: `stop` was called; nothing changed.
        """
        pool = self.pool(template)
        if self.stopping:
            raise refusals.shutting_down()
        return [*pool.acquire(request, now), *self.make_way(now)]

    def reserve(
        self, template: str, holder: int, tests: int, parallelism: int, now: float
    ) -> list[Decision]:
        """Hold clones ready for tests that a connection announced; see `Pool.reserve`.

        Raises:
            UnknownTemplateError, TemplateFailedError, DrainingError, ShuttingDownError: nothing
                changed.
        """
        return self.pool(template).reserve(holder, tests, parallelism, now)

    def pool(self, template: str) -> Pool:
        """Return the pool of that template, or raise UnknownTemplateError."""
        try:
            return self.pools[template]
        except KeyError:
            known = ", ".join(sorted(self.pools)) or "none"
            raise UnknownTemplateError(
                f"there is no template {template!r}", remedy=f"there are: {known}"
            ) from None

    def enter(self, template: str, limits: Limits) -> Pool:
        """Return the pool of a template, which is made if there is none."""
        if template not in self.pools:
            pool = self.pools[template] = Pool(template, limits, self.budget, *self._naming)
            pool.draining = self._draining
            if self.stopping:
                pool.stop()
        return self.pools[template]

    def remove(self, template: str) -> list[Decision]:
        """Forget a pool that holds nothing any more."""
        del self.pools[template]
        return []

    def release(self, token: str) -> list[Decision]:
        """End a lease: whoever knows the token may.

        Raises:
            NotYourLeaseError: the token is stale or wrong; nothing changed.
        """
        pool, lease = self._find(token)
        return pool.release(lease)

    def keep(self, token: str, seconds: float, now: float) -> list[Decision]:
        """End a lease and keep its clone for a person.

        Raises:
            NotYourLeaseError, LeaseBusyError: the token is stale or wrong, or the lease is being
                reset; nothing changed.
        """
        pool, lease = self._find_at_rest(token)
        return pool.keep(lease, seconds, now)

    def renew(self, token: str, ttl: float | None, request: Request) -> list[Decision]:
        """Let a lease last longer.

        Raises:
            NotYourLeaseError, LeaseBusyError: the token is stale or wrong, or the lease is being
                reset; nothing changed.
        """
        pool, lease = self._find_at_rest(token)
        return pool.renew(lease, ttl, request)

    def reset(self, token: str, request: Request, now: float) -> list[Decision]:
        """Give a lease a clean clone.

        Raises:
            NotYourLeaseError, LeaseBusyError: the token is stale or wrong, or the lease is being
                reset; nothing changed.
            ShuttingDownError: `stop` was called; nothing changed.
        """
        pool, lease = self._find_at_rest(token)
        if self.stopping:
            raise refusals.shutting_down()
        decisions = pool.reset(lease, request, now)
        return [*decisions, *self.make_way(now)] if pool.waiting else decisions

    def holder_gone(self, holder: int, waiters: Collection[int], now: float) -> list[Decision]:
        """End the leases of a connection that ended, and take back what it asked for."""
        decisions: list[Decision] = []
        for pool in self.pools.values():
            for lease in pool.leases.held_by(holder):
                decisions += pool.release(lease)
            for waiter in waiters:
                decisions += pool.forget(waiter)
            pool.demand.holder_gone(holder)
        return [*decisions, *self.plan(now)]

    def cancel(self, waiter: int, now: float) -> list[Decision]:
        """Take one request back that its own connection does not want; see `Pool.cancel`."""
        decisions = [each for pool in self.pools.values() for each in pool.cancel(waiter)]
        return [*decisions, *self.plan(now)]

    def lease(self, token: str) -> Lease:
        """Return the lease of that token, which has its clone.

        Raises:
            NotYourLeaseError, LeaseBusyError: there is none, or it is being reset.
        """
        return self._find_at_rest(token)[1]

    def held_by(self, holder: int) -> int:
        """Return how many leases would end with that connection."""
        return sum(pool.leases.count_held_by(holder) for pool in self.pools.values())

    def leased(self, template: str | None) -> int:
        """Return how many leases of one template, or of all, are held."""
        return sum(
            len(pool.leases) for name, pool in self.pools.items() if template in (None, name)
        )

    def drain(self, template: str | None, now: float, *, on: bool) -> list[Decision]:
        """Grant no new leases of one template, or of any; or do so again.

        Raises:
            UnknownTemplateError: no such template; nothing changed.
        """
        if template is None:
            self._draining = on
        pools = self.pools.values() if template is None else [self.pool(template)]
        refusals = [decision for pool in pools for decision in pool.drain(on=on)]
        return [*refusals, *self.plan(now)]

    # What happened ------------------------------------------------------------------------

    def dropped(self, template: str, name: str, now: float) -> list[Decision]:
        """A database is gone: its place may be another pool's gain."""
        self.pools[template].dropped(name)
        return self.plan(now)

    def lost(self, template: str, names: Iterable[str], now: float) -> list[Decision]:
        """Clones were dropped or renamed by somebody else: make others."""
        self.pools[template].lost(names)
        return self.plan(now)

    def create_declined(
        self, template: str, name: str, error: ClonepoolError, now: float
    ) -> list[Decision]:
        """A copy was not even begun: its place may be another pool's gain."""
        self.pools[template].create_declined(name, error, now)
        return self.plan(now)

    def expire(self, now: float) -> list[Decision]:
        """Do what is due, then retry what failed a while ago."""
        due = [decision for pool in self.pools.values() for decision in pool.expire(now)]
        return [*due, *self.plan(now)]

    def plan(self, now: float) -> list[Decision]:
        """Let every pool start what it misses: what was waited for longest first, then refills."""
        if self.stopping:
            return []
        waited_for = [pool for pool in self.pools.values() if pool.line]
        decisions = [decision for pool in waited_for for decision in pool.serve(now)]
        decisions += [pool.start_one() for pool in self.budget.claimants(self.budget.room, now)]
        decisions += [d for pool in waited_for for d in pool.plan(now, refill=False)]
        if self.budget.room > 0:
            decisions += [d for pool in self.pools.values() for d in pool.plan(now)]
        return [*decisions, *self.make_way(now)]

    def make_way(self, now: float) -> list[Decision]:
        """Where requests wait in vain for the common limit, let the richest pools give way.

        To be asked after whatever happened: a clone that was in use may lie idle now, while another
        pool's waiters need its place.
        """
        decisions: list[Decision] = []
        if self.stopping:
            return decisions
        pools = self.pools.values()
        for _ in range(self.budget.to_evict(now)):
            decisions += max(pools, key=lambda pool: pool.ready).give_up_ready()
        return decisions

    def pause(self, problem: str = "") -> list[Decision]:
        """Grant and start nothing: the server is away. Leases and waiters stay."""
        self.budget.paused = True
        self.budget.server_problem = problem
        return []

    def resume(self, now: float) -> list[Decision]:
        """Go on: the server is back."""
        self.budget.paused = False
        self.budget.server_problem = ""
        for pool in self.pools.values():
            pool.retries.now()
        return self.plan(now)

    def hold(self) -> list[Decision]:
        """Grant nothing for the moment: what a lease left in the server is to be gone before."""
        self.budget.held += 1
        return []

    def let_go(self, now: float) -> list[Decision]:
        """Take back one `hold`."""
        self.budget.held -= 1
        return [] if self.budget.held else self.plan(now)

    # The end ------------------------------------------------------------------------------

    def stop(self) -> list[Decision]:
        """Grant nothing from now on, refuse who waits, and park what is ready; leases go on."""
        self.stopping = True
        return [decision for pool in self.pools.values() for decision in pool.stop()]

    def end_leases(self) -> list[Decision]:
        """End the leases that do not outlive the daemon."""
        return [decision for pool in self.pools.values() for decision in pool.end_leases()]

    @property
    def mortal_leases(self) -> int:
        """How many leases end with the daemon."""
        return sum(
            not lease.outlives_connection
            for pool in self.pools.values()
            for lease in pool.leases.values()
        )

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds a clone, and all that were held are clean again or gone."""
        out = (State.LEASED, State.RETURNED, State.RECYCLING)
        return not any(pool.inventory.count[state] for pool in self.pools.values() for state in out)

    @property
    def unsettled(self) -> int:
        """How many databases an orderly stop still has to wait for."""
        return sum(pool.unsettled for pool in self.pools.values())

    # Questions ----------------------------------------------------------------------------

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

    # Inside -------------------------------------------------------------------------------

    def _find(self, token: str) -> tuple[Pool, Lease]:
        for pool in self.pools.values():
            lease = pool.leases.find(token)
            if lease is not None:
                return pool, lease
        raise refusals.not_your_lease()

    def _find_at_rest(self, token: str) -> tuple[Pool, Lease]:
        """Return the lease of that token and its pool, unless it is being reset."""
        pool, lease = self._find(token)
        if lease in pool.resets:
            raise refusals.being_reset()
        return pool, lease
