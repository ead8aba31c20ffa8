"""Makes every part of the daemon, in one order, and gives each part what it needs.

Nothing is assigned to a part after it was made, and making one starts nothing. `app` starts the
parts and stops them.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clonepool.core.drop_schedule import DropSchedule
from clonepool.core.fleet import Fleet
from clonepool.postgres import shared_objects
from clonepool.postgres.clones.copier import Copiers
from clonepool.postgres.clones.copy_strategy import candidates
from clonepool.postgres.rewind import database_facts
from clonepool.postgres.rewind.rewinder import Rewinder
from clonepool.postgres.roles import Roles
from clonepool.postgres.templates.builder import Builder
from clonepool.postgres.templates.client_generation import ClientGenerations
from clonepool.postgres.templates.file_digests import Digests
from clonepool.service.api.admin import AdminMethods
from clonepool.service.api.builds import Builds
from clonepool.service.api.leases import LeaseMethods
from clonepool.service.api.methods import Methods
from clonepool.service.api.progress import Drains
from clonepool.service.api.results import LeaseResults
from clonepool.service.api.status import StatusBoard
from clonepool.service.api.templates import TemplateMethods
from clonepool.service.clone_comment import Comments
from clonepool.service.comment_locks import CommentLocks
from clonepool.service.condition import Condition
from clonepool.service.credentials import Credentials
from clonepool.service.dispatcher import Dispatcher
from clonepool.service.executor import Executor, Jobs
from clonepool.service.failures import Failures
from clonepool.service.job_queue import JobQueue
from clonepool.service.jobs.adopt import AdoptJob
from clonepool.service.jobs.base import JobTools
from clonepool.service.jobs.create import CreateJob
from clonepool.service.jobs.drop import DropJob
from clonepool.service.jobs.keep import KeepJob
from clonepool.service.jobs.leaks import Leaks
from clonepool.service.jobs.park import ParkJob
from clonepool.service.jobs.persist import PersistJob
from clonepool.service.jobs.recycle import RecycleJob
from clonepool.service.jobs.reference import ReferenceJob
from clonepool.service.limiter import PriorityLimiter
from clonepool.service.monitors.event_loop import EventLoopMonitor
from clonepool.service.monitors.files import FileMonitor
from clonepool.service.monitors.lock_watch import LockWatch
from clonepool.service.monitors.reconciler import Reconciler
from clonepool.service.monitors.resources import ResourceMonitor
from clonepool.service.monitors.server import ServerMonitor
from clonepool.service.monitors.wal import WalMonitor
from clonepool.service.outages import Outages
from clonepool.service.recovery import Recovery
from clonepool.service.server import kept_connections
from clonepool.service.server_changes import ServerChanges
from clonepool.service.state_files import begin_run, load_secret
from clonepool.service.storage import StorageGuard
from clonepool.service.template_table import TemplateTable
from clonepool.service.templates.builder import TemplateBuilder
from clonepool.service.templates.client_templates import ClientTemplates
from clonepool.service.templates.fills import FillCoordinator
from clonepool.service.templates.losses import GenerationLosses
from clonepool.service.templates.registry import Registry, limits_of
from clonepool.service.templates.snapshots import Snapshots
from clonepool.service.templates.sources import TemplateSources

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from clonepool.config import Config
    from clonepool.core.naming import Namer, Serials
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.service.api.listener import Listener
    from clonepool.service.monitors.base import Monitor
    from clonepool.service.monitors.resources import Resources
    from clonepool.service.sentinel import Sentinel
    from clonepool.service.server import Server

NOW = time.monotonic


class Ground(NamedTuple):
    """What is there before the parts are made.

    Attributes:
        capabilities: of the server.
        config: of the daemon.
        listener: has the socket.
        metrics: of the daemon.
        namer: makes and reads the names of databases.
        resources: what the machine is short of.
        sentinel: holds the instance lock.
        serials: of databases, above all that exist.
        server: is reachable.
        server_changed: notified when the sentinel is lost, and when the first client connects.
    """

    capabilities: Capabilities
    config: Config
    listener: Listener
    metrics: Metrics
    namer: Namer
    resources: Resources
    sentinel: Sentinel
    serials: Serials
    server: Server
    server_changed: Condition

    @property
    def is_embedded(self) -> bool:
        """Whether the server is the daemon's own."""
        return self.server.embedded is not None


class Tools(NamedTuple):
    """What jobs, monitors and the builder of templates work with."""

    comments: Comments
    copiers: Copiers
    credentials: Credentials
    failures: Failures
    fleet: Fleet
    limiter: PriorityLimiter
    rewinder: Rewinder
    roles: Roles
    server_changes: ServerChanges
    storage: StorageGuard
    table: TemplateTable


