"""The open files of this process: the standard ones, and the limit on their number.

Standard library only: the command line calls this before it imports anything else.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_STANDARD = (0, 1, 2)
_UNLIMITED = 1 << 20
"""The limit that is reported where there is none."""


class FileLimit(NamedTuple):
    """The limit of open files: the one in force, and the highest that the process may set."""

    soft: int
    hard: int


def open_standard() -> None:
    """Open those of the descriptors 0, 1 and 2 that are closed, on /dev/null.

    Otherwise the next files that are opened get these numbers: output would go into a socket, and
    libuv aborts the process when it is asked to close one of them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) in _STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Python's value for a descriptor that was closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - stays open


def limit() -> FileLimit:
    """Return the limit of open files of this process."""
    try:
        found = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a sandbox may forbid reading it
        return FileLimit(_UNLIMITED, _UNLIMITED)
    return FileLimit(*(_UNLIMITED if each == resource.RLIM_INFINITY else each for each in found))


AT_START = limit()
"""The limit with which this process was started, which the programs that it starts get."""


def raise_limit() -> FileLimit:
    """Raise this process's limit of open files as far as allowed, and return it."""
    if AT_START.soft < AT_START.hard:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (AT_START.hard, AT_START.hard))
    return limit()


def with_limit(line: str) -> str:
    """Return a line for the shell, preceded by restoring the limit of `AT_START`."""
    return line if limit().soft == AT_START.soft else f"ulimit -Sn {AT_START.soft}; {line}"


def wrapped(command: Sequence[str | Path]) -> list[str | Path]:
    """Return a command that restores the limit of `AT_START` and then executes the program."""
    if limit().soft == AT_START.soft:
        return list(command)
    return ["/bin/sh", "-c", with_limit('exec "$@"'), "sh", *command]


def restore_limit(pid: int) -> None:
    """Set the limit of `AT_START` for a program that was started just now.

    Programs that use select() cannot handle more than 1024 files, and some go through all numbers
    up to the limit. Setting it before the program runs would need a shell in between, or be unsafe
    with threads; so a program that reads its limit at once may see the raised one.
    """
    if limit().soft == AT_START.soft:
        return
    with contextlib.suppress(OSError, ValueError):  # it has ended, or has become another user
        resource.prlimit(pid, resource.RLIMIT_NOFILE, AT_START)
