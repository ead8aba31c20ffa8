"""Seconds of CPU that processes have used, as the kernel counted them."""

from __future__ import annotations

import os
from pathlib import Path

from clonepool.postgres.embedded.cluster import read_marker
from clonepool.postgres.embedded.postmaster import find_running
from clonepool.postgres.embedded.server import MARKER
from clonepool.postgres.embedded.storage import Storage

_TICKS = os.sysconf("SC_CLK_TCK")
_PARENT, _UTIME, _STIME, _CUTIME, _CSTIME = 1, 11, 12, 13, 14
"""Positions of fields in /proc/PID/stat, counted after the name."""


def own_seconds(pid: int) -> float:
    """Return what one process has used itself, with all of its threads."""
    fields = _stat(pid)
    return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS


def task_seconds(pid: int) -> float:
    """Return what a process that has one thread has used, to the nanosecond; 0 if it has ended.

    `own_seconds` counts hundredths of a second, of which a short process has none.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    except OSError:
        return 0.0


def family_seconds(pid: int) -> float:
    """Return what a process and its children have used, those that ended too.

    A server's backends are its postmaster's children, and most have ended by the time one looks:
    the kernel keeps what they used with their parent.
    """
    ticks = 0
    for member in (pid, *_children(pid)):
        try:
            fields = _stat(member)
        except OSError:
            continue  # it has just ended; its time is counted with its parent later
        ticks += sum(int(fields[field]) for field in (_UTIME, _STIME, _CUTIME, _CSTIME))
    return ticks / _TICKS


def postmaster_of(state: Path) -> int:
    """Return the process id of the embedded server of the daemon with this state directory."""
    marker = read_marker(state / MARKER)
    running = None if marker is None else find_running(Storage(Path(marker.root), in_memory=False))
    if running is None:
        raise RuntimeError(f"no server runs for {state}")
    return running.pid


def _children(parent: int) -> list[int]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if int(_stat(int(directory.name))[_PARENT]) == parent:
                found.append(int(directory.name))
        except OSError:
            continue  # it ended while we looked
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
