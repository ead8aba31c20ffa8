"""The pools of one server, their common limit, and the holders of leases.

Everything that happens comes in through `Fleet.handle`, as an event of `events`, and goes to the
pool that it concerns. The daemon has one shortcut, for the microseconds of a hit: it calls
`grant_at_once`, answers the client, and then calls `plan_after_grant`. Together they decide what
the event `Acquire` does. Beyond that the fleet decides what no pool can decide alone: whose waiter
has the next place under the common limit, and whose ready clone gives way to a waiter. What can be
asked of the fleet is in `fleet_state`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from clonepool.core import events as ev
from clonepool.core import refusals
from clonepool.core.fleet_state import FleetState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from clonepool.core.decisions import Decision, Lease, Request
    from clonepool.core.events import Event
    from clonepool.core.limits import Limits
    from clonepool.core.pool import Pool
    from clonepool.errors import ClonepoolError


class Fleet(FleetState):
    """The pools by template, and the leases by token and by holder."""

    # Events -------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Decision]:
        """Apply an event and return the decisions; only this changes the fleet.

        Args:
            event: what happened.
            now: monotonic seconds.

        Raises:
            UnknownTemplateError, NotYourLeaseError, LeaseBusyError, TemplateFailedError,
            DrainingError, ShuttingDownError: a client asked for what cannot be; nothing changed.
        """
        return [*self._dispatch(event, now), *self._make_way(now)]

    def _dispatch(self, event: Event, now: float) -> list[Decision]:  # noqa: C901, PLR0911, PLR0912 - one case an event
        match event:
            case ev.Release(token):
                return self._release(token)
            case ev.OfPool() | ev.FoundLeased():
                return self._changed_pool(event.template).handle(event, now)
            case ev.Acquire(template, request):
                return self._acquire(template, request, now)
            case ev.HolderGone(holder, waiters):
                return self._holder_gone(holder, waiters, now)
            case ev.TimeCame():
                return self._expire(now)
            case ev.Reset(token, request):
                return self._reset(token, request, now)
            case ev.Renew(token, ttl, request):
                return self._renew(token, ttl, request)
            case ev.Keep(token, seconds):
                return self._keep(token, seconds, now)
            case ev.Reserve(template, holder, tests, parallelism):
                return self._reserve(template, holder, tests, parallelism, now)
            case ev.Cancel(waiter):
                return self._cancel(waiter, now)
            case ev.Drain(template, on):
                return self._drain(template, now, on=on)
            case ev.CloneDropped(template, clone):
                return self._dropped(template, clone, now)
            case ev.ClonesLost(template, clones):
                return self._lost(template, clones, now)
            case ev.CreateDeclined(template, clone, error):
                return self._create_declined(template, clone, error, now)
            case ev.TemplateEntered(template, limits):
                self._enter(template, limits)
                return []
            case ev.TemplateRemoved(template):
                return self._remove(template)
            case ev.ServerLost(problem):
                return self._pause(problem)
            case ev.ServerFound():
                return self._resume(now)
            case ev.GrantsHeld():
                return self._hold()
            case ev.GrantsResumed():
                return self._let_go(now)
            case ev.Stop():
                return self._stop()
            case ev.EndLeases():
                return self._end_leases()
            case _:
                assert_never(event)

    # Clients ------------------------------------------------------------------------------

    def acquire(self, template: str, request: Request, now: float) -> list[Decision]:
        """Grant, queue or refuse; the same as to handle `events.Acquire`.

        Raises:
            UnknownTemplateError: no such template; nothing changed.
            ShuttingDownError: `Stop` was handled; nothing changed.
        """
        return [*self._acquire(template, request, now), *self._make_way(now)]

    def _acquire(self, template: str, request: Request, now: float) -> list[Decision]:
        pool = self.pool(template)
        if self.stopping:
            raise refusals.shutting_down()
        self._timers.changed((pool,))
        return pool.acquire(request, now)

    def _release(self, token: str) -> list[Decision]:
        """End a lease; the token is the only permission that is needed.

        Raises:
            NotYourLeaseError: the token is stale or wrong; nothing changed.
        """
        pool, lease = self._take(token)
        return pool.leasing.release(lease)

    def _keep(self, token: str, seconds: float, now: float) -> list[Decision]:
        """End a lease and keep its clone for inspection.

        Raises:
            NotYourLeaseError, LeaseBusyError: the token is stale or wrong, or the lease is being
                reset; nothing changed.
        """
        self.lease(token)
        pool, lease = self._take(token)
        return pool.leasing.keep(lease, seconds, now)

    def _renew(self, token: str, ttl: float | None, request: Request) -> list[Decision]:
        """Renew a lease.

        Raises:
            NotYourLeaseError, LeaseBusyError: the token is stale or wrong, or the lease is being
                reset; nothing changed.
        """
        self.lease(token)
        pool, lease = self._take(token)
        return [pool.leasing.renew(lease, ttl, request)]

    def _reset(self, token: str, request: Request, now: float) -> list[Decision]:
        """Give a lease a clean clone.

        Raises:
            NotYourLeaseError, LeaseBusyError: the token is stale or wrong, or the lease is being
                reset; nothing changed.
            ShuttingDownError: `Stop` was handled; nothing changed.
        """
        self.lease(token)
        if self.stopping:
            raise refusals.shutting_down()
        pool, lease = self._take(token)
        return [*pool.reset(lease, request, now), *self._make_way(now)]

    def grant_at_once(self, template: str, request: Request, now: float) -> Decision | None:
        """Grant a ready clone if there is one for the request; else change nothing.

        It is the first half of `acquire`, for a reply that waits for nothing else. The second half
        is `plan_after_grant`, which must come before any other event.

        Raises:
            UnknownTemplateError, ShuttingDownError: as `acquire`; nothing changed.
        """
        pool = self.pool(template)
        if self.stopping:
            raise refusals.shutting_down()
        return pool.grant_at_once(request, now)

    def plan_after_grant(self, template: str, now: float) -> list[Decision]:
        """Decide what follows from a grant at once; `now` is the time of the grant."""
        pool = self._changed_pool(template)
        return [*pool.plan(now), *self._make_way(now)]

    def _reserve(
        self, template: str, holder: int, tests: int, parallelism: int, now: float
    ) -> list[Decision]:
        """Hold clones ready for tests that a connection announced; see `Pool.reserve`.

        Raises:
            UnknownTemplateError, TemplateFailedError, DrainingError, ShuttingDownError: nothing
                changed.
        """
        pool = self.pool(template)
        self._timers.changed((pool,))
        return pool.reserve(holder, tests, parallelism, now)

    def _holder_gone(self, holder: int, waiters: Collection[int], now: float) -> list[Decision]:
        """End the leases of a connection that ended, and take back what it asked for."""
        decisions: list[Decision] = []
        self._timers.changed(self.pools.values())
        for pool in self.pools.values():
            for lease in pool.leases.held_by(holder):
                decisions += pool.leasing.release(lease)
            for waiter in waiters:
                decisions += pool.leasing.forget(waiter)
            pool.demand.holder_gone(holder)
        return [*decisions, *self._plan(now)]

    def _cancel(self, waiter: int, now: float) -> list[Decision]:
        """Withdraw a request of the same connection; see `Leasing.cancel`."""
        self._timers.changed(self.pools.values())
        decisions = [each for pool in self.pools.values() for each in pool.leasing.cancel(waiter)]
        return [*decisions, *self._plan(now)]

    def _drain(self, template: str | None, now: float, *, on: bool) -> list[Decision]:
        """Grant no new leases of one template, or of any; or do so again.

        Raises:
            UnknownTemplateError: no such template; nothing changed.
        """
        if template is None:
            self._draining = on
        pools = self.pools.values() if template is None else [self.pool(template)]
        self._timers.changed(pools)
        refused = [decision for pool in pools for decision in pool.drain(on=on)]
        return [*refused, *self._plan(now)]

    # Clones whose places come free ----------------------------------------------------------

    def _dropped(self, template: str, name: str, now: float) -> list[Decision]:
        """A database is gone: its place may be another pool's gain."""
        self._changed_pool(template).inventory.forget(name)
        return self._plan(now)

    def _lost(self, template: str, names: Iterable[str], now: float) -> list[Decision]:
        """Clones were dropped or renamed by others: make new ones."""
        self._changed_pool(template).inventory.lose(names)
        return self._plan(now)

    def _create_declined(
        self, template: str, name: str, error: ClonepoolError, now: float
    ) -> list[Decision]:
        """A copy was not even begun: its place may be another pool's gain."""
        pool = self._changed_pool(template)
        pool.retries.failed(error, now)
        pool.inventory.drop(name)
        pool.inventory.forget(name)
        return self._plan(now)

    # Templates ----------------------------------------------------------------------------

    def _enter(self, template: str, limits: Limits) -> Pool:
        """Return the pool of a template, which is made if there is none."""
        if template not in self.pools:
            pool = self._add_pool(template, limits)
            pool.drain(on=self._draining)
            if self.stopping:
                pool.stop()
        return self.pools[template]

    def _remove(self, template: str) -> list[Decision]:
        """Forget an empty pool."""
        pool = self.pools.pop(template)
        self._timers.forget(pool)
        self.budget.forget(pool)
        return []

    # Time and the server --------------------------------------------------------------------

    def _expire(self, now: float) -> list[Decision]:
        """Do what is due, then retry what failed a while ago."""
        self._timers.changed(self.pools.values())
        due = [decision for pool in self.pools.values() for decision in pool.expire(now)]
        return [*due, *self._plan(now)]

    def _plan(self, now: float) -> list[Decision]:
        """Start what all pools need: first for the longest waits, then refills."""
        if self.stopping:
            return []
        waited_for = [pool for pool in self.pools.values() if pool.queue]
        decisions = [d for pool in waited_for for d in self._note(pool, pool.serve(now))]
        first = self.budget.claimants(self.budget.room, now)
        decisions += [self._changed_pool(template).start_one() for template in first]
        for pool in waited_for:
            decisions += self._note(pool, pool.plan(now, refill=False))
        if self.budget.room > 0:
            for pool in self.pools.values():
                decisions += self._note(pool, pool.plan(now))
        return [*decisions, *self._make_way(now)]

    def _pause(self, problem: str = "") -> list[Decision]:
        """Grant and start nothing: the server is away. Leases and waiters stay."""
        self.budget.pause(problem)
        self._timers.changed(self.pools.values())
        return []

    def _resume(self, now: float) -> list[Decision]:
        """Go on: the server is back."""
        self.budget.resume()
        self._timers.changed(self.pools.values())
        for pool in self.pools.values():
            pool.retries.now()
        return self._plan(now)

    def _hold(self) -> list[Decision]:
        """Grant nothing for the moment: what a lease left in the server is to be gone before."""
        self.budget.hold()
        return []

    def _let_go(self, now: float) -> list[Decision]:
        """Take back one `hold`."""
        self.budget.let_go()
        return [] if self.budget.held else self._plan(now)

    # The end ------------------------------------------------------------------------------

    def _stop(self) -> list[Decision]:
        """Stop granting, refuse the waiters, and park the ready clones; leases continue."""
        self.stopping = True
        self._timers.changed(self.pools.values())
        return [decision for pool in self.pools.values() for decision in pool.stop()]

    def _end_leases(self) -> list[Decision]:
        """End the leases that do not outlive the daemon."""
        self._timers.changed(self.pools.values())
        pools = self.pools.values()
        return [decision for pool in pools for decision in pool.leasing.end_connection_bound()]

    # Inside -------------------------------------------------------------------------------

    def _make_way(self, now: float) -> list[Decision]:
        """If the common limit keeps requests waiting, take idle clones from the richest pools.

        Called after every event: a clone that was in use may be idle now, while another pool's
        waiters need its place.
        """
        decisions: list[Decision] = []
        if self.stopping:
            return decisions
        for _ in range(self.budget.to_evict(now)):
            richest = max(self.pools.values(), key=lambda pool: pool.ready)
            decisions += self._note(richest, richest.inventory.drop_idlest())
        return decisions

    def _take(self, token: str) -> tuple[Pool, Lease]:
        """Return the lease of that token and its pool, which is about to change."""
        pool, lease = self._find(token)
        pool.leases.learn(token)
        self._timers.changed((pool,))
        return pool, lease

    def _changed_pool(self, template: str) -> Pool:
        """Return a pool that is about to change."""
        pool = self.pools[template]
        self._timers.changed((pool,))
        return pool

    def _note(self, pool: Pool, decisions: Iterable[Decision]) -> Iterable[Decision]:
        """Return the decisions; where there are any the pool has changed."""
        if decisions:
            self._timers.changed((pool,))
        return decisions
