"""The application: starts everything, runs until a signal comes, and stops in order.

Two task groups, one in the other: background work outside, the front (listener and HTTP) inside. A
signal ends the front first, then the background work; then what is left is cleaned up under a
deadline. How the parts are made is in `wiring`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

import anyio
import structlog
from prometheus_client import CollectorRegistry

from clonepool.config import HttpSection
from clonepool.core.events import EndLeases, Stop
from clonepool.core.naming import Namer, Serials
from clonepool.errors import AlreadyRunningError, ClonepoolError
from clonepool.observe.metrics import Metrics, PoolCollector
from clonepool.postgres import databases
from clonepool.postgres.capabilities import inspect
from clonepool.service import file_budget, loop, systemd
from clonepool.service.api.access import Gatekeeper
from clonepool.service.api.listener import Listener
from clonepool.service.http import server as http
from clonepool.service.http.connections import HttpConnections
from clonepool.service.resources import Resources
from clonepool.service.sentinel import Sentinel
from clonepool.service.server import open_server, own_connections, shielded
from clonepool.service.signals import StopSignal
from clonepool.service.state_changes import StateChanges
from clonepool.service.state_files import hold_lock, reserve_serials
from clonepool.service.wiring.daemon import make_daemon
from clonepool.service.wiring.parts import Prerequisites
from clonepool.service.wiring.tools import make_tools

if TYPE_CHECKING:
    import socket as sockets
    from pathlib import Path

    from anyio.abc import TaskGroup

    from clonepool.config import Config
    from clonepool.postgres.databases import Database
    from clonepool.postgres.gateway import Gateway
    from clonepool.service.wiring.parts import Daemon

log = structlog.get_logger()

CLEANUP_SECONDS = 20.0
"""Seconds that cleaning up may take when the daemon stops."""
HANG_UP_SECONDS = 1.0
"""Seconds that clients may take to read the last replies when the daemon stops."""


async def serve(config: Config, socket: Path, state: Path, recording: Path | None = None) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Args:
        config: checked.
        socket: where to listen.
        state: directory for what outlives the daemon; made if missing.
        recording: file to record all events of the pools in.

    Raises:
        ClonepoolError: the daemon could not start or continue; all that was started is stopped.
    """
    failure: ClonepoolError | None = None
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as outermost:
            stop = StopSignal()
            outermost.start_soon(stop.listen, signals)
            try:
                with stop.starting:
                    await _serve(config, socket, state, recording, stop)
            except* ClonepoolError as group:
                failure = _first(group)  # raised outside of the task group, which would wrap it
            outermost.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _first(group: BaseExceptionGroup[ClonepoolError]) -> ClonepoolError:
    """Return one error out of a group: the others followed from it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _serve(
    config: Config, socket: Path, state: Path, recording: Path | None, stop: StopSignal
) -> None:
    began = time.monotonic()
    resources = Resources(time.monotonic)
    asyncio.get_running_loop().set_exception_handler(loop.handler(resources))
    most_clients = file_budget.share_out(config)
    gate = Gatekeeper(config.access)
    async with AsyncExitStack() as stack:
        state_lock = hold_lock(
            state / "lock",
            directory_mode=0o711,
            taken=f"another daemon uses the state directory {state}",
            remedy="name another with --state",
        )
        stack.callback(os.close, state_lock)
        metrics = Metrics(CollectorRegistry(), config.templates)
        listener = Listener(socket, metrics, config.access, gate, most_clients)
        stack.callback(listener.close)
        web = _bind_http(config.http)
        if web is not None:
            stack.callback(web.close)
        server = await open_server(config, state, stack)
        server_changed = StateChanges()
        sentinel = Sentinel(
            server.gateway,
            config.instance,
            server_changed,
            embedded=server.embedded is not None,
        )
        await sentinel.take()
        stack.push_async_callback(shielded, sentinel.close)
        manager = systemd.connect()
        stack.callback(manager.close)
        capabilities = await inspect(server.gateway)
        server.gateway.harden(major=capabilities.major, superuser=capabilities.superuser)
        server.gateway.share(own_connections(config, capabilities.max_connections))
        namer = Namer(config.instance, capabilities.system_identifier)
        found = await _find_databases(server.gateway, namer)
        given = Prerequisites(
            capabilities=capabilities,
            config=config,
            listener=listener,
            metrics=metrics,
            namer=namer,
            recording=recording,
            resources=resources,
            sentinel=sentinel,
            serials=_serials(found, server.state),
            server=server,
            server_changed=server_changed,
        )
        await _Application(given, _Front(web, manager), stop).run(found, began)


def _bind_http(section: HttpSection) -> sockets.socket | None:
    """Bind the HTTP port; where another daemon has the default port, go without."""
    if not section.listen:
        return None
    try:
        return http.bind(section.listen)
    except AlreadyRunningError as error:
        if section.listen != HttpSection().listen:
            raise
        log.warning("http.not_served", reason=error.sentence())
        return None


async def _find_databases(gateway: Gateway, namer: Namer) -> list[Database]:
    """Return the databases of this instance that are on the server."""
    ours, strangers = await databases.list_ours(gateway, namer)
    for name in strangers:
        log.warning("database.not_ours", database=name, reason="the checksum is wrong")
    return ours


def _serials(found: list[Database], state: Path) -> Serials:
    """Return serials above all that were ever used."""
    serials = Serials(time.time(), max((each.identity.serial for each in found), default=0))
    serials.start_above(reserve_serials(state / "serials", serials.last))
    return serials


class _Front(NamedTuple):
    """How the daemon is seen from outside, besides the socket: HTTP and the service manager."""

    web: sockets.socket | None
    manager: systemd.Manager


class _Application:
    """One run of the daemon, in the order of its methods."""

    def __init__(self, given: Prerequisites, front: _Front, stop: StopSignal) -> None:
        self._given = given
        self._web, self._manager = front
        self._stop = stop

    async def run(self, found: list[Database], began: float) -> None:
        """Work until a signal comes, then stop in order.

        Args:
            found: the databases of this instance.
            began: when the start began, in monotonic seconds.
        """
        given = self._given
        tools = make_tools(given)
        for role in await tools.roles.sweep(given.namer):
            log.info("role.swept", role=role)
        await tools.server_changes.begin(given.capabilities.system_identifier)
        async with anyio.create_task_group() as background:
            daemon = make_daemon(given, tools, background)
            await self._start(daemon, found, background)
            async with anyio.create_task_group() as front:
                self._open(daemon, front, began)
                await self._stop.received.wait()
                self._close(daemon)
                await self._drain(daemon)
                front.cancel_scope.cancel()
            await self._clean_up(daemon)
            background.cancel_scope.cancel()
        tools.storage.close()
        if tools.recorder is not None:
            tools.recorder.close()

    async def _start(self, daemon: Daemon, found: list[Database], background: TaskGroup) -> None:
        """Take over what an earlier daemon left, and start the background work."""
        templates = daemon.templates
        background.start_soon(daemon.executor.run)
        templates.from_clients.find(found)
        await daemon.recovery.take_over(found)
        await templates.from_clients.restore()
        background.start_soon(templates.from_clients.run)
        background.start_soon(templates.builder.run)
        background.start_soon(templates.losses.pass_on, templates.builder, templates.from_clients)
        for monitor in daemon.monitors:
            background.start_soon(monitor.run)

    def _open(self, daemon: Daemon, front: TaskGroup, began: float) -> None:
        """Begin to serve clients."""
        given = self._given
        given.metrics.registry.register(
            PoolCollector(
                daemon.board.pools,
                lambda: len(given.listener.peers),
                lambda: given.sentinel.server_up,
                daemon.board.connections,
                daemon.board.strategies,
                given.metrics.label,
                given.resources.current,
            )
        )
        given.listener.open(daemon.methods, given.resources, given.server_changed.notify)
        if self._web is not None:
            section = given.config.http
            app = http.make_app(given.metrics.registry, daemon.board, section.hosts)
            connections = HttpConnections(
                section.max_connections, given.metrics.http_connections_cut
            )
            front.start_soon(http.serve, app, self._web, connections, given.resources)
        log.info(
            "daemon.started",
            socket=str(given.listener.path),
            instance=given.config.instance,
            duration_seconds=round(time.monotonic() - began, 3),
        )
        self._manager.tell("READY=1")
        self._stop.mark_started()

    def _close(self, daemon: Daemon) -> None:
        """Accept and grant nothing more."""
        self._manager.tell("STOPPING=1")
        self._given.listener.stop_accepting()
        daemon.pools.dispatcher.handle(Stop())
        daemon.methods.stop()

    async def _drain(self, daemon: Daemon) -> None:
        """Wait for leases to end, until the grace is over or a second signal comes."""
        dispatcher = daemon.pools.dispatcher
        if dispatcher.fleet.connection_bound_leases:
            log.info("daemon.draining", leases=dispatcher.fleet.connection_bound_leases)

        async def hurry() -> None:
            await self._stop.hurry.wait()
            waiting.cancel()

        with anyio.move_on_after(self._given.config.pool.stop_grace) as waiting:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hurry)
                await daemon.pools.changed.wait_for(
                    lambda: (
                        not (dispatcher.fleet.connection_bound_leases or dispatcher.reports.owed)
                    )
                )
                tasks.cancel_scope.cancel()

    async def _clean_up(self, daemon: Daemon) -> None:
        """End the leases that are left, and settle every clone, within `CLEANUP_SECONDS`."""
        listener, sentinel = self._given.listener, self._given.sentinel
        dispatcher = daemon.pools.dispatcher
        fleet = dispatcher.fleet
        if fleet.connection_bound_leases:
            log.warning("daemon.ended_leases", leases=fleet.connection_bound_leases)
        dispatcher.handle(EndLeases())
        listener.hang_up()
        cut_off = asyncio.get_running_loop().call_later(HANG_UP_SECONDS, listener.cut_off)
        with anyio.move_on_after(CLEANUP_SECONDS):
            await daemon.pools.changed.wait_for(
                lambda: not (fleet.unsettled and sentinel.server_up)
            )
        cut_off.cancel()
        if fleet.unsettled:
            left = fleet.unsettled
            log.warning("daemon.left_clones", clones=left, reason="dropped at the next start")
        await daemon.templates.methods.close()
        dispatcher.close()
