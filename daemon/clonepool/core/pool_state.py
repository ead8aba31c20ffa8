"""What one pool consists of, and the queries on it. Nothing is changed here.

Which events change a pool, and how, is in `pool`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from clonepool.core import refusals
from clonepool.core.backoff import Backoff
from clonepool.core.budget import rank
from clonepool.core.clone import State
from clonepool.core.decisions import PoolSnapshot
from clonepool.core.inventory import Inventory
from clonepool.core.leases import LeaseBook
from clonepool.core.leasing import Leasing
from clonepool.core.limits import Limit, limit_of
from clonepool.core.queue import WaitQueue
from clonepool.core.resets import Resets
from clonepool.core.shortage import Shortage
from clonepool.core.sizing import Demand
from clonepool.core.template import Condition, Template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.core.budget import Budget
    from clonepool.core.decisions import Request
    from clonepool.core.limits import Limits
    from clonepool.core.naming import Namer, Serials
    from clonepool.errors import ClonepoolError


class PoolState:
    """The parts of a pool, and questions about them.

    Args:
        template: its name.
        limits: how many clones.
        budget: shared by all pools; this one takes for each clone that exists or may exist.
        namer: makes the clones' names.
        serials: shared by all pools.
        templates: of all leases by token, shared by all pools.

    Attributes:
        budget: shared by all pools.
        lifecycle: the condition of the template.
        leases: the leases and their clones.
        leasing: how leases begin and end.
        queue: requests that wait for a clone.
        resets: leases that wait for a clean clone.
        inventory: the clones.
        demand: how many are to be ready.
        shortage: how many are missing.
        retries: when to try again to make one.
    """

    def __init__(
        self,
        template: str,
        limits: Limits,
        budget: Budget,
        namer: Namer,
        serials: Serials,
        templates: dict[str, str] | None = None,
    ) -> None:
        def changed() -> None:
            budget.changed.add(self)

        self.template = template
        self.limits = limits
        self.budget = budget
        self.lifecycle = Template(template)
        self.leases = LeaseBook(template, templates)
        self.queue = WaitQueue(budget)
        self.resets = Resets(changed)
        self.inventory = Inventory(template, budget, namer, serials, changed)
        self.leasing = Leasing(
            template, limits, self.leases, self.queue, self.resets, self.inventory
        )
        self.demand = Demand(limits, self.inventory, self.queue)
        self.shortage = Shortage(limits, budget, self.inventory, self.queue, self.demand)
        self.retries = Backoff()
        changed()

    # The template -------------------------------------------------------------------------

    @property
    def phase(self) -> Condition:
        """What is known of the template itself, as the protocol has it."""
        return self.lifecycle.phase

    @property
    def generation(self) -> str:
        """The generation that is cloned, empty when there was none yet."""
        return self.lifecycle.generation

    @property
    def failure(self) -> ClonepoolError | None:
        """Why the template could not be built."""
        return self.lifecycle.failure

    @property
    def can_create(self) -> bool:
        """Whether there is a generation to clone."""
        return self.lifecycle.can_create

    # Counts -------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many requests are in the queue."""
        return len(self.queue)

    @property
    def ready(self) -> int:
        """How many clones could be granted now."""
        return self.inventory.ready

    @property
    def coming(self) -> int:
        """How many clones are being made or adopted."""
        return self.inventory.coming

    @property
    def databases(self) -> int:
        """How many databases of this pool exist or may exist."""
        return len(self.inventory)

    @property
    def returning(self) -> int:
        """How many clones are being recycled and will probably be clean again for any request.

        Those that are being reset go back to their own leases.
        """
        return self._recycling if self.demand.rewinds_mostly else 0

    @property
    def leaving(self) -> int:
        """How many clones are on their way out: each will make room."""
        return self.inventory.count[State.DROPPING] + self._recycling - self.returning

    @property
    def unsettled(self) -> int:
        """How many databases an orderly stop still has to wait for.

        What is parked when the daemon was never able to adopt it stays, and so do kept clones and
        those of leases that continue.
        """
        lasting = sum(
            lease.outlives_connection and lease not in self.resets for lease in self.leases.values()
        )
        count = self.inventory.count
        return len(self.inventory) - count[State.KEPT] - count[State.PARKED] - lasting

    @property
    def is_idle(self) -> bool:
        """Whether there are no leases, no waiters and no announced tests."""
        announced = self.demand.reservations.ready
        kept = self.inventory.count[State.KEPT]
        return not (len(self.leases) or self.queue or announced or kept)

    def claims(self, now: float) -> Iterator[float]:
        """Yield the ranks of the waiters for whom no clone is on its way, though one could be.

        In order; see `budget.rank`.
        """
        if not self.queue or not self.can_create or self.retries.is_pausing(now):
            return iter(())
        served = self.inventory.coming + min(self.returning, len(self.queue) - self.queue.fresh)
        if not self.budget.grants:  # the ready clones wait with the requests
            served += self.inventory.ready
        possible = max(0, self.limits.max_clones - len(self.inventory))
        return (rank(request) for request in islice(self.queue, served, served + possible))

    # Time ---------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When `expire` or `plan` has something to do next, in monotonic seconds."""
        times = [self.inventory.kept_until.first(), self.leasing.next_time()]
        if not self.budget.paused and not self.lifecycle.is_over:
            times.append(self.demand.next_time())
        if len(self.leases):
            times.append(self.resets.first_deadline())
        if self.queue:
            times.append(self.queue.first_deadline())
        if self.retries.at is not None and self.can_create and self.missing(refill=True) > 0:
            times.append(self.retries.at)
        return min((time for time in times if time is not None), default=None)

    # What is missing ----------------------------------------------------------------------

    def missing(self, *, refill: bool) -> int:
        """Return how many clones to start: without `refill`, only for the waiters."""
        stock = refill and not self.lifecycle.is_draining
        return self.shortage.to_create(refill=refill, stock=stock)

    def limited_by(self, asking: int = 0) -> Limit | None:
        """Name what keeps wanted clones away, for the waiters and `asking` requests more."""
        if not self.can_create:
            return limit_of(self.lifecycle.obstacle)
        return self.shortage.limited_by(self.retries.last_error, asking)

    def timed_out(self, request: Request, now: float) -> ClonepoolError:
        """Return what a request is told at its deadline: the error names what kept its clone away.

        Args:
            request: whose time is over.
            now: monotonic seconds.
        """
        waited = f"waited {now - request.asked_at:.3f} s for a clone of {self.template}"
        if self.lifecycle.is_being_built:
            return refusals.still_building(waited, self.lifecycle.obstacle)
        if self.budget.paused:
            return refusals.server_away(waited, self.budget.server_problem)
        limit = self.limited_by(asking=1)
        if limit is Limit.TEMPLATE and len(self.leases):
            held, most = list(self.leases.values()), self.limits.max_clones
            return refusals.pool_full(waited, self.template, held, limit, most, now)
        if limit is Limit.POOL and (held := self.budget.leases()):
            most = self.budget.limit
            return refusals.pool_full(waited, self.template, held, limit, most, now)
        if self.retries.last_error is not None:
            return refusals.creating_fails(waited, self.retries.last_error)
        return refusals.too_slow(waited)

    def snapshot(self) -> PoolSnapshot:
        """Return counts and texts for status and metrics."""
        states, failure = self.inventory.count, self.failure
        error = self.lifecycle.obstacle or self.retries.last_error
        return PoolSnapshot(
            template=self.template,
            phase=self.phase,
            generation=self.generation,
            failure=failure.sentence() if failure else "",
            draining=self.lifecycle.is_draining,
            min_ready=self.limits.min_ready,
            target=self.demand.target,
            max_clones=self.limits.max_clones,
            creating=states[State.CREATING],
            ready=states[State.READY],
            leased=states[State.LEASED],
            returned=0,
            recycling=states[State.RECYCLING],
            kept=states[State.KEPT],
            parked=self.inventory.parked,
            dropping=states[State.DROPPING],
            waiting=len(self.queue),
            last_error=error.sentence() if error else "",
            limited_by=self.limited_by() or "",
        )

    @property
    def _recycling(self) -> int:
        return self.inventory.count[State.RECYCLING] - self.resets.waiting
