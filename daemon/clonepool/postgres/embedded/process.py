"""Processes that are not children of the daemon, identified beyond their process ids.

The kernel gives the number of a process that has ended to a later one, so a signal that is sent to
a number may reach another process. A pidfd always means the same process. Where the kernel or a
sandbox has no pidfds, the time at which the process began is compared before each signal.
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
"""Positions of fields in /proc/<pid>/stat, after the program's name."""


class Process:
    """One process, even if its number is used again. Made by `hold`."""

    def __init__(self, pid: int, descriptor: int | None, began: str) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._began = began
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor)

    def alive(self) -> bool:
        """Say whether the process runs."""
        if self._descriptor is None:
            try:
                found = facts(self.pid)
            except OSError:  # that it cannot be read does not mean that it has ended
                return _exists(self.pid)
            return found is not None and found[_STATE] != "Z" and found[_BEGAN] == self._began
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(0)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)
            elif self.alive():
                os.kill(self.pid, number)


def hold(pid: int, is_it: Callable[[int], bool]) -> Process | None:
    """Return the process with a number if it is the right one, else None.

    Args:
        pid: the number.
        is_it: examines /proc/<pid>; it is called after the process is held, so what it sees is of
            that process.
    """
    descriptor = None
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError, OverflowError):
        return None
    except OSError:
        pass  # an old kernel or a sandbox: the time at which it began must suffice
    found = facts(pid)
    process = Process(pid, descriptor, found[_BEGAN] if found else "")
    return process if is_it(pid) and process.alive() else None


def facts(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat after the program's name; None if there is no process.

    Raises:
        OSError: a resource of the machine is exhausted, so it is not known.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise_if_exhausted(error)
        return None
    return line.rpartition(")")[2].split()


def raise_if_exhausted(error: OSError) -> None:
    """Raise an error that does not mean that there is no process: two servers damage the data."""
    if resource_errors.shortage(error) is not None:
        raise error


def _exists(pid: int) -> bool:
    """Say whether there is a process with that number, without opening a file."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def is_alive(pid: int) -> bool:
    """Say whether a process with that number runs now."""
    found = facts(pid)
    return found is not None and found[_STATE] != "Z"


def parent_of(pid: int) -> int | None:
    """Return the number of a process's present parent; None if there is no process."""
    found = facts(pid)
    return int(found[_PARENT]) if found else None
