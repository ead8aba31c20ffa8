"""The files that this process may have open: the standard ones, and how many at most.

Standard library only: the command line calls this before anything else is imported.
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
"""What counts for a process whose number of files is not limited."""


class FileLimit(NamedTuple):
    """How many files a process may have open: for the time being, and at most."""

    soft: int
    hard: int


def open_standard() -> None:
    """See that descriptors 0, 1 and 2 are open, on /dev/null where they were closed.

    Else the next files that are opened get these numbers: what is printed then goes into a socket,
    and libuv aborts the process when it is to close one of them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) in _STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # so Python leaves it when the descriptor is closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - stays open


def limit() -> FileLimit:
    """Return how many files this process may have open."""
    try:
        found = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a sandbox may forbid even to ask
        return FileLimit(_UNLIMITED, _UNLIMITED)
    return FileLimit(*(_UNLIMITED if each == resource.RLIM_INFINITY else each for each in found))


AT_START = limit()
"""What the process was started with, which is what programs that it starts get."""


def raise_limit() -> FileLimit:
    """Let this process open as many files as it may; return how many that are."""
    if AT_START.soft < AT_START.hard:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (AT_START.hard, AT_START.hard))
    return limit()


def with_limit(line: str) -> str:
    """Return a line for the shell that begins by restoring the limit with which we were started."""
    return line if limit().soft == AT_START.soft else f"ulimit -Sn {AT_START.soft}; {line}"


def wrapped(command: Sequence[str | Path]) -> list[str | Path]:
    """Return a command that restores that limit and then is the program itself, of the same pid."""
    if limit().soft == AT_START.soft:
        return list(command)
    return ["/bin/sh", "-c", with_limit('exec "$@"'), "sh", *command]


def restore_limit(pid: int) -> None:
    """Give a program that we started just now the limit with which we were started.

    Programs that use select() cannot have more than 1024 files, and some look at each number up to
    the limit. What is to be set before a program runs costs a shell between, or is not safe beside
    threads: a program that looks at its limit first of all may see ours.
    """
    if limit().soft == AT_START.soft:
        return
    with contextlib.suppress(OSError, ValueError):  # it has ended, or has become another user
        resource.prlimit(pid, resource.RLIMIT_NOFILE, AT_START)
