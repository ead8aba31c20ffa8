"""Drops clones, behind everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.config import EMBEDDED
from clonepool.errors import ClonepoolError
from clonepool.postgres import databases
from clonepool.service.jobs.deferral import DropQueue
from clonepool.service.jobs.drop_schedule import Governor, look_at
from clonepool.service.limiter import PriorityLimiter

if TYPE_CHECKING:
    from clonepool.core.decisions import Drop
    from clonepool.service.context import Context
    from clonepool.service.jobs.drop_schedule import Scene

URGENT, LAST = 0, 2
DROP_FAILED = "clone.drop_failed"
DROPS_AT_A_TIME = 2
LARGEST_BACKLOG_SHARE, SMALLEST_BACKLOG = 8, 4
"""Drops that are put off at a time: one in so many of all clones, and a few in any case."""
PATIENCE_SECONDS = 1.0
"""How long a drop may hold one of the places that creating clones needs too."""
VACUUM_EVERY = 200
"""Drops, after which the shared catalogs of the embedded server are vacuumed."""
VACUUM_FAILED = "server.vacuum_failed"
_ENDING_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 2.0


class _StillInUseError(ClonepoolError):
    """A session on the clone does not go away."""

    code = "clone_in_use"


class DropJob:
    """Carries out `Drop`, again and again until the database is gone."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._places = PriorityLimiter(DROPS_AT_A_TIME)
        most = context.config.pool.max_clones // LARGEST_BACKLOG_SHARE
        self._governor = Governor(max(SMALLEST_BACKLOG, most))
        self._deferral = DropQueue(self._look, self._governor, context.now)
        self._drops = 0

    def stir(self) -> None:
        """Look whether drops that were put off may begin: something changed."""
        self._deferral.stir()

    async def run(self, decision: Drop) -> None:
        """Remove the database and tell the fleet; a failure is tried again after a pause."""
        pause, asked_at = _FIRST_PAUSE_SECONDS, self._context.now()
        self._context.rewinder.forget(decision.clone)
        while not await self._run_once(decision, asked_at):
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        context = self._context
        context.failures.end(DROP_FAILED, decision.template, decision.clone)
        context.carry_out(context.fleet.dropped(decision.template, decision.clone, context.now()))
        self._drops += 1
        if self._drops % VACUUM_EVERY == 0 and context.config.server == EMBEDDED:
            await self._vacuum()

    async def _vacuum(self) -> None:
        try:
            await databases.vacuum_shared(self._context.gateway)
        except ClonepoolError as error:
            self._context.failures.begin(VACUUM_FAILED, "", error)
        else:
            self._context.failures.end(VACUUM_FAILED, "")

    async def _run_once(self, decision: Drop, asked_at: float) -> bool:
        """Try when it is its turn; what refuses to go away is found out before it holds a place."""
        context = self._context
        try:
            async with self._deferral.turn(decision.template, asked_at):
                await self._end_sessions(decision.clone)
                async with self._places.place(lambda: LAST):
                    await self._drop(decision)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            name = decision.clone
            context.failures.begin(DROP_FAILED, decision.template, error, subject=name, clone=name)
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
        async with context.limiter.place(
            lambda: self._rank(decision.template), seconds=PATIENCE_SECONDS
        ):
            began = context.now()
            await databases.drop(context.gateway, decision.clone)
            await context.credentials.remove(decision.clone)
        seconds = context.now() - began
        self._governor.learn(seconds)
        context.metrics.of[decision.template].drop_seconds.observe(seconds)

    def _rank(self, template: str) -> int:
        """Return how urgent it is: where a limit is reached, a drop is what somebody waits for."""
        return URGENT if template in look_at(self._context.fleet).urgent else LAST

    def _look(self) -> Scene:
        return look_at(self._context.fleet, short=self._context.is_storage_short())
