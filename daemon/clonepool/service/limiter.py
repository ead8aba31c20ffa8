"""A limiter that serves the most urgent first: CREATE and DROP DATABASE go through it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Rank(IntEnum):
    """How urgent work is; the lowest goes first."""

    WAITED_FOR = 0
    """A test waits for it."""
    REFILL = 1
    """It makes a clone that is to be ready for the next test."""
    LAST = 2
    """Nothing waits for it."""


class PriorityLimiter:
    """Lets a few in at a time; a place that becomes free goes to the waiter of the lowest rank.

    Ranks are asked for at that moment, not when the waiting began: a refill becomes urgent when a
    test starts to wait for its clone. Equal ranks are served in order of arrival.

    Args:
        places: how many may be inside at a time.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[Callable[[], int], anyio.Event]] = []

    @asynccontextmanager
    async def place(
        self, rank: Callable[[], int], *, seconds: float | None = None
    ) -> AsyncIterator[None]:
        """Hold a place while inside.

        Args:
            rank: returns how urgent the work is at that moment.
            seconds: give the place back after that many seconds, though the work continues.
        """
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
                self._leave()  # the place was given to us already
            raise

    def _leave(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        entry = min(self._waiting, key=lambda waiting: waiting[0]())
        self._waiting.remove(entry)
        entry[1].set()
