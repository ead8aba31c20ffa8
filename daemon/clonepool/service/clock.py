"""Deadlines that outlive the process: written down by one daemon, read by the next.

The wall clock can be set, and set back. Under the same boot the kernel's count of seconds since the
boot is used, which cannot be set; after a reboot there is only the wall clock.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from clonepool.postgres.embedded.cluster import boot_id


class Moment(msgspec.Struct, frozen=True):
    """A moment, by the wall clock (Unix seconds) and by the kernel's (seconds since boot)."""

    at: float
    boot: str
    since_boot: float


def moment(seconds_from_now: float) -> dict[str, Any]:
    """Return a moment to be written down, in seconds from now; negative for the past."""
    found = Moment(
        round(time.time() + seconds_from_now, 3),
        boot_id(),
        round(time.clock_gettime(time.CLOCK_BOOTTIME) + seconds_from_now, 3),
    )
    written: dict[str, Any] = msgspec.to_builtins(found)
    return written


def seconds_until(written: Moment) -> float:
    """Return the seconds until a moment; negative when it is past."""
    if written.boot == boot_id():
        return written.since_boot - time.clock_gettime(time.CLOCK_BOOTTIME)
    return written.at - time.time()
