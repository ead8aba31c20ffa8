"""What pools were told before events were data. To be deleted when nobody calls it any more."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from clonepool.core import events
from clonepool.core.clone import State
from clonepool.core.pool_state import PoolState

if TYPE_CHECKING:
    from clonepool.core.decisions import Decision, Lease
    from clonepool.core.leasing import Leasing
    from clonepool.errors import ClonepoolError


class FormerCalls(PoolState):
    """Methods that stand for one event each."""

    @abstractmethod
    def handle(self, event: events.PoolEvent, now: float) -> list[Decision]:
        """See `Pool.handle`."""

    @property
    def stale(self) -> bool:
        """See `Template.is_stale`."""
        return self.lifecycle.is_stale

    @property
    def tenancy(self) -> Leasing:
        """See `leasing`."""
        return self.leasing

    def recorded(self, waiter: int, now: float) -> list[Decision]:
        """See `events.LeaseRecorded`."""
        return self.leasing.recorded(waiter, now)

    def not_recorded(self, waiter: int, error: ClonepoolError) -> list[Decision]:
        """See `events.LeaseNotRecorded`."""
        return self.leasing.not_recorded(waiter, error)

    def parked(self, name: str) -> list[Decision]:
        """See `events.CloneParked`."""
        return self.inventory.end_parking(name)

    def found(self, name: str) -> list[Decision]:
        """See `events.FoundUnknown`."""
        self.inventory.enter(name)
        return [self.inventory.drop(name)]

    def found_parked(self, name: str, generation: str, *, used: bool = False) -> list[Decision]:
        """See `events.FoundParked`."""
        self.inventory.enter(name, State.PARKED, used=used, generation=generation)
        return []

    def found_leased(self, lease: Lease) -> list[Decision]:
        """See `events.FoundLeased`."""
        self.inventory.enter(lease.clone, State.LEASED, generation=lease.generation)
        self.leases.enter(lease)
        return []

    def found_kept(self, name: str, until: float) -> list[Decision]:
        """See `events.FoundKept`."""
        self.inventory.enter(name, State.KEPT)
        self.inventory.kept_until.set(name, until)
        return []

    def adopted(self, name: str, now: float) -> list[Decision]:
        """See `events.CloneAdopted`."""
        return self.handle(events.CloneAdopted(self.template, name), now)

    def build_postponed(self, obstacle: ClonepoolError | None) -> list[Decision]:
        """See `events.BuildPostponed`."""
        return self.handle(events.BuildPostponed(self.template, obstacle), 0.0)

    def template_stale(self) -> list[Decision]:
        """See `events.TemplateStale`."""
        return self.handle(events.TemplateStale(self.template), 0.0)

    def template_lost(self) -> list[Decision]:
        """See `events.TemplateLost`."""
        return self.handle(events.TemplateLost(self.template), 0.0)

    def distrust(self) -> list[Decision]:
        """See `events.ReadyDistrusted`."""
        return self.handle(events.ReadyDistrusted(self.template), 0.0)
