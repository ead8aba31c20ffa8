"""What one pool lacks, and which limit keeps that away. Counts only; nothing is changed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.clone import State
from clonepool.core.limits import Limit, limit_of
from clonepool.core.sizing import clones_to_create

if TYPE_CHECKING:
    from clonepool.core.budget import Budget
    from clonepool.core.decisions import Request
    from clonepool.core.inventory import Inventory
    from clonepool.core.limits import Limits
    from clonepool.core.queue import WaitQueue
    from clonepool.core.sizing import Demand
    from clonepool.errors import ClonepoolError


class Shortage:
    """Compares what a pool has with what it should have."""

    def __init__(
        self, limits: Limits, budget: Budget, inventory: Inventory, queue: WaitQueue, demand: Demand
    ) -> None:
        self._limits = limits
        self._budget = budget
        self._inventory = inventory
        self._queue = queue
        self._demand = demand

    @property
    def room(self) -> int:
        """How many more clones the limits allow; may be negative."""
        return min(self._limits.max_clones - len(self._inventory), self._budget.room)

    @property
    def fresh(self) -> int:
        """How many requests wait for a fresh clone, beyond the clones that are on their way."""
        return self._queue.fresh - self._inventory.fresh - self._inventory.coming

    @property
    def owed(self) -> int:
        """How many clones `min_ready` promises and the pool neither has nor makes."""
        return max(0, self._limits.min_ready - self._inventory.ready - self._inventory.coming)

    @property
    def used_in_the_way_of_fresh(self) -> int:
        """How many used clones are to go, since the limits leave no room for fresh ones."""
        if not self._queue.fresh:
            return 0
        count = self._inventory.count
        leaving = count[State.DROPPING] + count[State.RECYCLING]
        return max(0, self.fresh - max(0, self.room) - leaving)

    def owes_fresh(self, request: Request) -> bool:
        """Say whether waiters before this one want fresh clones, for which used ones must go."""
        if request.fresh or not self._queue.fresh:
            return False
        dropping = self._inventory.count[State.DROPPING]
        coming = self._inventory.coming + max(0, self.room) + dropping
        return self._queue.fresh_before(request) > coming

    def to_create(self, *, refill: bool, shelf: bool) -> int:
        """Return how many clones to start.

        Args:
            refill: whether up to `min_ready`, beyond those for waiters.
            shelf: whether up to the target: after the waiters, and after what min_ready promises
                of this template and of all others.
        """
        room = self.room
        missing = self._missing(self._limits.min_ready if refill else 0, room)
        if self._queue.fresh:
            missing = max(missing, min(self.fresh, room))
        if shelf and (target := self._demand.target) > self._limits.min_ready and not self._queue:
            spare = room - max(0, self._budget.owed - missing)
            missing = max(missing, self._missing(target, spare))
        return missing

    def wanted(self, asking: int = 0) -> int:
        """Return how many clones min_ready, waiters and `asking` more lack, limits or not."""
        return self._needed(asking) - self._inventory.ready - self._inventory.coming

    def limited_by(self, error: ClonepoolError | None, asking: int = 0) -> Limit | None:
        """Name what keeps wanted clones away; `error` is that of the last try to make one."""
        if self._budget.paused and self.wanted(asking) > 0:
            return Limit.SERVER
        lacking = limit_of(error)
        if self._needed(asking) > self._inventory.ready and lacking is not None:
            return lacking  # also while it is tried again
        if self.wanted(asking) <= 0:
            return None
        if len(self._inventory) >= self._limits.max_clones:
            return Limit.TEMPLATE
        return Limit.POOL if self._budget.room <= 0 else None

    def _needed(self, asking: int) -> int:
        return self._limits.min_ready + len(self._queue) + asking

    def _missing(self, min_ready: int, room: int) -> int:
        return clones_to_create(
            min_ready=min_ready,
            waiting=len(self._queue),
            ready=self._inventory.ready,
            coming=self._inventory.coming,
            room=room,
        )
