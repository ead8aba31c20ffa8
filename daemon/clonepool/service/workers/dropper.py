"""Drops clones, behind everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.errors import ClonepoolError
from clonepool.postgres import databases
from clonepool.service.limiter import PriorityLimiter

if TYPE_CHECKING:
    from clonepool.core.decisions import Drop
    from clonepool.service.workers.context import Context

LAST = 2
DROP_FAILED = "clone.drop_failed"
DROPS_AT_A_TIME = 2
PATIENCE_SECONDS = 1.0
"""How long a drop may hold one of the places that creating clones needs too."""
_ENDING_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 2.0


class _StillInUseError(ClonepoolError):
    """A session on the clone does not go away."""

    code = "clone_in_use"


class Dropper:
    """Carries out `Drop`, again and again until the database is gone."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._places = PriorityLimiter(DROPS_AT_A_TIME)

    async def run(self, decision: Drop) -> None:
        """Remove the database and tell the fleet; a failure is tried again after a pause."""
        pause = _FIRST_PAUSE_SECONDS
        while not await self._run_once(decision):
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        context = self._context
        context.troubles.end(DROP_FAILED, decision.template, decision.clone)
        context.logins.forget(decision.clone)
        context.rewinder.forget(decision.clone)
        context.carry_out(context.fleet.dropped(decision.template, decision.clone, context.now()))

    async def _run_once(self, decision: Drop) -> bool:
        """Try; what refuses to go away is found out before it can hold a place."""
        context = self._context
        try:
            await self._end_sessions(decision.clone)
            async with self._places.place(lambda: LAST):
                await self._drop(decision)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            name = decision.clone
            context.troubles.begin(DROP_FAILED, decision.template, error, subject=name, clone=name)
            return False
        return True

    async def _end_sessions(self, clone: str) -> None:
        gateway = self._context.gateway
        if not await databases.end_sessions(
            gateway, clone, seconds=_ENDING_SECONDS, clients_only=True
        ):
            raise _StillInUseError(f"a session on {clone} does not end")

    async def _drop(self, decision: Drop) -> None:
        """Drop; one that hangs, on whatever, gives the place it has of the common ones back."""
        context = self._context
        async with context.limiter.place(lambda: LAST, seconds=PATIENCE_SECONDS):
            began = context.now()
            await databases.drop(context.gateway, decision.clone)
            if context.config.templates[decision.template].lease_roles:
                await context.roles.remove(decision.clone)
        context.metrics.of[decision.template].drop_seconds.observe(context.now() - began)