class Pools(NamedTuple):
    """The pools and the way to them.

    Attributes:
        changed: notified when the pools may have changed.
        dispatcher: the door for events.
        drains: the calls that wait for leases to end.
        queue: from the dispatcher to the executor.
    """

    changed: Condition
    dispatcher: Dispatcher
    drains: Drains
    queue: JobQueue


class Templates(NamedTuple):
    """The parts that build templates and let clients make them."""

    builder: TemplateBuilder
    builds: Builds
    from_clients: ClientTemplates
    losses: GenerationLosses
    methods: TemplateMethods


class Daemon(NamedTuple):
    """All that is started and stopped."""

    board: StatusBoard
    executor: Executor
    methods: Methods
    monitors: list[Monitor]
    pools: Pools
    recovery: Recovery
    templates: Templates
    tools: Tools


def make_daemon(ground: Ground, tools: Tools, tasks: TaskGroup) -> Daemon:
    """Make everything that works on the server.

    Args:
        ground: what is there.
        tools: as `make_tools` returned them.
        tasks: where work that takes time is done.
    """
    pools = _make_pools(ground, tools)
    losses = GenerationLosses()
    templates = _make_templates(ground, tools, pools, losses, tasks)
    jobs = _make_jobs(ground, tools, pools, losses)
    board = _make_board(ground, tools)
    return Daemon(
        board=board,
        executor=Executor(jobs, queue=pools.queue, changed=pools.changed, tasks=tasks),
        methods=_make_methods(ground, pools, templates, board),
        monitors=_make_monitors(ground, tools, pools, templates),
        pools=pools,
        recovery=Recovery(
            comments=tools.comments,
            credentials=tools.credentials,
            events=pools.dispatcher,
            failures=tools.failures,
            fleet=tools.fleet,
            gateway=ground.server.gateway,
            now=NOW,
        ),
        templates=templates,
        tools=tools,
    )


# Tools ------------------------------------------------------------------------------------


def make_tools(ground: Ground) -> Tools:
    """Make what the other parts work with."""
    config, capabilities, server = ground.config, ground.capabilities, ground.server
    secret = load_secret(server.state / "secret")
    roles = Roles(server.gateway, capabilities, embedded=ground.is_embedded)
    fleet = _make_fleet(ground)
    table = TemplateTable(config.templates, capabilities, fleet, embedded=ground.is_embedded)
    comments = Comments(ground.namer, secret, begin_run(server.state / "run"))
    copiers = _make_copiers(ground)
    limiter = PriorityLimiter(config.pool.ddl_concurrency)
    storage = _make_storage(ground)
    references = ReferenceJob(
        comments=comments,
        copiers=copiers,
        limiter=limiter,
        namer=ground.namer,
        serials=ground.serials,
        storage=storage,
        templates=table,
    )
    return Tools(
        comments=comments,
        copiers=copiers,
        credentials=Credentials(
            roles, server.clients, capabilities, secret, embedded=ground.is_embedded
        ),
        failures=Failures(ground.metrics, ground.resources),
        fleet=fleet,
        limiter=limiter,
        rewinder=_make_rewinder(ground, fleet, references),
        roles=roles,
        server_changes=ServerChanges(
            server.gateway,
            capabilities.major,
            fleet,
            ground.metrics,
            server.state / "server.json",
            takes_back=ground.is_embedded,
        ),
        storage=storage,
        table=table,
    )


def _make_fleet(ground: Ground) -> Fleet:
    limits = {
        name: limits_of(section, rewinds=ground.capabilities.rewinds)
        for name, section in ground.config.templates.items()
    }
    return Fleet(limits, ground.config.pool.max_clones, ground.namer, ground.serials)


def _make_copiers(ground: Ground) -> Copiers:
    by_clients = ground.config.client_templates
    if by_clients.allow:  # its copy strategy must be possible before the first one is made
        candidates(by_clients.copy, ground.capabilities, throwaway=ground.is_embedded)
    return Copiers(
        ground.server.gateway,
        ground.capabilities,
        {name: section.copy for name, section in ground.config.templates.items()},
        NOW,
        throwaway=ground.is_embedded,
    )


def _make_storage(ground: Ground) -> StorageGuard:
    storage = ground.server.embedded.storage if ground.server.embedded else None
    return StorageGuard(
        ground.config,
        storage.root if storage else None,
        in_memory=bool(storage and storage.in_memory),
    )


def _make_rewinder(ground: Ground, fleet: Fleet, references: ReferenceJob) -> Rewinder:
    capabilities = ground.capabilities
    shared = database_facts.NOTHING_SHARED
    if ground.is_embedded:
        shared = shared_objects.digest_sql(capabilities.major)
    return Rewinder(
        ground.server.gateway,
        references.make,
        capabilities.major,
        kept_connections(capabilities.max_connections),
        shared,
        lambda: fleet.is_idle,
    )


