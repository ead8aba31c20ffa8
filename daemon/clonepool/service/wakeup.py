"""A signal for one loop of background work: there may be something to do."""

from __future__ import annotations

import math

import anyio


class WakeUp:
    """Wakes the one task that waits for it; a signal that comes before the wait is not lost."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the task, or have its next wait return at once."""
        self._event.set()

    async def wait(self, seconds: float = math.inf) -> bool:
        """Wait for the signal and clear it.

        Args:
            seconds: how long at most.

        Returns:
            whether the signal came.
        """
        with anyio.move_on_after(seconds):
            await self._event.wait()
        came = self._event.is_set()
        if came:
            self._event = anyio.Event()
        return came
