"""Writes down what must outlive the daemon: leases with a TTL, clones for the next start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import park

if TYPE_CHECKING:
    from clonepool.core.decisions import Park, Record
    from clonepool.service.context import Context

log = structlog.get_logger()

RECORD_FAILED, PARK_FAILED = "lease.record_failed", "clone.park_failed"


class PersistJob:
    """Carries out `Record` and `Park`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def record(self, decision: Record) -> None:
        """Write the lease into its clone's comment, and tell the pool how it went."""
        context, lease = self._context, decision.lease
        pool = context.fleet.pools[lease.template]
        comment = context.comments.leased(
            lease, context.now(), context.credentials.occasion(lease.clone)
        )
        try:
            async with context.pens.pen(lease.clone):
                await databases.annotate(context.gateway, lease.clone, comment)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            told = context.failures.begin(RECORD_FAILED, lease.template, error, clone=lease.clone)
            context.carry_out(pool.not_recorded(decision.waiter, told))
            return
        context.failures.end(RECORD_FAILED, lease.template)
        context.carry_out(pool.recorded(decision.waiter, context.now()))

    async def park(self, decision: Park) -> None:
        """Seal the clone for the next start; what cannot be sealed is dropped."""
        context, pool = self._context, self._context.fleet.pools[decision.template]
        comment = context.comments.parked(
            decision.template, pool.generation, decision.clone, used=decision.used
        )
        provable = context.rewinder.can_be_adopted(decision.clone)
        context.rewinder.forget(decision.clone)
        if decision.used and not provable:
            # The next daemon could not see that it is clean, or not where its rows are.
            context.carry_out(pool.unusable(decision.clone, context.now()))
            return
        try:
            await park(context.gateway, decision.clone, comment)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.failures.begin(PARK_FAILED, decision.template, error, clone=decision.clone)
            context.carry_out(pool.unusable(decision.clone, context.now()))
            return
        log.debug("clone.parked", clone=decision.clone)
        pool.parked(decision.clone)