# Pools ------------------------------------------------------------------------------------


def _make_pools(ground: Ground, tools: Tools) -> Pools:
    loop, changed = asyncio.get_running_loop(), Condition()
    queue = JobQueue(ground.listener, loop, NOW)
    drains = Drains(tools.fleet, loop)
    dispatcher = Dispatcher(
        fleet=tools.fleet,
        jobs=queue,
        results=LeaseResults(ground.server.clients, tools.credentials, NOW),
        connections=ground.listener,
        metrics=ground.metrics,
        loop=loop,
        clock=NOW,
        changing=tools.table.changes_server,
        observers=(changed.notify, drains.look),
    )
    return Pools(changed, dispatcher, drains, queue)


# Templates --------------------------------------------------------------------------------


def _make_templates(
    ground: Ground, tools: Tools, pools: Pools, losses: GenerationLosses, tasks: TaskGroup
) -> Templates:
    server_builder = Builder(
        ground.server.gateway,
        ground.namer,
        ground.capabilities,
        tools.roles,
        ground.server.clients,
        ground.server.psql,
        ground.serials.next,
        Digests(ground.server.state / "digests.json"),
    )
    builder = _make_builder(ground, tools, pools, server_builder)
    from_clients = _make_client_templates(ground, tools, pools, server_builder, tasks)
    generations = ClientGenerations(
        ground.server.gateway,
        ground.capabilities,
        server_builder.generations,
        server_builder.steps,
        server_builder.next_serial,
    )
    builds = Builds(builder, tasks)
    methods = _make_template_methods(ground, tools, pools, from_clients, generations, builds, tasks)
    return Templates(builder, builds, from_clients, losses, methods)


def _make_builder(
    ground: Ground, tools: Tools, pools: Pools, server_builder: Builder
) -> TemplateBuilder:
    config = ground.config
    return TemplateBuilder(
        builder=server_builder,
        credentials=tools.credentials,
        events=pools.dispatcher,
        failures=tools.failures,
        fleet=tools.fleet,
        gateway=ground.server.gateway,
        metrics=ground.metrics,
        now=NOW,
        places=config.pool.ddl_concurrency,
        rewinder=tools.rewinder,
        sections=config.templates,
        server_changes=tools.server_changes,
        sources=TemplateSources(
            builder=server_builder,
            credentials=tools.credentials,
            directory=Path(config.directory),
            sections=config.templates,
            table=tools.table,
        ),
        table=tools.table,
    )


def _make_client_templates(
    ground: Ground, tools: Tools, pools: Pools, server_builder: Builder, tasks: TaskGroup
) -> ClientTemplates:
    config = ground.config
    return ClientTemplates(
        capabilities=ground.capabilities,
        changed=pools.changed,
        configured=config.templates,
        credentials=tools.credentials,
        events=pools.dispatcher,
        failures=tools.failures,
        fleet=tools.fleet,
        gateway=ground.server.gateway,
        generations=server_builder.generations,
        now=NOW,
        options=config.client_templates,
        registry=Registry(
            capabilities=ground.capabilities,
            copiers=tools.copiers,
            events=pools.dispatcher,
            fleet=tools.fleet,
            metrics=ground.metrics,
            table=tools.table,
        ),
        rewinder=tools.rewinder,
        server_changes=tools.server_changes,
        table=tools.table,
        tasks=tasks,
    )


def _make_template_methods(
    ground: Ground,
    tools: Tools,
    pools: Pools,
    from_clients: ClientTemplates,
    generations: ClientGenerations,
    builds: Builds,
    tasks: TaskGroup,
) -> TemplateMethods:
    config = ground.config
    fills = FillCoordinator(
        call_later=pools.dispatcher.call_later,
        failures=tools.failures,
        fill_seconds=config.client_templates.fill_timeout,
        generations=generations,
        now=NOW,
        server_changes=tools.server_changes,
        tasks=tasks,
        templates=from_clients,
    )
    snapshots = Snapshots(
        capabilities=ground.capabilities,
        configured=config.templates,
        copiers=tools.copiers,
        fleet=tools.fleet,
        generations=generations,
        rewinder=tools.rewinder,
        storage=tools.storage,
        storage_taken=tools.table.storage_taken,
        table=tools.table,
        templates=from_clients,
    )
    return TemplateMethods(
        acquire_timeout=config.pool.acquire_timeout,
        builds=builds,
        fills=fills,
        now=NOW,
        snapshots=snapshots,
        tasks=tasks,
        templates=from_clients,
    )


# Jobs and monitors ------------------------------------------------------------------------


