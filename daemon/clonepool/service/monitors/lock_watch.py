"""Closes the session on a leased clone when a client needs exclusive access to the database.

DROP, RENAME and copying as a template fail while a session is connected, but PostgreSQL waits for
five seconds first, holding its lock on the database. So it is enough to check for such locks
regularly while there are leased clones on which a session of the daemon stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.core.clone import State
from clonepool.errors import ClonepoolError
from clonepool.postgres import databases
from clonepool.service.monitors.base import Monitor, Pause

if TYPE_CHECKING:
    from clonepool.core.fleet import Fleet
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.service.failures import Failures
    from clonepool.service.state_changes import StateChanges

log = structlog.get_logger()

LOOK_SECONDS = 0.5
"""Seconds between two looks; a tenth of what PostgreSQL waits."""


class LockWatch(Monitor):
    """Looks for locks that wait for the daemon's sessions to go.

    Args:
        failures: of every monitor.
        changed: notified when the pools change.
        fleet: tells which clones are leased.
        gateway: the way to the server.
        rewinder: has the sessions.
    """

    failed_event = "clone.courtesy_failed"

    def __init__(
        self,
        failures: Failures,
        *,
        changed: StateChanges,
        fleet: Fleet,
        gateway: Gateway,
        rewinder: Rewinder,
    ) -> None:
        super().__init__(failures)
        self._changed = changed
        self._fleet = fleet
        self._gateway = gateway
        self._rewinder = rewinder

    async def run_once(self) -> Pause:
        """Look once, as soon as a clone is in use on which a session may stay."""
        await self._changed.wait_for(lambda: not self._fleet.is_idle)
        clones = self._in_the_way()
        if clones:
            await self._step_aside(clones)
        return Pause(LOOK_SECONDS, LOOK_SECONDS)

    def _in_the_way(self) -> set[str]:
        """Return the leased clones on which a session of the daemon stays."""
        kept = self._rewinder.clones_with_session
        if not kept:
            return kept
        pools = self._fleet.pools.values()
        return {name for pool in pools for name in kept & pool.inventory.names(State.LEASED)}

    async def _step_aside(self, clones: set[str]) -> None:
        try:
            wanted = await databases.awaited_databases(self._gateway, clones)
        except ClonepoolError:
            return  # the server monitor reports what is wrong with the server
        for clone in wanted:
            log.debug("clone.stepped_aside", clone=clone)
            self._rewinder.close_session(clone)
