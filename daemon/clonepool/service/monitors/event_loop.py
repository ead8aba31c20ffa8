"""Measures how late the event loop is: every lease waits for it, whatever else happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.service.monitors.base import Monitor, Pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Histogram

    from clonepool.service.failures import Failures

BEAT_SECONDS = 0.25
"""Seconds between two measurements. A callback that takes as long is always noticed; a shorter one
by chance, and so in proportion to its time."""


class EventLoopMonitor(Monitor):
    """Sleeps again and again, and records how much later than due each sleep ended.

    Args:
        failures: of every monitor.
        lag_seconds: is given each delay.
        now: monotonic seconds.
    """

    failed_event = "loop.measure_failed"

    def __init__(
        self, failures: Failures, *, lag_seconds: Histogram, now: Callable[[], float]
    ) -> None:
        super().__init__(failures)
        self._lag_seconds = lag_seconds
        self._now = now

    async def run_once(self) -> Pause:
        """Sleep once, and record the delay."""
        due = self._now() + BEAT_SECONDS
        await anyio.sleep(BEAT_SECONDS)
        self._lag_seconds.observe(max(0.0, self._now() - due))
        return Pause(0.0, 0.0)
