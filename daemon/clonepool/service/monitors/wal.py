"""Reads the server's log while clones are leased, before PostgreSQL removes it.

PostgreSQL keeps only so much of its log (WAL). A lease that lasts for an hour and writes
gigabytes is followed as it goes, so that the log is neither lost nor read in one piece at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.errors import ClonepoolError
from clonepool.service.monitors.base import Monitor, Pause

if TYPE_CHECKING:
    from clonepool.core.fleet import Fleet
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.service.condition import Condition
    from clonepool.service.failures import Failures

FOLLOW_SECONDS = 0.5
"""Seconds between two reads."""


class WalMonitor(Monitor):
    """Has the rewinder read the log as it is written; needed only where clones are rewound.

    Args:
        failures: of every monitor.
        changed: notified when the pools change.
        fleet: tells whether any clone is in use.
        rewinder: reads the log.
    """

    failed_event = "log.follow_failed"

    def __init__(
        self, failures: Failures, *, changed: Condition, fleet: Fleet, rewinder: Rewinder
    ) -> None:
        super().__init__(failures)
        self._changed = changed
        self._fleet = fleet
        self._rewinder = rewinder

    async def run_once(self) -> Pause:
        """Read what was written in half a second of use."""
        await self._changed.wait_for(lambda: not self._fleet.is_idle)
        await anyio.sleep(FOLLOW_SECONDS)
        if not self._fleet.is_idle:
            await self._catch_up()
        return Pause(0.0, 0.0)

    async def _catch_up(self) -> None:
        try:
            await self._rewinder.catch_up()
        except ClonepoolError:
            return  # the server monitor reports what is wrong with the server
