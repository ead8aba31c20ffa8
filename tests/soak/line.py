"""A client's connection to the daemon: the sync client, and what a soak must know beside it."""

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


class Line(Client):
    """One connection, known in the journal by `conn` and by the daemon at its other end."""

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
        """Say whether the connection is open, as far as can be seen from here."""
        if self.closed:
            return False
        try:
            return self._connection.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def hang_up(self, *, by: str) -> None:
        """Close, after having said so in the journal."""
        self.cut(by=by)
        self.close()

    def pipeline(self, requests: list[dict[str, Any]], seconds: float) -> Iterator[dict[str, Any]]:
        """Send acquires all at once and yield the replies that come within some time."""
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
                # Others are to what the client itself asks: to give back what was let go, say.
                yield from (each for each in replies if str(each.get("id")).startswith("p"))
        except OSError:
            return


def peer_pid(connection: socket.socket) -> int:
    """Return the process that listens at the other end."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", found)[0]
    return pid


def runqueue_seconds(pid: int) -> float:
    """Return how long a process was ready to run and did not get a processor, all in all."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(task.read_text().split()[1])
    return total / 1e9


def on_cut_signal(line_of: Any) -> None:
    """Let SIGUSR1 cut whatever line `line_of()` returns."""

    def handler(_: int, __: object) -> None:
        line = line_of()
        if line is not None:
            line.cut(by="chaos")

    signal.signal(signal.SIGUSR1, handler)
