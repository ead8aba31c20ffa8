"""One writer at a time for each clone's comment, in the order in which they came.

A renewal and the end of the lease can be written at the same time; what was decided last must be
what stands there in the end, or the next daemon would take an ended lease for a living one.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class CommentLocks:
    """A lock for each clone that is being written to."""

    def __init__(self) -> None:
        self._locks: dict[str, anyio.Lock] = {}

    @asynccontextmanager
    async def pen(self, clone: str) -> AsyncIterator[None]:
        """Hold the pen of one clone."""
        lock = self._locks.setdefault(clone, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(clone, None)
