"""How long a client's request takes while others flood the daemon with requests.

Run as a script with the socket's path and a number, it is the flood: that many connections in one
process write pings as fast as the daemon reads them, until standard input ends.
"""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CROWDS = (0, 20, 200)
_BURST = b'{"id":1,"method":"ping"}\n' * 200
_CONFIG = """\
[http]
listen = ""
[access]
max_clients = 500
[templates.small]
sql = ["small.sql"]
min_ready = 2
"""


def run(directory: Path, *, short: bool) -> dict[str, Any]:
    """Measure pings of one client beside crowds of several sizes; times in seconds."""
    from bench import peers, work  # noqa: PLC0415 - the script below needs none of it
    from bench.samples import summary  # noqa: PLC0415
    from clonepool.client import Client  # noqa: PLC0415

    (directory / "small.sql").write_text(work.SMALL)
    pings, rounds = (200, 1) if short else (2000, 3)
    with peers.daemon(directory, _CONFIG) as (path, _), Client(str(path)) as client:
        peers.await_rest(client)
        taken: dict[int, list[float]] = {crowd: [] for crowd in CROWDS}
        for _ in range(rounds):
            for crowd in CROWDS:
                with _flood(path, crowd):
                    taken[crowd] += _ping(client, pings)
    return {"crowds": [{"connections": crowd, **summary(taken[crowd])} for crowd in CROWDS]}


def _ping(client: Any, times: int) -> list[float]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        client.call("ping")
        taken.append(time.perf_counter() - began)
    return taken


@contextmanager
def _flood(path: Path, connections: int) -> Iterator[None]:
    if not connections:
        yield
        return
    command = [sys.executable, __file__, str(path), str(connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        stdout.readline()
        try:
            yield
        finally:
            stdin.close()
            process.wait(30)


def _main(path: str, connections: int) -> None:
    chosen = selectors.DefaultSelector()
    for _ in range(connections):
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        client.setblocking(False)
        chosen.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE, bytearray())
    chosen.register(sys.stdin, selectors.EVENT_READ, None)
    print(flush=True)
    while True:
        for key, ready in chosen.select():
            if not isinstance(key.fileobj, socket.socket):
                return
            if ready & selectors.EVENT_READ:
                key.fileobj.recv(1 << 20)
            if ready & selectors.EVENT_WRITE:
                rest = key.data
                rest += b"" if rest else _BURST
                with suppress(BlockingIOError):
                    del rest[: key.fileobj.send(rest)]


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
