"""A process that cannot open more files, and foreign connections to a port."""

from __future__ import annotations

import contextlib
import resource
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPARE = 100
_LISTENS, _NOT_TAKEN = "0A", "0"


def files_of(pid: int) -> set[int]:
    """Return the descriptors that a process has open."""
    return {int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir()}


def connections_to(port: int) -> int:
    """Return how many connections the process has taken that listens on that port."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    taken = [each for each in fields if each[3] != _LISTENS and each[9] != _NOT_TAKEN]
    return sum(int(each[1].partition(":")[2], 16) == port for each in taken)


@contextmanager
def files_left(pid: int, left: int) -> Iterator[None]:
    """Limit the number of files that a process can open in addition, for a block.

    With -1 it cannot even open one in place of another that it closes.
    """
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used, number = files_of(pid), 0
    while left > 0 or (left == 0 and number in used):
        left -= number not in used
        number += 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def make_room(wanted: int) -> int:
    """Raise our own limit if necessary, and return how many connections we can open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted + _SPARE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE)


@contextmanager
def strangers(port: int, count: int, say: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open connections to a port, send something on each, and then nothing more."""
    with contextlib.ExitStack() as stack:
        opened: list[socket.socket] = []
        for _ in range(make_room(count)):
            stranger = stack.enter_context(socket.socket())
            stranger.setblocking(False)
            stranger.connect_ex(("127.0.0.1", port))
            opened.append(stranger)
            if say:
                with contextlib.suppress(OSError):
                    stranger.send(say)
        yield opened


def is_cut(connection: socket.socket) -> bool:
    """Say whether the other end has closed a connection; discard what it had sent."""
    connection.setblocking(False)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
