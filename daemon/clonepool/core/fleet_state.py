"""What a fleet consists of, and the queries on it. Nothing is changed here.

Which events change a fleet, and how, is in `fleet`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core import refusals
from clonepool.core.budget import Budget
from clonepool.core.clone import State
from clonepool.core.leases import is_digest, token_digest
from clonepool.core.pool import Pool
from clonepool.core.timers import Timers
from clonepool.errors import UnknownTemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.core.decisions import Lease
    from clonepool.core.limits import Limits
    from clonepool.core.naming import Namer, Serials


class FleetState:
    """The pools by template, and the leases by token and by holder.

    Args:
        limits: of each template that there is from the beginning.
        max_clones: the common limit.
        namer: makes the clones' names.
        serials: gives clones their numbers.

    Attributes:
        budget: the common limit, and what is known of the server.
        pools: by template.
        stopping: whether nothing is granted any more.
    """

    def __init__(
        self, limits: Mapping[str, Limits], max_clones: int, namer: Namer, serials: Serials
    ) -> None:
        self.pools: dict[str, Pool] = {}
        self.budget = Budget(max_clones, self.pools)
        self.stopping = False
        self._naming = namer, serials
        self._draining = False
        self._template_of: dict[str, str] = {}  # by the tokens of all leases
        self._timers = Timers()
        for name, limit in limits.items():
            self._add_pool(name, limit)

    def pool(self, template: str) -> Pool:
        """Return the pool of that template, or raise UnknownTemplateError."""
        try:
            return self.pools[template]
        except KeyError:
            known = ", ".join(sorted(self.pools)) or "none"
            raise UnknownTemplateError(
                f"there is no template {template!r}", remedy=f"known templates: {known}"
            ) from None

    def lease(self, token: str) -> Lease:
        """Return the lease of that token, which has its clone.

        Raises:
            NotYourLeaseError, LeaseBusyError: there is none, or it is being reset.
        """
        pool, lease = self._find(token)
        if lease in pool.resets:
            raise refusals.being_reset()
        return lease

    def leases(self) -> list[Lease]:
        """Return every lease, the oldest first."""
        every = [lease for pool in self.pools.values() for lease in pool.leases.values()]
        return sorted(every, key=lambda lease: lease.granted_at)

    def held_by(self, holder: int) -> int:
        """Return how many leases would end with that connection."""
        return sum(pool.leases.count_held_by(holder) for pool in self.pools.values())

    def leased(self, template: str | None) -> int:
        """Return how many leases of one template, or of all, are held."""
        return sum(
            len(pool.leases) for name, pool in self.pools.items() if template in (None, name)
        )

    @property
    def connection_bound_leases(self) -> int:
        """How many leases end with the daemon."""
        return sum(pool.leases.connection_bound for pool in self.pools.values())

    @property
    def is_idle(self) -> bool:
        """Whether no clone is leased, and all that were leased are clean again or gone."""
        out = (State.LEASED, State.RECYCLING)
        return not any(pool.inventory.count[state] for pool in self.pools.values() for state in out)

    @property
    def unsettled(self) -> int:
        """How many databases an orderly stop still has to wait for."""
        return sum(pool.unsettled for pool in self.pools.values())

    @property
    def databases(self) -> int:
        """How many clones exist or may exist."""
        return sum(pool.databases for pool in self.pools.values())

    def next_timer(self) -> float | None:
        """When `events.TimeCame` has something to do next, in monotonic seconds."""
        return self._timers.first()

    # Inside -------------------------------------------------------------------------------

    def _find(self, token: str) -> tuple[Pool, Lease]:
        template = None
        if not is_digest(token):
            names = self._template_of
            template = names.get(token) or names.get(token_digest(token))
        lease = None if template is None else self.pools[template].leases.find(token)
        if template is None or lease is None:
            raise refusals.not_your_lease()
        return self.pools[template], lease

    def _add_pool(self, template: str, limits: Limits) -> Pool:
        pool = self.pools[template] = Pool(
            template, limits, self.budget, *self._naming, self._template_of
        )
        self._timers.changed((pool,))
        return pool