def _make_jobs(ground: Ground, tools: Tools, pools: Pools, losses: GenerationLosses) -> Jobs:
    reports, comment_locks = pools.dispatcher.reports, CommentLocks()
    common = JobTools(
        comments=tools.comments,
        events=pools.dispatcher,
        failures=tools.failures,
        gateway=ground.server.gateway,
        metrics=ground.metrics,
        now=NOW,
        templates=tools.table,
    )
    leaks = Leaks(
        common,
        credentials=tools.credentials,
        rewinder=tools.rewinder,
        server_changes=tools.server_changes,
    )
    return Jobs(
        create=CreateJob(
            common,
            fleet=tools.fleet,
            limiter=tools.limiter,
            storage=tools.storage,
            copiers=tools.copiers,
            credentials=tools.credentials,
            rewinder=tools.rewinder,
            losses=losses,
        ),
        recycle=RecycleJob(
            common,
            comment_locks=comment_locks,
            credentials=tools.credentials,
            leaks=leaks,
            reports=reports,
            rewinder=tools.rewinder,
        ),
        keep=KeepJob(
            common,
            comment_locks=comment_locks,
            leaks=leaks,
            reports=reports,
            rewinder=tools.rewinder,
        ),
        persist=PersistJob(common, comment_locks=comment_locks, credentials=tools.credentials),
        park=ParkJob(common, rewinder=tools.rewinder),
        adopt=AdoptJob(
            common,
            limiter=tools.limiter,
            credentials=tools.credentials,
            rewinder=tools.rewinder,
            losses=losses,
        ),
        drop=DropJob(
            common,
            changed=pools.changed,
            credentials=tools.credentials,
            limiter=tools.limiter,
            rewinder=tools.rewinder,
            schedule=DropSchedule(
                tools.fleet,
                ground.config.pool.max_clones,
                lambda: tools.table.is_storage_short(tools.storage),
            ),
            vacuums=ground.is_embedded,
        ),
    )


def _make_monitors(
    ground: Ground, tools: Tools, pools: Pools, templates: Templates
) -> list[Monitor]:
    failures, changed = tools.failures, pools.changed
    monitors: list[Monitor] = [
        _make_server_monitor(ground, tools, pools, templates),
        FileMonitor(failures, builder=templates.builder, resources=ground.resources),
        LockWatch(
            failures,
            changed=changed,
            fleet=tools.fleet,
            gateway=ground.server.gateway,
            rewinder=tools.rewinder,
        ),
        ResourceMonitor(failures, resources=ground.resources),
        EventLoopMonitor(failures, lag_seconds=ground.metrics.event_loop_lag_seconds, now=NOW),
    ]
    if ground.capabilities.rewinds:
        monitors.append(
            WalMonitor(failures, changed=changed, fleet=tools.fleet, rewinder=tools.rewinder)
        )
    return monitors


def _make_server_monitor(
    ground: Ground, tools: Tools, pools: Pools, templates: Templates
) -> ServerMonitor:
    return ServerMonitor(
        tools.failures,
        changed=ground.server_changed,
        embedded=ground.server.embedded,
        has_clients=lambda: bool(ground.listener.peers),
        outages=Outages(
            copiers=tools.copiers,
            events=pools.dispatcher,
            gateway=ground.server.gateway,
            look_at_sources=templates.builder.files_due.set,
            rewinder=tools.rewinder,
            templates=tools.table,
        ),
        reconciler=Reconciler(
            events=pools.dispatcher,
            fleet=tools.fleet,
            losses=templates.losses,
            metrics=ground.metrics,
            templates=tools.table,
        ),
        sentinel=ground.sentinel,
    )


# Clients ----------------------------------------------------------------------------------


def _make_board(ground: Ground, tools: Tools) -> StatusBoard:
    return StatusBoard(
        fleet=tools.fleet,
        capabilities=ground.capabilities,
        gateway=ground.server.gateway,
        storage=tools.storage,
        copiers=tools.copiers,
        instance=ground.config.instance,
        configured=ground.config.templates.keys(),
        recreated_because=tools.table.recreated_because,
        server_problem=lambda: ground.sentinel.problem,
        short_of=ground.resources.current,
        now=NOW,
    )


def _make_methods(
    ground: Ground, pools: Pools, templates: Templates, board: StatusBoard
) -> Methods:
    config = ground.config
    return Methods(
        leases=LeaseMethods(
            pools.dispatcher,
            templates.builds,
            acquire_timeout=config.pool.acquire_timeout,
            max_leases=config.access.max_leases_per_client,
        ),
        templates=templates.methods,
        admin=AdminMethods(pools.dispatcher, pools.drains, config.instance),
        board=board,
        max_pending=config.access.max_pending_per_client,
    )
