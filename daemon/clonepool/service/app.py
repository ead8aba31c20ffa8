"""The composition root: makes every room, opens every long-lived task, closes in order.

Two task groups, one in the other: workers outside, the front (listener, HTTP) inside. A signal
ends the front first, then the workers, then what they made is cleaned up under a deadline.
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
from clonepool.core.fleet import Fleet
from clonepool.core.naming import Namer, Serials
from clonepool.errors import AlreadyRunningError, ClonepoolError
from clonepool.observe.metrics import Metrics, PoolCollector
from clonepool.postgres import databases, shared_objects
from clonepool.postgres.capabilities import Capabilities, inspect
from clonepool.postgres.clones.copier import Copiers
from clonepool.postgres.clones.copy_strategy import candidates
from clonepool.postgres.rewind import database_facts
from clonepool.postgres.rewind.rewinder import Rewinder
from clonepool.postgres.roles import Roles
from clonepool.postgres.templates.builder import Builder
from clonepool.postgres.templates.client_generation import ClientGenerations
from clonepool.postgres.templates.file_digests import Digests
from clonepool.service import file_budget, loop, systemd
from clonepool.service.api.access import Gatekeeper
from clonepool.service.api.builds import Builds
from clonepool.service.api.listener import Listener
from clonepool.service.api.methods import Methods
from clonepool.service.api.status import StatusBoard
from clonepool.service.api.templates import TemplateMethods
from clonepool.service.clone_comment import Comments
from clonepool.service.context import Context
from clonepool.service.credentials import Credentials
from clonepool.service.dispatcher import Dispatcher
from clonepool.service.executor import Executor
from clonepool.service.failures import Failures
from clonepool.service.http import server as http
from clonepool.service.http.connections import HttpConnections
from clonepool.service.jobs.reference import ReferenceJob
from clonepool.service.limiter import PriorityLimiter
from clonepool.service.monitors import event_loop
from clonepool.service.monitors.config_file import ConfigFileMonitor
from clonepool.service.monitors.files import FileMonitor
from clonepool.service.monitors.reconciler import Reconciler
from clonepool.service.monitors.resources import ResourceMonitor
from clonepool.service.monitors.server import ServerMonitor
from clonepool.service.recovery import take_over
from clonepool.service.server import kept_connections, open_server, own_connections, shielded
from clonepool.service.server_changes import ServerChanges
from clonepool.service.signals import StopSignal
from clonepool.service.state_files import begin_run, hold_lock, load_secret, reserve_serials
from clonepool.service.storage import StorageGuard
from clonepool.service.tasks import guarded
from clonepool.service.templates.builder import TemplateBuilder
from clonepool.service.templates.client_templates import ClientTemplates
from clonepool.service.templates.fills import FillCoordinator
from clonepool.service.templates.registry import limits_of
from clonepool.service.templates.snapshots import Snapshots

if TYPE_CHECKING:
    import socket as sockets
    from pathlib import Path

    from anyio.abc import TaskGroup

    from clonepool.config import Config
    from clonepool.service.server import Server

log = structlog.get_logger()

CLEANUP_SECONDS = 20.0
_LOOK_SECONDS = 0.02
HANG_UP_SECONDS = 1.0
"""How long clients may take to read the last replies when the daemon stops."""


async def serve(config: Config, socket: Path, state: Path) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Args:
        config: checked.
        socket: where to listen.
        state: directory for what outlives the daemon; made if missing.

    Raises:
        ClonepoolError: the daemon could not start, or not go on; what was started is stopped again.
    """
    failure: ClonepoolError | None = None
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as outermost:
            stop = StopSignal()
            outermost.start_soon(stop.listen, signals)
            try:
                with stop.starting:
                    await _serve(config, socket, state, stop)
            except* ClonepoolError as group:
                failure = _first(group)  # raised outside, where no task group wraps it
            outermost.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _first(group: BaseExceptionGroup[ClonepoolError]) -> ClonepoolError:
    """Return one error out of a group: the others came of it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _serve(config: Config, socket: Path, state: Path, stop: StopSignal) -> None:
    began = time.monotonic()
    shortages = ResourceMonitor(time.monotonic)
    asyncio.get_running_loop().set_exception_handler(loop.handler(shortages))
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
        listener = Listener(socket, metrics, config.access, most_clients)
        stack.callback(listener.close)
        web = _bind_http(config.http)
        if web is not None:
            stack.callback(web.close)
        server = await open_server(config, state, stack)
        keeper = ServerMonitor(server.gateway, config.instance, server.embedded, shortages)
        await keeper.begin()
        stack.push_async_callback(shielded, keeper.close)
        manager = systemd.connect()
        stack.callback(manager.close)
        doors = _Doors(listener, gate, web, manager)
        await _Daemon(config, server, keeper, metrics, doors, shortages, stop).run(began)


def _bind_http(section: HttpSection) -> sockets.socket | None:
    """Bind where metrics are to be served; a default that another daemon has is done without."""
    if not section.listen:
        return None
    try:
        return http.bind(section.listen)
    except AlreadyRunningError as error:
        if section.listen != HttpSection().listen:
            raise
        log.warning("http.not_served", reason=error.sentence())
        return None


class _Doors(NamedTuple):
    """Where others meet the daemon."""

    listener: Listener
    gate: Gatekeeper
    web: sockets.socket | None
    manager: systemd.Manager


class _Daemon:
    """One run: everything is there, now it is put to work."""

    def __init__(
        self,
        config: Config,
        server: Server,
        keeper: ServerMonitor,
        metrics: Metrics,
        doors: _Doors,
        shortages: ResourceMonitor,
        stop: StopSignal,
    ) -> None:
        self._config = config
        self._server = server
        self._keeper = keeper
        self._metrics = metrics
        self._listener, self._gate, self._web, self._manager = doors
        self._shortages = shortages
        self._stop_signal = stop

    async def run(self, began: float) -> None:
        """Work until a signal comes, then stop in order."""
        gateway = self._server.gateway
        capabilities = await inspect(gateway)
        gateway.harden(major=capabilities.major, superuser=capabilities.superuser)
        gateway.share(own_connections(self._config, capabilities.max_connections))
        namer = Namer(self._config.instance, capabilities.system_identifier)
        ours, strangers = await databases.list_ours(gateway, namer)
        for name in strangers:
            log.warning("database.not_ours", database=name, reason="the checksum is wrong")
        serials = Serials(time.time(), max((d.identity.serial for d in ours), default=0))
        serials.start_above(reserve_serials(self._server.state / "serials", serials.last))
        fleet = self._make_fleet(namer, serials, rewinds=capabilities.rewinds)
        fleet.budget.problem = lambda: self._keeper.problem
        context = self._make_context(fleet, capabilities, namer, ReferenceJob(namer, serials))
        for role in await context.roles.sweep(namer):
            log.info("role.swept", role=role)
        build = Builder(
            gateway,
            namer,
            capabilities,
            context.roles,
            self._server.clients,
            self._server.psql,
            serials.next,
            Digests(self._server.state / "digests.json"),
        )
        builder = TemplateBuilder(context, build)
        await context.server_changes.begin(capabilities.system_identifier)
        async with anyio.create_task_group() as workers:
            dispatcher = self._make_broker(context, workers)
            made = ClientTemplates(context, build.generations, workers)
            context.rebuild = lambda name: (
                made.lost(name) if name in made.registry.made else builder.rebuild(name)
            )
            context.replace = lambda name: (
                made.lost(name, damaged=True)
                if name in made.registry.made
                else builder.replace(name)
            )
            made.find(ours)
            await take_over(context, ours)
            await made.restore()
            workers.start_soon(made.run)
            workers.start_soon(builder.run)
            workers.start_soon(FileMonitor(builder, self._shortages).run)
            workers.start_soon(ConfigFileMonitor(self._config, self._shortages).run)
            workers.start_soon(event_loop.run, self._metrics.event_loop_lag_seconds, time.monotonic)
            workers.start_soon(self._shortages.run)
            self._start_keeper(workers, dispatcher, context, builder)
            making = self._make_template_methods(dispatcher, context, build, made, workers)
            board = StatusBoard(context, lambda: self._keeper.problem, dispatcher.now)
            board.short_of = self._shortages.current
            methods = Methods(
                dispatcher,
                self._server.clients,
                context.credentials,
                self._config,
                board,
                Builds(builder, workers),
                making,
                str(self._server.psql.parent) if self._server.embedded else "",
            )
            await self._front(dispatcher, methods, board, began)
            await self._clean_up(dispatcher)
            await making.close()
            dispatcher.close()
            workers.cancel_scope.cancel()
        context.storage.close()

    def _make_fleet(self, namer: Namer, serials: Serials, *, rewinds: bool) -> Fleet:
        limits = {
            name: limits_of(section, rewinds=rewinds)
            for name, section in self._config.templates.items()
        }
        return Fleet(limits, self._config.pool.max_clones, namer, serials)

    def _make_context(
        self, fleet: Fleet, capabilities: Capabilities, namer: Namer, references: ReferenceJob
    ) -> Context:
        embedded, gateway = self._server.embedded, self._server.gateway
        storage = embedded.storage if embedded else None
        made = self._config.client_templates
        if made.allow:  # what it says of copying must be possible before the first one is made
            candidates(made.copy, capabilities, throwaway=embedded is not None)
        roles = Roles(gateway, capabilities, embedded=embedded is not None)
        secret = load_secret(self._server.state / "secret")
        alone = embedded is not None
        context = Context(
            config=self._config,
            sections=dict(self._config.templates),
            gateway=gateway,
            capabilities=capabilities,
            fleet=fleet,
            limiter=PriorityLimiter(self._config.pool.ddl_concurrency),
            metrics=self._metrics,
            failures=Failures(self._metrics, self._shortages),
            comments=Comments(namer, secret, begin_run(self._server.state / "run")),
            roles=roles,
            credentials=Credentials(
                roles,
                self._server.clients,
                capabilities,
                secret,
                embedded=embedded is not None,
            ),
            rewinder=Rewinder(
                gateway,
                lambda generation: references.make(context, generation),
                capabilities.major,
                kept_connections(capabilities.max_connections),
                shared_objects.digest_sql(capabilities.major)
                if alone
                else database_facts.NOTHING_SHARED,
                lambda: fleet.is_idle,
            ),
            server_changes=ServerChanges(
                gateway,
                capabilities.major,
                fleet,
                self._metrics,
                self._server.state / "server.json",
                takes_back=alone,
            ),
            storage=StorageGuard(
                self._config,
                storage.root if storage else None,
                in_memory=bool(storage and storage.in_memory),
            ),
            now=time.monotonic,
            copiers=Copiers(
                gateway,
                capabilities,
                {name: section.copy for name, section in self._config.templates.items()},
                time.monotonic,
                throwaway=embedded is not None,
            ),
        )
        return context

    def _make_template_methods(
        self,
        dispatcher: Dispatcher,
        context: Context,
        build: Builder,
        made: ClientTemplates,
        workers: TaskGroup,
    ) -> TemplateMethods:
        handmade = ClientGenerations(
            context.gateway, context.capabilities, build.generations, build.steps, build.next_serial
        )
        snapshots = Snapshots(context, made, handmade)
        definer = FillCoordinator(context, made, handmade, workers, dispatcher.call_later)
        return TemplateMethods(context, made, snapshots, definer, workers)

    def _make_broker(self, context: Context, workers: TaskGroup) -> Dispatcher:
        crew = Executor(context, workers)
        dispatcher = Dispatcher(
            context.fleet,
            crew,
            self._metrics,
            asyncio.get_running_loop(),
            time.monotonic,
            self._config.pool.acquire_timeout,
            self._listener.tell,
            self._listener.leaks_to,
        )
        context.carry_out, dispatcher.on_change = dispatcher.carry_out, crew.stir
        return dispatcher

    def _start_keeper(
        self, workers: TaskGroup, dispatcher: Dispatcher, context: Context, builder: TemplateBuilder
    ) -> None:
        keeper = self._keeper
        keeper.watched = lambda: bool(self._listener.peers)
        self._listener.on_first_client = keeper.stir

        def found() -> None:
            self._resume(dispatcher, context)
            workers.start_soon(guarded, builder.look, set(self._config.templates))

        workers.start_soon(keeper.run, lambda: self._pause(context), found, Reconciler(context))

    def _pause(self, context: Context) -> None:
        """Grant nothing while the server is away, and hang on to no connection to it."""
        context.fleet.pause()
        context.rewinder.server_lost()
        self._server.gateway.abandon()

    def _resume(self, dispatcher: Dispatcher, context: Context) -> None:
        """Go on after the server came back; if it crashed it has emptied unlogged tables."""
        context.copiers.server_changed()
        for template, generation in context.generations.items():
            if generation.contents.unlogged:
                dispatcher.carry_out(context.fleet.pools[template].distrust())
        dispatcher.carry_out(context.fleet.resume(dispatcher.now()))

    async def _front(
        self, dispatcher: Dispatcher, methods: Methods, board: StatusBoard, began: float
    ) -> None:
        """Serve clients until a signal comes, and those who hold leases for a while after it."""
        self._metrics.registry.register(
            PoolCollector(
                board.pools,
                lambda: len(self._listener.peers),
                lambda: self._keeper.server_up,
                board.connections,
                board.strategies,
                self._metrics.label,
                board.short_of,
            )
        )
        async with anyio.create_task_group() as front:
            self._listener.open(methods, self._gate, self._shortages)
            if self._web is not None:
                section = self._config.http
                app = http.make_app(self._metrics.registry, board, section.hosts)
                visits = HttpConnections(
                    section.max_connections, self._metrics.http_connections_cut
                )
                front.start_soon(http.serve, app, self._web, visits, self._shortages)
            log.info(
                "daemon.started",
                socket=str(self._listener.path),
                instance=self._config.instance,
                duration_seconds=round(time.monotonic() - began, 3),
            )
            self._manager.tell("READY=1")
            self._stop_signal.started = True
            await self._stop_signal.received.wait()
            self._manager.tell("STOPPING=1")
            self._listener.stop_accepting()
            dispatcher.carry_out(dispatcher.fleet.stop())
            methods.stop()
            await self._drain(dispatcher)
            front.cancel_scope.cancel()

    async def _drain(self, dispatcher: Dispatcher) -> None:
        """Let leases end by themselves, until the grace is over or a second signal comes."""
        fleet, hurry = dispatcher.fleet, self._stop_signal.hurry
        if fleet.mortal_leases:
            log.info("daemon.draining", leases=fleet.mortal_leases)
        with anyio.move_on_after(self._config.pool.stop_grace):
            while (fleet.mortal_leases or dispatcher.reports) and not hurry.is_set():
                with anyio.move_on_after(_LOOK_SECONDS):
                    await hurry.wait()

    async def _clean_up(self, dispatcher: Dispatcher) -> None:
        """End the leases left, and settle every clone, for as long as that may take."""
        fleet = dispatcher.fleet
        if fleet.mortal_leases:
            log.warning("daemon.ended_leases", leases=fleet.mortal_leases)
        dispatcher.carry_out(fleet.end_leases())
        self._listener.hang_up()
        with anyio.move_on_after(CLEANUP_SECONDS):
            hang_up_by = dispatcher.now() + HANG_UP_SECONDS
            while fleet.unsettled and self._keeper.server_up:
                await anyio.sleep(0.01)
                if dispatcher.now() > hang_up_by:
                    self._listener.cut_off()
        if fleet.unsettled:
            left = fleet.unsettled
            log.warning("daemon.left_clones", clones=left, reason="dropped at the next start")
