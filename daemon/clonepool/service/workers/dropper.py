"""Drops clones, behind everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool.postgres import databases

if TYPE_CHECKING:
    from clonepool.core.decisions import Drop
    from clonepool.service.workers.context import Context

log = structlog.get_logger()

LAST = 2
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0


class Dropper:
    """Carries out `Drop`, again and again until the database is gone."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self, decision: Drop) -> None:
        """Remove the database and tell the fleet; a failure is tried again after a pause."""
        pause = _FIRST_PAUSE_SECONDS
        while not await self._run_once(decision):
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        context = self._context
        context.carry_out(context.fleet.dropped(decision.template, decision.clone, context.now()))

    async def _run_once(self, decision: Drop) -> bool:
        context = self._context
        async with context.limiter.place(lambda: LAST):
            began = context.now()
            try:
                await databases.drop(context.gateway, decision.clone)
            except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
                told = context.count_failure(error)
                log.warning("clone.drop_failed", clone=decision.clone, error=told.sentence())
                return False
        context.metrics.of[decision.template].drop_seconds.observe(context.now() - began)
        return True
