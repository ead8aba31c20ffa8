"""Gives up the session that stays on a leased clone when somebody wants the database for himself.

DROP, RENAME and copying as a template fail while anybody is connected, but PostgreSQL waits for
five seconds first, holding its lock on the database. So it is enough to look for such locks every
now and then, and only while there are leased clones on which a session of ours stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool.core.clone import State
from clonepool.errors import ClonepoolError
from clonepool.postgres import databases

if TYPE_CHECKING:
    from clonepool.service.context import Context

log = structlog.get_logger()

LOOK_FAILED = "clone.courtesy_failed"
LOOK_SECONDS = 0.5
"""How often; a tenth of what PostgreSQL waits."""


class LockWatch:
    """Looks who waits for us to go."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stirred = anyio.Event()

    def stir(self) -> None:
        """Begin to look, if there is anything to look at: something changed."""
        if not self._stirred.is_set() and self._in_the_way():
            self._stirred.set()

    async def run(self) -> None:
        """Look for ever, as long as we are in anybody's way."""
        while True:
            await self._stirred.wait()
            while clones := self._in_the_way():
                await self._run_once(clones)
                await anyio.sleep(LOOK_SECONDS)
            self._stirred = anyio.Event()

    def _in_the_way(self) -> set[str]:
        """Return the leased clones on which a session of ours stays."""
        kept = self._context.rewinder.clones_with_session
        return {
            clone
            for pool in (self._context.fleet.pools.values() if kept else ())
            if pool.inventory.count[State.LEASED]
            for clone in kept & pool.inventory.names(State.LEASED)
        }

    async def _run_once(self, clones: set[str]) -> None:
        try:
            wanted = await databases.awaited_databases(self._context.gateway, clones)
        except ClonepoolError:
            return  # the keeper tells what is wrong with the server
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            self._context.failures.begin(LOOK_FAILED, "", error)
            return
        for clone in wanted:
            log.debug("clone.stepped_aside", clone=clone)
            self._context.rewinder.close_session(clone)
