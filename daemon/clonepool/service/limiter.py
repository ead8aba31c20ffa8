"""A limiter that serves the most urgent first."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class PriorityLimiter:
    """Let few in at a time; when a place becomes free, the waiter of the lowest rank gets it.

    Ranks are asked for at that moment, not when the waiting began: a refill becomes urgent when
    a test starts to wait for its clone. Equal ranks are served in order of arrival.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[Callable[[], int], anyio.Event]] = []

    @asynccontextmanager
    async def place(
        self, rank: Callable[[], int], *, seconds: float | None = None
    ) -> AsyncIterator[None]:
        """Hold a place while inside, or for so many `seconds` of it."""
        await self._enter(rank)
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._leave()

        timer = asyncio.get_running_loop().call_later(seconds, leave) if seconds else None
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            leave()

    async def _enter(self, rank: Callable[[], int]) -> None:
        if self._free > 0:
            self._free -= 1
            return
        entry = (rank, anyio.Event())
        self._waiting.append(entry)
        try:
            await entry[1].wait()
        except BaseException:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:
                self._leave()  # the place was ours already
            raise

    def _leave(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        entry = min(self._waiting, key=lambda waiting: waiting[0]())
        self._waiting.remove(entry)
        entry[1].set()
