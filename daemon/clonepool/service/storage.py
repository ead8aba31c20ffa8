"""Whether there is room for another clone: measured where that can be, else reckoned."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clonepool.core.limits import Limit
from clonepool.errors import ResourceError

if TYPE_CHECKING:
    from pathlib import Path

    from clonepool.config import Config

MEBIBYTE = 1024 * 1024
_MEMINFO = "/proc/meminfo"
_MEMINFO_BYTES = 16_384


class StorageGuard:
    """Says no before the disk does: a full disk can take PostgreSQL down, and every lease with it.

    Args:
        config: the floor of free space, and the budget.
        root: the embedded server's storage; None for a server by URL, whose disk is not ours to
            see: there the budget alone holds.
        in_memory: whether that storage takes of the machine's memory.
    """

    def __init__(self, config: Config, root: Path | None, *, in_memory: bool) -> None:
        self._floor = config.embedded.min_free_mib * MEBIBYTE
        self._budget = config.pool.max_storage_mib * MEBIBYTE
        self._root = root
        # Kept open: asking it must not take a file when there is none left.
        self._memory = os.open(_MEMINFO, os.O_RDONLY | os.O_CLOEXEC) if in_memory else None
        self._under_way = 0

    def begin(self, size: int, reckoned: int) -> None:
        """Take room for a clone that is about to be made; `end` gives it back.

        Args:
            size: of the clone, in bytes.
            reckoned: what all clones that exist or may exist take, this one counted, in bytes.

        Raises:
            ResourceError: there is none; nothing was taken.
        """
        refusal = self._refusal(size, reckoned)
        if refusal is not None:
            raise refusal
        self._under_way += size

    def is_short(self, size: int, reckoned: int) -> bool:
        """Say whether `begin` would refuse; nothing is taken."""
        return self._refusal(size, reckoned) is not None

    def _refusal(self, size: int, reckoned: int) -> ResourceError | None:
        if self._budget and reckoned > self._budget:
            return ResourceError(
                f"the clones take {reckoned // MEBIBYTE} MiB of {self._budget // MEBIBYTE} MiB",
                limit=Limit.STORAGE,
                remedy="raise pool.max_storage_mib, or lower max_clones",
            )
        free = self.free() if self._floor else None
        if free is not None and free - self._under_way - size < self._floor:
            return ResourceError(
                f"{free // MEBIBYTE} MiB are free on {self._root}, and"
                f" {self._floor // MEBIBYTE} MiB are to stay free",
                limit=Limit.STORAGE,
                remedy="free some, or lower embedded.min_free_mib",
            )
        return None

    def end(self, size: int) -> None:
        """Give back what `begin` took: the clone is there and measured, or it is not."""
        self._under_way -= size

    def free(self) -> int | None:
        """Return the bytes that are free, None where that cannot be seen."""
        if self._root is None:
            return None
        try:
            found = os.statvfs(self._root)
        except OSError:
            return None
        free = found.f_bavail * found.f_frsize
        return free if self._memory is None else min(free, _available(self._memory))

    def close(self) -> None:
        """Let go of what is kept open."""
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None


def _available(meminfo: int) -> int:
    """Return the bytes of memory that are available, as many as one likes if that is not told."""
    try:
        told = os.pread(meminfo, _MEMINFO_BYTES, 0)
    except OSError:
        return 1 << 62
    for line in told.splitlines():
        if line.startswith(b"MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62
