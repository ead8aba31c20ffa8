"""The time of an acquire with many ready clones, and with many connected clients.

Core, protocol and socket are real; there is no server (see `faked`). One client acquires and
releases; with many clients the others only keep their connections, or all have their turns, one
after another. The sizes take short turns, so that load on the machine affects all alike.
"""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from bench import peers
from bench.samples import middle, quantile, summary
from clonepool.client import Client

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = "faked"
READY = (10, 100, 1000, 5000)
CLIENTS = (1, 10, 100, 1000)
READY_FOR_CLIENTS = 100
AT_A_TIME = 20
_SPARE_FILES = 100

Times = dict[int, list[list[float]]]
"""Seconds of single acquires, by round, by size."""


def run(directory: Path, *, short: bool) -> dict[str, Any]:
    """Measure and return the figures, times in seconds."""
    rounds, times = (3, 100) if short else (20, 1000)
    _allow_files(max(CLIENTS) + _SPARE_FILES)
    return {
        "ready": _figures(_by_ready(directory, rounds, times)),
        **{name: _figures(found) for name, found in _by_clients(directory, rounds, times).items()},
    }


def _by_ready(directory: Path, rounds: int, times: int) -> Times:
    """Acquire while that many clones are ready."""
    found: Times = {ready: [] for ready in READY}
    with ExitStack() as stack:
        servers = {r: stack.enter_context(peers.faked(directory, f"r{r}", r)) for r in READY}
        clients = {r: stack.enter_context(_client(path)) for r, (path, _) in servers.items()}
        for client in clients.values():
            peers.await_rest(client)
        with peers.apart([pid for _, pid in servers.values()]):
            for _ in range(rounds):
                _measure_round({ready: [client] for ready, client in clients.items()}, found, times)
    return found


def _by_clients(directory: Path, rounds: int, times: int) -> dict[str, Times]:
    """Acquire while that many clients are connected: by one of them, and by all in turn."""
    idle: Times = {clients: [] for clients in CLIENTS}
    turns: Times = {clients: [] for clients in CLIENTS}
    with ExitStack() as stack:
        crowds, pids = {}, []
        for count in CLIENTS:
            path, pid = stack.enter_context(peers.faked(directory, f"c{count}", READY_FOR_CLIENTS))
            crowds[count] = [stack.enter_context(_client(path)) for _ in range(count)]
            peers.await_rest(crowds[count][0])
            pids.append(pid)
        with peers.apart(pids):
            for _ in range(rounds):
                _measure_round({n: crowd[:1] for n, crowd in crowds.items()}, idle, times)
                _measure_round(crowds, turns, times)
    return {"clients": idle, "clients_in_turn": turns}


def _measure_round(crowds: dict[int, list[Client]], found: Times, times: int) -> None:
    """Measure a few acquires of each size in turn, until each size has enough."""
    queues = {size: cycle(crowd) for size, crowd in crowds.items()}
    for size in crowds:
        found[size].append([])
    for _ in range(times // AT_A_TIME):
        for size, queue in queues.items():
            found[size][-1] += [_acquire(client) for client in islice(queue, AT_A_TIME)]


def _acquire(client: Client) -> float:
    """Return the seconds that an acquire took."""
    began = time.perf_counter()
    lease = client.lease(TEMPLATE)
    took = time.perf_counter() - began
    lease.release()
    return took


def _client(path: Path) -> Client:
    return Client(str(path), name="bench")


def _figures(found: Times) -> dict[str, Any]:
    """Return the times by size, and how many times the smallest's the largest's are."""
    smallest, largest = found[min(found)], found[max(found)]
    return {
        "sizes": [
            {"size": size, **summary([s for each in rounds for s in each])}
            for size, rounds in found.items()
        ],
        "growth": {
            name: middle(
                [
                    _at(more, share) / _at(less, share)
                    for less, more in zip(smallest, largest, strict=True)
                ]
            )
            for name, share in (("p50", 0.5), ("p99", 0.99))
        },
    }


def _at(seconds: list[float], share: float) -> float:
    return quantile(sorted(seconds), share)


def _allow_files(wanted: int) -> None:
    """Raise the number of files that this process may have open, as far as it may itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
