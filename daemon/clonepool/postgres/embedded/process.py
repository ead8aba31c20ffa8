"""A process that is not our child, held so that its number can't come to mean another one.

The kernel gives the number of a process that has ended to the next. So whoever signals a process by
its number alone may hit a stranger. A pidfd stands for one process for ever; where the kernel or a
sandbox has none, the time at which the process began is compared before each signal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from clonepool import resource_errors

if TYPE_CHECKING:
    from collections.abc import Callable

_STATE, _PARENT, _BEGAN = 0, 1, 19
"""Where in /proc/<pid>/stat, after the program's name."""


class Process:
    """One process, whatever becomes of its number. Made by `hold`."""

    def __init__(self, pid: int, descriptor: int | None, began: str) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._began = began
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor)

    def alive(self) -> bool:
        """Say whether it runs."""
        if self._descriptor is None:
            try:
                found = facts(self.pid)
            except OSError:  # it cannot be looked at now: that is not its end
                return _exists(self.pid)
            return found is not None and found[_STATE] != "Z" and found[_BEGAN] == self._began
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(0)

    def send(self, number: signal.Signals) -> None:
        """Signal it; nobody, when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)
            elif self.alive():
                os.kill(self.pid, number)


def hold(pid: int, is_it: Callable[[int], bool]) -> Process | None:
    """Return the process of that number if it is the right one, else None.

    Args:
        pid: the number.
        is_it: looks at /proc, and is asked after the process is held: so what it saw belongs to it.
    """
    descriptor = None
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError, OverflowError):
        return None
    except OSError:
        pass  # an old kernel or a sandbox: the time at which it began has to do
    found = facts(pid)
    process = Process(pid, descriptor, found[_BEGAN] if found else "")
    return process if is_it(pid) and process.alive() else None


def facts(pid: int) -> list[str] | None:
    """Return what /proc/<pid>/stat says after the program's name; None when there is no process.

    Raises:
        OSError: the machine is short of something, and it is not known.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise_if_passing(error)
        return None
    return line.rpartition(")")[2].split()


def raise_if_passing(error: OSError) -> None:
    """Tell what is not there from what cannot be looked at now: two servers would ruin the data."""
    if resource_errors.shortage(error) is not None:
        raise error


def _exists(pid: int) -> bool:
    """Say whether there is a process of that number; that takes no file."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def is_alive(pid: int) -> bool:
    """Say whether a process of that number runs now."""
    found = facts(pid)
    return found is not None and found[_STATE] != "Z"


def parent_of(pid: int) -> int | None:
    """Return the number of the process that started it, or adopted it since."""
    found = facts(pid)
    return int(found[_PARENT]) if found else None
