"""A daemon without a server: socket, protocol and pools are real, clones are names alone.

    python faked.py SOCKET READY

READY clones of the template `faked` are held ready, made and recycled in no time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from clonepool.config import AccessSection, Config, PoolSection, TemplateSection
from clonepool.core.fleet import Fleet
from clonepool.core.limits import Limits
from clonepool.core.naming import Namer, Serials
from clonepool.observe.metrics import Metrics
from clonepool.postgres.capabilities import Capabilities
from clonepool.postgres.endpoint import Endpoint
from clonepool.postgres.gateway import Gateway
from clonepool.postgres.roles import Roles
from clonepool.service.api.access import Gatekeeper
from clonepool.service.api.listener import Listener
from clonepool.service.api.methods import Methods
from clonepool.service.credentials import Credentials
from clonepool.service.dispatcher import Dispatcher
from clonepool.service.monitors.resources import ResourceMonitor

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.decisions import (
        Adopt,
        CreateClone,
        Decision,
        Drop,
        Keep,
        Park,
        Record,
        Recycle,
    )  # fmt: skip
    from clonepool.service.api.builds import Builds
    from clonepool.service.api.methods import Connection
    from clonepool.service.api.status import StatusBoard
    from clonepool.service.api.templates import TemplateMethods
    from clonepool.service.dispatcher import Sessions

TEMPLATE, GENERATION = "faked", "aaaaaaaa"
MOST_CLIENTS = 2000
ENDPOINT = Endpoint("/nowhere", 5432, "postgres", "secret")


def _credentials() -> Credentials:
    """Return what knows no login: all leases log in as the daemon's own role."""
    capabilities = Capabilities(
        180_000, "18", 1, superuser=False, max_connections=100, encoding="", locale=""
    )
    gateway = Gateway(ENDPOINT, "bench")
    roles = Roles(gateway, capabilities, embedded=False)
    return Credentials(roles, ENDPOINT, capabilities, b"", embedded=False)


class FakeHands:
    """Does at once what would take a server; what only a server can ask for does not happen."""

    def __init__(self, fleet: Fleet, loop: asyncio.AbstractEventLoop) -> None:
        self.carry_out: Callable[[list[Decision]], None] = lambda _: None
        self._pool = fleet.pools[TEMPLATE]
        self._loop = loop

    def create(self, decision: CreateClone) -> None:
        """The clone is there."""
        self._soon(self._pool.created, decision.clone)

    def recycle(self, decision: Recycle, report: Callable[[Sessions], None] | None) -> None:
        """Nobody was connected, and it is clean."""
        if report is not None:
            report([])
        self._soon(self._pool.rewound, decision.clone)

    def keep(self, decision: Keep, report: Callable[[Sessions, bool], None]) -> None:
        """Nobody asks."""

    def record(self, decision: Record) -> None:
        """Nobody asks."""

    def park(self, decision: Park) -> None:
        """Nobody asks."""

    def adopt(self, decision: Adopt) -> None:
        """Nobody asks."""

    def drop(self, decision: Drop) -> None:
        """Nobody asks."""

    def _soon(self, happened: Callable[[str, float], list[Decision]], clone: str) -> None:
        self._loop.call_soon(lambda: self.carry_out(happened(clone, time.monotonic())))


class FakeBoard:
    """Tells of the pools alone: there is no server to tell of."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def status(self) -> dict[str, Any]:
        """Return what `peers.await_rest` looks at."""
        pools = [pool.snapshot() for pool in self._fleet.pools.values()]
        return {"pools": msgspec.to_builtins(pools)}


class FakeMaking:
    """Nobody makes templates here."""

    def disconnect(self, peer: Connection) -> None:
        """Nothing was begun."""

    snapshot = define = finalize = disconnect


async def main(path: Path, ready: int) -> None:
    """Serve until killed."""
    config = Config(
        pool=PoolSection(max_clones=ready),
        access=AccessSection(max_clients=MOST_CLIENTS),
        templates={TEMPLATE: TemplateSection(sql=["none"], min_ready=ready, max_clones=ready)},
    )
    loop, metrics = asyncio.get_running_loop(), Metrics(CollectorRegistry(), config.templates)
    limits = {TEMPLATE: Limits(min_ready=ready, max_clones=ready)}
    fleet = Fleet(limits, ready, Namer(config.instance, 1), Serials(time.time()))
    listener = Listener(path, metrics, config.access)
    hands = FakeHands(fleet, loop)
    dispatcher = Dispatcher(
        fleet, hands, metrics, loop, time.monotonic, 30.0, listener.tell, listener.leaks_to
    )
    hands.carry_out = dispatcher.carry_out
    dispatcher.carry_out(fleet.pools[TEMPLATE].template_ready(GENERATION, time.monotonic()))
    board = cast("StatusBoard", FakeBoard(fleet))
    builds = cast("Builds", None)  # nobody asks for any
    making = cast("TemplateMethods", FakeMaking())
    methods = Methods(dispatcher, ENDPOINT, _credentials(), config, board, builds, making)
    listener.open(methods, Gatekeeper(config.access), ResourceMonitor(time.monotonic))
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2])))
