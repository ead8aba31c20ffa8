"""A real daemon gets random input on many connections at once, and is unharmed afterwards.

`CLONEPOOL_FUZZ_SEED` repeats the input; what the daemon does with it depends on timing, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import time
from collections import deque
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.errors import BY_CODE, ClientLimitError
from clonepool.protocol.messages import NOTIFICATIONS
from support import lanes
from support.daemons import Daemon, eventually, resident_bytes, running_daemon
from support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clonepool.client import Client

LINES = lanes.rounds(standard=15_000, slow=100_000)
MOST_LINES = 5 * LINES
"""Sent where the machine is so busy that fewer leases come about among them."""
SEED = int(os.environ.get("CLONEPOOL_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
CONFIG = f"""
[http]
listen = ""
[access]
unread_timeout = 0.5
[templates.blog]
sql = ["{ROOT}/examples/blog/*.sql"]
min_ready = 3
stay_connected = "never"  # so that open files can be counted
max_clones = 6
max_lease = 2.0
keep_for = 0.3
max_kept = 2
"""
LINES_AT_A_TIME = CONNECTIONS_AT_A_TIME = 40
PACE_SECONDS = 0.002  # so that leases begin and end among all the errors
LINES_OF_A_CONNECTION = 25  # on average
METHODS = {
    "acquire": 12, "release": 8, "renew": 4, "reset": 2, "drain": 1, "hello": 1, "status": 2,
    "leases": 1, "templates": 1, "ping": 1, "steal": 1, "cancel": 1,
}  # fmt: skip
"""How often each is called."""
GROWTH_BYTES = 15 * 1024 * 1024
"""What the daemon may have grown by after a fifth of the load has warmed it up."""
DEAF, PINGS = 8, 15
MANY_REQUESTS = b'{"id":1,"method":"status"}\n' * 20_000
TURN_SECONDS = 0.2
"""As quick, while another client sends all it can: it takes some milliseconds."""
PING_SECONDS = 1.0
"""Quick, on a machine that does other things too: it takes far less than a millisecond."""
MISTAKES = "request.failed", "worker.failed", "work.failed", "Exception in", "Traceback", "never "


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon(CONFIG) as running:
        yield running


class FuzzConnection:
    """One connection. It may never read, or close in the middle of a line."""

    def __init__(self, daemon: Daemon, choice: random.Random) -> None:
        self.reads = choice.random() < 0.9
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(daemon.socket))
        self._socket.setblocking(False)
        self._rest = b""

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._socket.send(data)

    def replies(self) -> list[dict[str, Any]]:
        """Return what has come."""
        data = self._rest
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while self.reads and (more := self._socket.recv(1 << 20)):
                data += more
        *lines, self._rest = data.split(b"\n")
        return [json.loads(line) for line in lines]

    def fileno(self) -> int:
        return self._socket.fileno()

    def leave(self) -> None:
        self._socket.close()


class Crowd:
    """Connections that are opened and closed at random, and the tokens that they have seen."""

    def __init__(self, daemon: Daemon, choice: random.Random) -> None:
        self._daemon = daemon
        self._choice = choice
        self._open: list[FuzzConnection] = []
        self._tokens: deque[str] = deque(["t" * 22], maxlen=20)
        self.codes: set[str] = set()
        self.connections = self.lines = self.leases = 0

    def visit(self, lines: int, leases: int = 0) -> None:
        """Send at least that many lines, more until there were enough leases; then close all."""
        choice, until = self._choice, self.lines + lines
        while self.lines < until or (self.leases < leases and self.lines < MOST_LINES):
            if len(self._open) < choice.randrange(1, CONNECTIONS_AT_A_TIME):
                self._open.append(FuzzConnection(self._daemon, choice))
                self.connections += 1
            connection = choice.choice(self._open)
            number = choice.randrange(1, LINES_AT_A_TIME)
            data = b"".join(self._line() for _ in range(number))
            connection.send(data if choice.random() < 0.9 else data[: choice.randrange(len(data))])
            self.lines += number
            time.sleep(PACE_SECONDS)  # sleeps: paces the load
            for readable in select.select(self._open, [], [], 0)[0]:
                for reply in readable.replies():
                    self._hear(reply)
            if choice.random() < LINES_AT_A_TIME / 2 / LINES_OF_A_CONNECTION:
                self._open.remove(connection)
                connection.leave()
        while self._open:
            self._open.pop().leave()

    def _line(self) -> bytes:
        line = json.dumps(self._request()).encode()
        if self._choice.random() < 0.4:
            line = self._broken(line)
        return line + b"\n"

    def _request(self) -> dict[str, Any]:
        choice = self._choice
        method = choice.choices(list(METHODS), list(METHODS.values()))[0]
        params: dict[str, Any] = {}
        if method in ("acquire", "reset", "drain"):
            params["timeout"] = choice.choice([0, 0.01, 0.1, 0.1])
        if method == "acquire":
            params |= {"template": choice.choice(["blog"] * 9 + ["glob"]), "progress": True}
            params["label"] = choice.choice(["", "\0" * 200, "\U0001f600" * 200])
        if method in ("acquire", "renew"):
            params["ttl"] = choice.choice([None, 0.01, 0.1, 0.3])
        if method in ("release", "renew", "reset"):
            params["lease"] = choice.choice(self._tokens)
        if method == "release":
            params["keep"] = choice.random() < 0.1
        if method == "cancel":
            params["request"] = choice.choice([1, "a", 2**70])
        if method == "drain":
            params |= {"off": choice.random() < 0.9, "progress": True}
        return {"id": choice.choice([1, "a", 2**70]), "method": method, "params": params}

    def _broken(self, line: bytes) -> bytes:
        choice = self._choice
        at, to = choice.randrange(len(line)), choice.randrange(len(line))
        odd = choice.choice(
            [b"\n", b"[" * 5000, b"9" * 400, b"null", bytes([choice.randrange(256)])]
        )
        return choice.choice(
            [line[:at], line[at:], line[:at] + odd + line[at:], line[:to] + line[at:]]
        )

    def _hear(self, message: dict[str, Any]) -> None:
        if "method" in message:
            assert message["method"] in NOTIFICATIONS
        elif "error" in message:
            self.codes.add(message["error"]["data"]["code"])
        elif isinstance(message["result"], dict) and "lease" in message["result"]:
            self._tokens.append(message["result"]["lease"])
            self.leases += 1


def rest(daemon: Daemon) -> None:
    """Wait until no lease is left and the pool is as before."""
    with daemon.client() as client:
        client.call("drain", off=True)
        eventually(lambda: client.call("leases") == [], what="every lease has ended")
        eventually(lambda: is_at_rest(daemon), what="the pool is as it was")


def is_at_rest(daemon: Daemon) -> bool:
    pool = daemon.pool()
    others = ("creating", "leased", "returned", "recycling", "kept", "parked", "dropping")
    waits = pool["waiting"] or any(pool[state] for state in others)
    return bool(pool["ready"] >= pool["min_ready"] and not waits)


def open_files(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def check(daemon: Daemon) -> None:
    """See that the daemon is well and made no mistake."""
    with daemon.client() as client:
        assert ping_seconds(client) < PING_SECONDS
        client.lease("blog", timeout=20).release()
    log = daemon.log.read_text()
    for word in MISTAKES:
        assert word not in log


def ping_seconds(client: Client) -> float:
    began = time.monotonic()
    assert client.call("ping") == {}
    return time.monotonic() - began


@pytest.mark.long
@pytest.mark.timeout(600)
def test_no_crowd_leaves_anything_behind_in_the_daemon(daemon: Daemon) -> None:
    eventually(lambda: is_at_rest(daemon), what="the pool is full")
    crowd = Crowd(daemon, random.Random(SEED))
    print(f"seed {SEED}")  # noqa: T201 - shown when the test fails
    crowd.visit(LINES // 5)
    rest(daemon)
    before, files = resident_bytes(daemon), open_files(daemon)
    crowd.visit(LINES - crowd.lines, leases=LINES // 500 + 1)
    rest(daemon)
    assert crowd.connections > LINES / LINES_OF_A_CONNECTION / 2
    assert crowd.leases > LINES / 500, "there was more to it than errors"
    assert crowd.codes <= BY_CODE.keys(), "the daemon has answered internal_error"
    assert crowd.codes >= {"bad_request", "unknown_method", "not_your_lease", "draining"}
    check(daemon)
    # Sessions stay on clones, of which the crowd may have had more made ready.
    ready = daemon.pool()["ready"]
    eventually(lambda: open_files(daemon) <= files + ready, what="as few open files as before")
    assert resident_bytes(daemon) - before < GROWTH_BYTES


def test_clients_that_never_read_cost_no_memory_once_they_are_cut_off(daemon: Daemon) -> None:
    grown = []
    for _ in range(3):
        until = len(daemon.events("connection.cut")) + DEAF
        with contextlib.ExitStack() as stack:
            for _ in range(DEAF):
                deaf = stack.enter_context(socket.socket(socket.AF_UNIX))
                deaf.settimeout(0.2)
                deaf.connect(str(daemon.socket))
                exhaust(partial(deaf.send, MANY_REQUESTS))
            eventually(lambda n=until: len(daemon.events("connection.cut")) >= n)  # type: ignore[misc]
        rest(daemon)
        grown.append(resident_bytes(daemon))
    assert grown[-1] - grown[0] < GROWTH_BYTES
    check(daemon)


def exhaust(act: Callable[[], int | bytes]) -> None:
    """Go on until the connection ends, or nothing goes through it any more."""
    with contextlib.suppress(OSError):
        while act():
            pass


def test_a_client_that_sends_without_end_keeps_no_other_waiting(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as flood, daemon.client() as client:
        flood.connect(str(daemon.socket))
        acts = partial(flood.send, MANY_REQUESTS), partial(flood.recv, 1 << 20)
        threads = [Thread(target=exhaust, args=[act]) for act in acts]
        for thread in threads:
            thread.start()
        waits = [ping_seconds(client) for _ in range(PINGS)]
        flood.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
    assert sorted(waits)[PINGS // 2] < TURN_SECONDS
    check(daemon)


def test_no_more_clients_come_in_than_may_and_the_next_does_when_one_left(daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.client()) for _ in range(1000)]
        for client in clients:
            assert client.call("ping") == {}
        with daemon.client() as late, pytest.raises(ClientLimitError):
            late.call("ping")
        clients[0].close()
        eventually(lambda: comes_in(daemon), what="there is a place again")
    check(daemon)


def comes_in(daemon: Daemon) -> bool:
    with daemon.client() as client, contextlib.suppress(ClientLimitError):
        return bool(client.call("ping") == {})
    return False
