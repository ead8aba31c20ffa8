"""A daemon without a server: socket, protocol and pools are real, clones are only names.

    python faked.py SOCKET READY

READY clones of the template `faked` are held ready; creating and recycling take no time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never, cast

import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from clonepool.config import AccessSection, Config, PoolSection, TemplateSection
from clonepool.core import events
from clonepool.core.decisions import Adopt, CreateClone, Drop, Keep, Park, Record, Recycle
from clonepool.core.fleet import Fleet
from clonepool.core.limits import Limits
from clonepool.core.naming import Namer, Serials
from clonepool.observe.metrics import Metrics
from clonepool.postgres.capabilities import Capabilities
from clonepool.postgres.endpoint import Endpoint
from clonepool.postgres.gateway import Gateway
from clonepool.postgres.roles import Roles
from clonepool.service.api.access import Gatekeeper
from clonepool.service.api.admin import AdminMethods
from clonepool.service.api.leases import LeaseMethods
from clonepool.service.api.listener import Listener
from clonepool.service.api.methods import Methods
from clonepool.service.api.progress import Drains
from clonepool.service.credentials import Credentials
from clonepool.service.dispatcher import Dispatcher
from clonepool.service.job_queue import JobQueue
from clonepool.service.lease_results import LeaseResults
from clonepool.service.resources import Resources

if TYPE_CHECKING:
    from clonepool.service.api.builds import Builds
    from clonepool.service.api.status import StatusBoard
    from clonepool.service.api.templates import TemplateMethods
    from clonepool.service.job_queue import Work

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


class FakeExecutor:
    """Does jobs in no time: there is no server that they would wait for."""

    def __init__(self, queue: JobQueue, dispatcher: Dispatcher) -> None:
        self._queue = queue
        self._dispatcher = dispatcher

    async def run(self) -> None:
        """Do the jobs that the queue lets go."""
        while True:
            for job in await self._queue.get():
                self._do(job)

    def _do(self, job: Work) -> None:
        match job:
            case CreateClone(template, _, clone):
                self._dispatcher.handle(events.CloneCreated(template, clone))
            case Recycle(template, _, clone):
                self._dispatcher.reports.lease_left(clone, [])
                self._dispatcher.handle(events.CloneRewound(template, clone))
            case Drop(template, clone):
                self._dispatcher.handle(events.CloneDropped(template, clone))
            case Keep() | Record() | Park() | Adopt():
                raise NotImplementedError(f"no client asks for this here: {job}")
            case _:
                assert_never(job)


class FakeBoard:
    """Tells of the pools alone: there is no server to tell of."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def status(self) -> dict[str, Any]:
        """Return what `peers.await_rest` looks at."""
        pools = [pool.snapshot() for pool in self._fleet.pools.values()]
        return {"pools": msgspec.to_builtins(pools)}


class FakeTemplateMethods:
    """No client makes templates here, or has them built."""

    def disconnect(self, holder: int) -> None:
        """Nothing was begun."""

    build = explain = snapshot = define = finalize = disconnect


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
    listener = Listener(path, metrics, config.access, Gatekeeper(config.access))
    queue = JobQueue(listener, loop, time.monotonic)
    drains = Drains(fleet, loop)
    dispatcher = Dispatcher(
        fleet=fleet,
        queue=queue,
        results=LeaseResults(ENDPOINT, _credentials(), time.monotonic),
        connections=listener,
        metrics=metrics,
        loop=loop,
        clock=time.monotonic,
        observers=[drains.look],
    )
    executor = asyncio.create_task(FakeExecutor(queue, dispatcher).run())
    dispatcher.handle(events.TemplateReady(TEMPLATE, GENERATION))
    builds = cast("Builds", None)  # no client here builds
    methods = Methods(
        leases=LeaseMethods(dispatcher, builds, acquire_timeout=30.0, max_leases=ready),
        templates=cast("TemplateMethods", FakeTemplateMethods()),
        admin=AdminMethods(dispatcher, drains, instance=config.instance, programs=""),
        board=cast("StatusBoard", FakeBoard(fleet)),
        max_pending=config.access.max_pending_per_client,
    )
    listener.open(methods, Resources(time.monotonic))
    await executor


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2])))
