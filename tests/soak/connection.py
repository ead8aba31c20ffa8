"""A client's connection to the daemon: the sync client, with what the soak needs in addition."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clonepool.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.journal import Journal

_MANY_BYTES = 65_536


class Connection(Client):
    """One connection; the journal knows it by `conn`, and by the pid of the daemon it is to."""

    def __init__(self, path: str, journal: Journal, conn: str) -> None:
        super().__init__(path, name=conn)
        self.conn = conn
        self.daemon = peer_pid(self._connection.socket)
        self.closed = False
        self._journal = journal

    def cut(self, *, by: str) -> None:
        """End the connection; may be called from a signal handler in the middle of a call."""
        if not self.closed:
            self.closed = True
            self._journal.write("closing", conn=self.conn, by=by)
            with contextlib.suppress(OSError):
                self._connection.socket.shutdown(socket.SHUT_RDWR)

    def is_alive(self) -> bool:
        """Say whether the connection is open, as far as this end knows."""
        if self.closed:
            return False
        try:
            return self._connection.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def hang_up(self, *, by: str) -> None:
        """Write to the journal that the connection closes, then close it."""
        self.cut(by=by)
        self.close()

    def pipeline(self, requests: list[dict[str, Any]], seconds: float) -> Iterator[dict[str, Any]]:
        """Send acquires all at once; yield the replies that arrive within some seconds."""
        text = "".join(
            json.dumps({"id": f"p{n}", "method": "acquire", "params": params}) + "\n"
            for n, params in enumerate(requests)
        )
        deadline, buffer = time.monotonic() + seconds, b""
        try:
            self._connection.socket.sendall(text.encode())
            while (left := deadline - time.monotonic()) > 0:
                self._connection.socket.settimeout(left)
                data = self._connection.socket.recv(_MANY_BYTES)
                if not data:
                    return
                *lines, buffer = (buffer + data).split(b"\n")
                replies = map(json.loads, lines)
                # Other replies are to requests of the client itself, such as a late release.
                yield from (each for each in replies if str(each.get("id")).startswith("p"))
        except OSError:
            return


def peer_pid(connection: socket.socket) -> int:
    """Return the process that listens at the other end."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", found)[0]
    return pid


def runqueue_seconds(pid: int) -> float:
    """Return the total time that a process was ready to run and had no processor."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(task.read_text().split()[1])
    return total / 1e9


def on_cut_signal(current: Any) -> None:
    """Make SIGUSR1 cut the connection that `current()` returns."""

    def handler(_: int, __: object) -> None:
        connection = current()
        if connection is not None:
            connection.cut(by="chaos")

    signal.signal(signal.SIGUSR1, handler)
