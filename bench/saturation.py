"""Databases per second for clients that never pause: by leases, and by plain CREATE and DROP.

In a turn, a client gets a database, connects, changes four tables, disconnects and gives the
database back. The ways are measured one after another on one server, in several rounds. A round
ends when the last clone is ready again, so no way borrows from the clones that were ready before.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from bench import cpu, peers, work
from bench.clients import LEASES, Crowd, Servers
from bench.plain import STRATEGIES
from bench.samples import summary
from clonepool.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.clients import Shift

    Round = dict[str, Any]

CLIENTS = 4
OTHER_CLIENTS = (1, 2, 8)
WAYS = (*LEASES, *STRATEGIES)
CONFIG = """\
[http]
listen = ""
[templates.rewound]
sql = ["small.sql"]
min_ready = 8
max_clones = 16
recycle = "auto"
[templates.connecting]
sql = ["small.sql"]
min_ready = 8
max_clones = 16
recycle = "auto"
stay_connected = "never"
[templates.recreated]
sql = ["small.sql"]
min_ready = 8
max_clones = 16
recycle = "recreate"
"""
"""One rewound clone in a hundred is verified in full, as by default."""


def run(directory: Path, *, short: bool) -> dict[str, Any]:
    """Measure both ways on one daemon and return the figures, times in seconds."""
    (directory / "small.sql").write_text(work.SMALL)
    seconds, rounds, other_rounds = (0.4, 2, 1) if short else (4.0, 5, 2)
    counts = {CLIENTS: rounds, **dict.fromkeys(OTHER_CLIENTS, other_rounds)}
    with (
        peers.daemon(directory, CONFIG) as (path, daemon),
        Client(str(path), name="bench") as client,
    ):
        peers.await_rest(client)
        url = peers.own_url(client)
        used = _meter(daemon, cpu.postmaster_of(directory / "state"))
        with Crowd(max(counts), Servers(str(path), url)) as crowd:
            measured = {
                clients: [
                    _measure_round(crowd, client, used, seconds, clients, number)
                    for number in range(rounds)
                ]
                for clients, rounds in counts.items()
            }
    return {"seconds": seconds, **_figures(measured)}


def _meter(daemon: int, postmaster: int) -> Callable[[], tuple[float, float]]:
    """Return a function that returns the CPU seconds of the daemon and of the server so far."""
    return lambda: (cpu.own_seconds(daemon), cpu.family_seconds(postmaster))


def _measure_round(
    crowd: Crowd,
    client: Client,
    used: Callable[[], tuple[float, float]],
    seconds: float,
    clients: int,
    number: int,
) -> dict[str, Round]:
    """Measure each way once; another one begins in each round."""
    first = number % len(WAYS)
    found = {}
    for way in (*WAYS[first:], *WAYS[:first]):
        peers.await_rest(client)
        crowd.prepare(way, seconds, clients)
        before, began = used(), time.perf_counter()
        shifts = crowd.work()
        peers.await_rest(client)
        took = time.perf_counter() - began
        found[way] = _round(shifts, took, before, used())
    return found


def _round(
    shifts: list[Shift], took: float, before: tuple[float, float], after: tuple[float, float]
) -> Round:
    turns = sum(len(shift.got) for shift in shifts)
    daemon, server = (now - then for now, then in zip(after, before, strict=True))
    return {
        "turns": turns,
        "per_second": turns / took,
        "daemon_cpu": daemon / turns,
        "server_cpu": server / turns,
        "client_cpu": sum(shift.cpu for shift in shifts) / turns,
        "backend_cpu": sum(shift.backend_cpu for shift in shifts) / turns,
        "got": [seconds for shift in shifts for seconds in shift.got],
        "gave": [seconds for shift in shifts for seconds in shift.gave],
    }


def _figures(measured: dict[int, list[dict[str, Round]]]) -> dict[str, Any]:
    rounds = measured[CLIENTS]
    plain = _faster(rounds)
    ratios = {
        way: [each[way]["per_second"] / each[plain]["per_second"] for each in rounds]
        for way in LEASES
    }
    return {
        "clients": CLIENTS,
        "faster_plain": plain,
        "ratios": ratios,
        "ratio": {way: statistics.median(each) for way, each in ratios.items()},
        "ways": {way: _over_rounds([each[way] for each in rounds]) for way in WAYS},
        "per_second_by_clients": {
            way: [
                [clients, _median([each[way] for each in measured[clients]], "per_second")]
                for clients in sorted(measured)
            ]
            for way in WAYS
        },
    }


def _faster(rounds: list[dict[str, Round]]) -> str:
    """Return the plain way that made more databases, all rounds together."""
    return max(STRATEGIES, key=lambda way: sum(each[way]["per_second"] for each in rounds))


def _over_rounds(rounds: list[Round]) -> dict[str, Any]:
    keys = ("per_second", "daemon_cpu", "server_cpu", "client_cpu", "backend_cpu")
    return {
        "turns": sum(each["turns"] for each in rounds),
        **{key: _median(rounds, key) for key in keys},
        **{key: summary([s for each in rounds for s in each[key]]) for key in ("got", "gave")},
    }


def _median(rounds: list[Round], key: str) -> float:
    return float(statistics.median(each[key] for each in rounds))
