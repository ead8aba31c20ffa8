"""Two hundred misbehaving connections beside clients that behave."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.daemons import CONFIG, Daemon, eventually, resident_bytes, running_daemon
from support.misbehaving_clients import misbehaving

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = float(os.environ.get("CLONEPOOL_MISBEHAVING_SECONDS", "8"))
CROWD = {
    "idle": 60, "flood": 40, "slow": 40, "half": 20, "babble": 12, "vanish": 12, "waver": 12,
    "deaf": 4,
}  # fmt: skip
CONFIGURED = CONFIG + "\n[access]\nunread_timeout = 1.0\nmax_clients = 400\n"
LONGER = 12
"""How many times longer a ping may take beside these clients than beside busy processes."""
MOST_MEMORY = 96 * 1024 * 1024


class WellBehavedClient:
    """A client that behaves: it pings, leases and releases, and notes how long each ping took."""

    def __init__(self, daemon: Daemon, seconds: float) -> None:
        self.pings: list[float] = []
        self.leases = 0
        self.error: BaseException | None = None
        self._daemon = daemon
        self._until = time.monotonic() + seconds
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with self._daemon.client() as client:
                while time.monotonic() < self._until:
                    for _ in range(20):
                        began = time.perf_counter()
                        client.call("ping")
                        self.pings.append(time.perf_counter() - began)
                        time.sleep(0.001)  # sleeps: paces the pings
                    client.lease("blog", timeout=20).release()
                    self.leases += 1
        except BaseException as error:  # noqa: BLE001 - raised again by `join`
            self.error = error


def p99(daemon: Daemon) -> float:
    """Return the 99th percentile of the pings of four well-behaved clients, in seconds."""
    clients = [WellBehavedClient(daemon, SECONDS) for _ in range(4)]
    for client in clients:
        client.join()
    assert all(client.leases for client in clients)
    pings = sorted(ping for client in clients for ping in client.pings)
    return pings[int(len(pings) * 0.99)]


@contextmanager
def burning() -> Iterator[None]:
    """Keep as many processors busy as the misbehaving clients and the daemon do."""
    script = "import sys, threading; threading.Thread(target=lambda: (sys.stdin.read(),\
 __import__('os')._exit(0))).start()\nwhile True: pass"
    command = [sys.executable, "-c", script]
    burners = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(2)]
    try:
        yield
    finally:
        for burner in burners:
            burner.communicate()


def test_two_hundred_misbehaving_connections_hardly_slow_the_others() -> None:
    assert sum(CROWD.values()) == 200
    with running_daemon(CONFIGURED) as daemon:
        with burning():
            alone = p99(daemon)
        first = resident_bytes(daemon)
        with misbehaving(daemon.socket, CROWD):
            beside = p99(daemon)
            assert resident_bytes(daemon) - first < MOST_MEMORY
        print(f"p99 of a ping {beside * 1000:.1f} ms, {alone * 1000:.1f} ms without")  # noqa: T201
        assert beside < LONGER * alone
        eventually(daemon.at_rest)
        with daemon.client() as client:
            assert client.call("leases") == []
