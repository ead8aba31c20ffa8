"""Which template sizes fit, and where: in memory or on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1024 * 1024
SPARE_MIB = 2048
"""MiB reserved for the server itself, its WAL, and other processes."""
MEMORY_SHARE = 0.8
"""Share of the free memory that is used; the rest is for other processes."""
_MEMORY = Path("/dev/shm")  # noqa: S108 - only looked at, for how much is free


class Room(msgspec.Struct, frozen=True):
    """What is measured.

    Attributes:
        sizes: of templates, in MiB.
        skipped: those that do not fit.
        storage: as the configuration's embedded.storage.
    """

    sizes: list[int]
    skipped: list[int]
    storage: str


def find_room(directory: Path, wanted: Sequence[int]) -> Room:
    """Choose memory if all sizes fit there, else the disk of `directory` and what fits there."""
    if needed_mib(wanted) <= MEMORY_SHARE * _free_memory_mib():
        return Room(list(wanted), [], "memory")
    free = shutil.disk_usage(directory).free // MIB
    fit = [size for n, size in enumerate(wanted) if needed_mib(wanted[: n + 1]) <= free]
    return Room(fit, [size for size in wanted if size not in fit], "disk")


def needed_mib(sizes: Sequence[int]) -> int:
    """Return the room for three copies of each: template, clone, another while one is dropped.

    One more of the largest is made by hand.
    """
    return 3 * sum(sizes) + max(sizes) + SPARE_MIB


def _free_memory_mib() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return min(shutil.disk_usage(_MEMORY).free // MIB, available // 1024)
