"""Clients that flood the daemon with requests, in a process of their own.

Run as a script with the socket's path and a number: so many connections, each of which writes pings
as fast as the daemon takes them and reads what comes back, until standard input ends. Then the
script prints how many were answered.
"""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PING = b'{"id":1,"method":"ping"}\n'
_BURST = _PING * 200


class Flood:
    """What became of it: how many pings of all connections were `answered`, at the end."""

    answered = 0


@contextmanager
def flooding(path: Path, connections: int) -> Iterator[Flood]:
    """Flood the daemon for the length of a `with` block."""
    told = Flood()
    command = [sys.executable, __file__, str(path), str(connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flood:
        assert flood.stdout is not None
        assert flood.stdin is not None
        assert flood.stdout.readline() == b"flooding\n"
        try:
            yield told
        finally:
            flood.stdin.close()
            told.answered = int(flood.stdout.readline() or 0)
            flood.wait(30)


def _main(path: str, connections: int) -> None:
    chosen = selectors.DefaultSelector()
    for _ in range(connections):
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        client.setblocking(False)
        chosen.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE, bytearray())
    chosen.register(sys.stdin, selectors.EVENT_READ, None)
    told, heard = False, 0
    while True:
        for key, ready in chosen.select():
            if not isinstance(key.fileobj, socket.socket):
                print(heard, flush=True)  # noqa: T201 - to the process that waits for it
                return
            if ready & selectors.EVENT_READ:
                heard += key.fileobj.recv(1 << 20).count(b"\n")
            if ready & selectors.EVENT_WRITE:
                _write(key.fileobj, key.data)
        if not told:
            print("flooding", flush=True)  # noqa: T201 - to the process that waits for it
            told = True


def _write(client: socket.socket, rest: bytearray) -> None:
    if not rest:
        rest += _BURST
    try:
        del rest[: client.send(rest)]
    except BlockingIOError:
        return


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
