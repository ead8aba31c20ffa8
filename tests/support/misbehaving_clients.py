"""Misbehaving clients of several kinds, in a separate process.

Run as a script with the socket's path and a JSON object of numbers by kind. It runs the clients
until standard input ends, then prints how many lines the daemon has sent to the flooding ones.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_PING = b'{"id":1,"method":"ping"}\n'
_ACQUIRE = b'{"id":2,"method":"acquire","params":{"template":"blog","timeout":5,"label":"rude"}}\n'
_CANCEL = b'{"id":3,"method":"cancel","params":{"request":2}}\n'
_TURN_SECONDS = 0.01


class FloodResult:
    """The result: how many pings of the flooding clients were `answered`, at the end."""

    answered = 0


@contextmanager
def misbehaving(path: Path, kinds: Mapping[str, int]) -> Iterator[FloodResult]:
    """Run clients of each kind for the length of a `with` block.

    Kinds are `flood` (pings, as fast as they are taken), `deaf` (the same, reading nothing),
    `idle`, `slow` (a byte at a time), `half` (half a line, and then nothing), `babble` (what is no
    request), `vanish` (acquires and hangs up at once), `waver` (acquires and cancels).
    """
    played = FloodResult()
    command = [sys.executable, __file__, str(path), json.dumps(dict(kinds))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"here\n"
        try:
            yield played
        finally:
            process.stdin.close()
            played.answered = int(process.stdout.readline() or 0)
            process.wait(30)


class MisbehavingClient:
    """One connection of one kind; it reconnects when it is cut off."""

    def __init__(self, path: str, kind: str) -> None:
        self.received = 0
        self.kind = kind
        self._path = path
        self._rest = bytearray()
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        opened = socket.socket(socket.AF_UNIX)
        opened.connect(self._path)
        opened.setblocking(False)
        return opened

    def reconnect(self) -> None:
        """Reconnect, and forget what was still to be sent."""
        self.socket.close()
        self._rest.clear()
        self.socket = self._connect()

    def write(self) -> None:
        """Send what is due for this kind of client."""
        burst = {"flood": _PING * 200, "deaf": _PING * 200, "slow": _PING, "babble": b"{nonsense\n"}
        self._rest = self._rest or bytearray(burst.get(self.kind, b""))
        most = 1 if self.kind == "slow" else len(self._rest)
        with suppress(BlockingIOError):
            del self._rest[: self.socket.send(self._rest[:most])]

    def take_turn(self) -> None:
        """Do what this kind of client does periodically."""
        match self.kind:
            case "slow" | "babble" | "deaf":
                self.write()
            case "vanish":
                self.socket.send(_ACQUIRE)
                self.reconnect()
            case "waver":
                self.reconnect()  # else it would keep what it was given at once
                self.socket.send(_ACQUIRE + _CANCEL)
        if self.kind in {"slow", "babble", "waver"}:
            self.read()

    def read(self) -> None:
        """Read what has arrived."""
        with suppress(BlockingIOError):
            self.received += self.socket.recv(1 << 20).count(b"\n")

    def begin(self) -> None:
        """Send what is sent only once."""
        if self.kind == "half":
            self.socket.send(_PING[:10])


def _main(path: str, kinds: dict[str, int]) -> None:
    clients = [
        MisbehavingClient(path, kind) for kind, number in kinds.items() for _ in range(number)
    ]
    chosen = selectors.DefaultSelector()
    for client in clients:
        client.begin()
        if client.kind == "flood":
            chosen.register(client.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, client)
    chosen.register(sys.stdin, selectors.EVENT_READ, None)
    others = [client for client in clients if client.kind not in {"flood", "idle", "half"}]
    print("here", flush=True)  # noqa: T201 - to the process that waits for it
    turn = time.monotonic()
    while True:
        for key, ready in chosen.select(_TURN_SECONDS):
            if key.data is None:
                print(sum(client.received for client in clients), flush=True)  # noqa: T201 - likewise
                return
            if ready & selectors.EVENT_READ:
                key.data.read()
            if ready & selectors.EVENT_WRITE:
                key.data.write()
        if time.monotonic() >= turn:
            turn = time.monotonic() + _TURN_SECONDS
            for client in others:
                _take_turn(client)


def _take_turn(client: MisbehavingClient) -> None:
    """Give one client its turn; reconnect it if it was cut off."""
    try:
        client.take_turn()
    except BlockingIOError:
        return
    except OSError:
        client.reconnect()


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
