"""Recycles returned clones, and sets aside those that are to be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import structlog

from clonepool.errors import ServerUnavailableError
from clonepool.postgres import databases
from clonepool.postgres.recycling import Outcome, recycle, stray_sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.decisions import Keep, Recycle
    from clonepool.service.workers.context import Context

    Sessions = list[dict[str, Any]] | None

log = structlog.get_logger()

RECYCLE_FAILED, KEEP_FAILED = "clone.recycle_failed", "clone.keep_failed"
ASKING_SECONDS = 2.0
"""How long the answer to a release may wait for the server to name the sessions left."""


class Recycler:
    """Carries out `Recycle` and `Keep`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self, decision: Recycle, report: Callable[[Sessions], None] | None) -> None:
        """Name the stray sessions, then make the clone good or say that it cannot be."""
        context, pool = self._context, self._context.fleet.pools[decision.template]
        if decision.written_down:
            await self._write_end(decision)
        if report is not None:
            report(await self._strays(decision.template, decision.clone))
        try:
            outcome = await recycle(context.gateway, decision.clone)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.troubles.begin(RECYCLE_FAILED, decision.template, error, clone=decision.clone)
            outcome = Outcome.RECREATE
        else:
            context.troubles.end(RECYCLE_FAILED, decision.template)
        if outcome is Outcome.REWOUND:
            context.carry_out(pool.rewound(decision.clone, context.now()))
        else:
            context.carry_out(pool.unusable(decision.clone, context.now()))

    async def keep(self, decision: Keep, report: Callable[[Sessions, bool], None]) -> None:
        """Name and end the sessions, and write down that the clone is kept."""
        context = self._context
        comment = context.comments.kept(
            decision.template, decision.generation, decision.label, decision.seconds
        )
        strays = await self._strays(decision.template, decision.clone)
        try:
            await databases.end_sessions(context.gateway, decision.clone, seconds=ASKING_SECONDS)
            async with context.pens.pen(decision.clone):
                await databases.annotate(context.gateway, decision.clone, comment)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.troubles.begin(KEEP_FAILED, decision.template, error, clone=decision.clone)
            report(strays, False)
            return
        log.info("clone.kept", clone=decision.clone, seconds=decision.seconds)
        report(strays, True)

    async def _write_end(self, decision: Recycle) -> None:
        """Write down that the lease is over, so that no later daemon takes it for a living one."""
        context = self._context
        comment = context.comments.plain(decision.template, decision.generation)
        try:
            async with context.pens.pen(decision.clone):
                await databases.annotate(context.gateway, decision.clone, comment)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.troubles.begin(RECYCLE_FAILED, decision.template, error, clone=decision.clone)

    async def _strays(self, template: str, clone: str) -> Sessions:
        context = self._context
        try:
            with anyio.fail_after(ASKING_SECONDS):
                found = await stray_sessions(context.gateway, clone)
        except TimeoutError:
            late = ServerUnavailableError(f"no word in {ASKING_SECONDS:g} s of who uses {clone}")
            context.troubles.begin(RECYCLE_FAILED, template, late, clone=clone)
            return None
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.troubles.begin(RECYCLE_FAILED, template, error, clone=clone)
            return None
        if found:
            context.metrics.leaked_sessions.inc(len(found))
            log.warning("clone.sessions_leaked", clone=clone, sessions=len(found))
        return found
