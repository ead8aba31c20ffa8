"""Finds out when shortages of the machine are over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.service.monitors.base import Monitor, Pause

if TYPE_CHECKING:
    from clonepool.service.failures import Failures
    from clonepool.service.resources import Resources

LOOK_SECONDS = 0.25
"""Seconds between two looks while there is a shortage."""


class ResourceMonitor(Monitor):
    """Finds out when shortages are over.

    Args:
        failures: of every monitor.
        resources: the shortages.
    """

    failed_event = "machine.look_failed"

    def __init__(self, failures: Failures, *, resources: Resources) -> None:
        super().__init__(failures)
        self._resources = resources

    async def run_once(self) -> Pause:
        """Look once, as soon as there is a shortage."""
        await self._resources.noted.wait()
        await anyio.sleep(LOOK_SECONDS)
        self._resources.look()
        return Pause(0.0, 0.0)
