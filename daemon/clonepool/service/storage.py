"""Whether there is room for another clone: measured where possible, else computed."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clonepool.core.limits import Limit
from clonepool.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clonepool.config import Config

MEBIBYTE = 1024 * 1024
_MEMINFO = "/proc/meminfo"
_MEMINFO_BYTES = 16_384
_UNKNOWN = 1 << 62


class NoRoomError(ResourceError):
    """There is no room for another clone; nothing was begun."""


class StorageBudget:
    """Refuses a clone before the disk does.

    A full disk can take PostgreSQL down, and every lease with it.

    Args:
        config: the space that must stay free, and the budget of all clones.
        root: the embedded server's storage. None for a server by URL, whose disk cannot be seen:
            there the budget is the only limit.
        in_memory: whether that storage is in the machine's memory.
    """

    def __init__(self, config: Config, root: Path | None, *, in_memory: bool) -> None:
        self._floor = config.embedded.min_free_mib * MEBIBYTE
        self._budget = config.pool.max_storage_mib * MEBIBYTE
        self._root = root
        # Kept open, so that it can be read when the daemon has no more files.
        self._memory = os.open(_MEMINFO, os.O_RDONLY | os.O_CLOEXEC) if in_memory else None
        self._under_way = 0

    @contextmanager
    def room(self, size: int, taken: int) -> Iterator[None]:
        """Reserve room for a clone while it is made.

        Args:
            size: of the clone, in bytes.
            taken: what all clones take, this one included, in bytes.

        Raises:
            NoRoomError: there is none; nothing is reserved.
        """
        self.begin(size, taken)
        try:
            yield
        finally:
            self.end(size)

    def begin(self, size: int, taken: int) -> None:
        """Reserve room as `room` does; `end` gives it back.

        Raises:
            NoRoomError: there is none; nothing is reserved.
        """
        refusal = self._refusal(size, taken)
        if refusal is not None:
            raise refusal
        self._under_way += size

    def end(self, size: int) -> None:
        """Give back what `begin` reserved: the clone is there and measured, or was not made."""
        self._under_way -= size

    def is_short(self, size: int, taken: int) -> bool:
        """Say whether `begin` would refuse; nothing is reserved."""
        return self._refusal(size, taken) is not None

    def free(self) -> int | None:
        """Return the free bytes, None where they cannot be seen."""
        if self._root is None:
            return None
        try:
            found = os.statvfs(self._root)
        except OSError:
            return None
        free = found.f_bavail * found.f_frsize
        return free if self._memory is None else min(free, _available(self._memory))

    def close(self) -> None:
        """Close the file that is kept open."""
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None

    def _refusal(self, size: int, taken: int) -> NoRoomError | None:
        if self._budget and taken > self._budget:
            return NoRoomError(
                f"the clones take {taken // MEBIBYTE} MiB of {self._budget // MEBIBYTE} MiB",
                limit=Limit.STORAGE,
                remedy="raise pool.max_storage_mib, or lower max_clones",
            )
        free = self.free() if self._floor else None
        if free is not None and free - self._under_way - size < self._floor:
            return NoRoomError(
                f"{free // MEBIBYTE} MiB are free on {self._root}, and"
                f" {self._floor // MEBIBYTE} MiB are to stay free",
                limit=Limit.STORAGE,
                remedy="free some, or lower embedded.min_free_mib",
            )
        return None


def _available(meminfo: int) -> int:
    """Return the bytes of memory that are available; a huge number if that cannot be read."""
    try:
        text = os.pread(meminfo, _MEMINFO_BYTES, 0)
    except OSError:
        return _UNKNOWN
    for line in text.splitlines():
        if line.startswith(b"MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _UNKNOWN
