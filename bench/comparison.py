"""clonepool compared with other ways to give each test a database, on one server in one run.

In a turn, a client gets a database, changes four tables of twenty in it and gives it back; with all
ways but rollback it also connects and disconnects. Clients never pause. clonepool's rounds end when
the last clone is ready again; those of the other ways end with the last turn.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Any

import psycopg

from bench import integresql, others, peers, work
from bench.clients import Crowd, Servers
from bench.plain import STRATEGIES
from bench.samples import middle, summary
from clonepool.client import Client

if TYPE_CHECKING:
    from pathlib import Path

    Round = dict[str, Any]

CLIENTS = (1, 4)
IDLE_LOOKS = 5
"""Looks at the server, 0.1 s apart, that must all find it idle after IntegreSQL was measured."""
WAYS = ("rollback", "rewound", *STRATEGIES, "pytest_postgresql")
CONFIG = f"""\
[http]
listen = ""
[templates.rewound]
sql = ["small.sql"]
min_ready = {integresql.HELD_MIN}
max_clones = {integresql.HELD_MAX}
"""


def run(directory: Path, *, short: bool) -> dict[str, Any]:
    """Measure each way with one client and with several; return the figures, times in seconds."""
    (directory / "small.sql").write_text(work.SMALL)
    seconds, rounds = (0.4, 1) if short else (2.5, 3)
    program = integresql.program()
    ways = (*WAYS, "integresql") if program else WAYS
    with contextlib.ExitStack() as stack:
        path, _ = stack.enter_context(peers.daemon(directory, CONFIG))
        client = stack.enter_context(Client(str(path), name="bench"))
        peers.await_rest(client)
        url = peers.own_url(client)
        port = 0
        if program:
            port = stack.enter_context(integresql.running(program, url, work.SMALL))
        crowd = stack.enter_context(Crowd(max(CLIENTS), Servers(str(path), url, port)))
        measured: dict[int, dict[str, list[Round]]] = {
            clients: {way: [] for way in ways} for clients in CLIENTS
        }
        for clients, _ in itertools.product(CLIENTS, range(rounds)):
            for way in ways:
                found = _measure(crowd, client, way, seconds, clients)
                measured[clients][way].append(found)
                if way == "integresql":
                    _await_idle(url)
    return {
        "seconds": seconds,
        "clients": list(CLIENTS),
        "versions": {
            "pytest_postgresql": others.version(),
            "integresql": integresql.version(program) if program else "",
        },
        "ways": {way: _figures({n: measured[n][way] for n in CLIENTS}) for way in ways},
    }


def _measure(crowd: Crowd, client: Client, way: str, seconds: float, clients: int) -> Round:
    peers.await_rest(client)
    crowd.prepare(way, seconds, clients)
    began = time.perf_counter()
    shifts = crowd.work()
    peers.await_rest(client)
    took = time.perf_counter() - began
    return {
        "per_second": sum(len(shift.turns) for shift in shifts) / took,
        "got": [each for shift in shifts for each in shift.got],
        "turns": [each for shift in shifts for each in shift.turns],
    }


def _await_idle(url: str) -> None:
    """Wait until no session runs a statement: IntegreSQL makes databases again in background."""
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> %s"
    idle = 0
    with psycopg.connect(url, autocommit=True) as connection:
        while idle < IDLE_LOOKS:
            found = connection.execute(running, (connection.info.backend_pid,)).fetchone()
            idle = idle + 1 if found == (0,) else 0
            time.sleep(0.1)


def _figures(measured: dict[int, list[Round]]) -> dict[str, Any]:
    alone = measured[CLIENTS[0]]
    return {
        "per_second": [
            [clients, middle([each["per_second"] for each in rounds])]
            for clients, rounds in measured.items()
        ],
        "got": summary([seconds for each in alone for seconds in each["got"]]),
        "turn": summary([seconds for each in alone for seconds in each["turns"]]),
    }
