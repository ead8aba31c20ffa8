"""One lock for each clone's comment: writers take turns, in the order in which they came.

A renewal and the end of the lease can be written at the same time. What was decided last must be
what the comment says in the end: otherwise the next daemon takes an ended lease for a living one.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class CommentLocks:
    """The locks of the comments that are being written."""

    def __init__(self) -> None:
        self._locks: dict[str, anyio.Lock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def hold(self, clone: str) -> AsyncIterator[None]:
        """Hold the lock of one clone's comment."""
        lock = self._locks.setdefault(clone, anyio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(clone, None)
