"""Recycles returned clones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from clonepool.postgres.recycling import Outcome, recycle, stray_sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.decisions import Recycle
    from clonepool.service.workers.context import Context

log = structlog.get_logger()


class Recycler:
    """Carries out `Recycle`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(
        self,
        decision: Recycle,
        report: Callable[[list[dict[str, Any]] | None], None] | None,
    ) -> None:
        """Name the stray sessions, then make the clone good or say that it cannot be."""
        context, pool = self._context, self._context.fleet.pools[decision.template]
        if report is not None:
            report(await self._strays(decision.clone))
        try:
            outcome = await recycle(context.gateway, decision.clone)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            told = context.count_failure(error)
            log.warning("clone.recycle_failed", clone=decision.clone, error=told.sentence())
            outcome = Outcome.RECREATE
        if outcome is Outcome.REWOUND:
            context.carry_out(pool.rewound(decision.clone, context.now()))
        else:
            context.carry_out(pool.not_rewindable(decision.clone, context.now()))

    async def _strays(self, clone: str) -> list[dict[str, Any]] | None:
        try:
            found = await stray_sessions(self._context.gateway, clone)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            self._context.count_failure(error)
            return None
        if found:
            self._context.metrics.leaked_sessions.inc(len(found))
            log.warning("clone.sessions_leaked", clone=clone, sessions=len(found))
        return found
