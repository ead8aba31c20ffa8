"""Makes the jobs and the monitors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.drop_schedule import DropSchedule
from clonepool.service.comment_locks import CommentLocks
from clonepool.service.executor import Jobs
from clonepool.service.jobs.adopt import AdoptJob
from clonepool.service.jobs.base import JobTools
from clonepool.service.jobs.create import CreateJob
from clonepool.service.jobs.drop import DropJob
from clonepool.service.jobs.keep import KeepJob
from clonepool.service.jobs.leaks import Leaks
from clonepool.service.jobs.park import ParkJob
from clonepool.service.jobs.persist import PersistJob
from clonepool.service.jobs.recycle import RecycleJob
from clonepool.service.monitors.config_file import ConfigFileMonitor
from clonepool.service.monitors.event_loop import EventLoopMonitor
from clonepool.service.monitors.files import FileMonitor
from clonepool.service.monitors.lock_watch import LockWatch
from clonepool.service.monitors.reconciler import Reconciler
from clonepool.service.monitors.resources import ResourceMonitor
from clonepool.service.monitors.server import ServerMonitor
from clonepool.service.monitors.wal import WalMonitor
from clonepool.service.outages import Outages
from clonepool.service.wiring.parts import NOW, Pools, Prerequisites, Templates, Tools

if TYPE_CHECKING:
    from clonepool.service.monitors.base import Monitor
    from clonepool.service.templates.losses import GenerationLosses


def make_jobs(given: Prerequisites, tools: Tools, pools: Pools, losses: GenerationLosses) -> Jobs:
    """Make one job for each kind of decision that takes time."""
    reports, comment_locks = pools.dispatcher.reports, CommentLocks()
    common = JobTools(
        comments=tools.comments,
        events=pools.dispatcher,
        failures=tools.failures,
        gateway=given.server.gateway,
        metrics=given.metrics,
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
                given.config.pool.max_clones,
                lambda: tools.table.is_storage_short(tools.storage),
            ),
            vacuums=given.is_embedded,
        ),
    )


def make_monitors(
    given: Prerequisites, tools: Tools, pools: Pools, templates: Templates
) -> list[Monitor]:
    """Make the background loops."""
    failures, changed = tools.failures, pools.changed
    monitors: list[Monitor] = [
        _make_server_monitor(given, tools, pools, templates),
        FileMonitor(failures, builder=templates.builder, resources=given.resources),
        LockWatch(
            failures,
            changed=changed,
            fleet=tools.fleet,
            gateway=given.server.gateway,
            rewinder=tools.rewinder,
        ),
        ResourceMonitor(failures, resources=given.resources),
        EventLoopMonitor(failures, lag_seconds=given.metrics.event_loop_lag_seconds, now=NOW),
    ]
    if given.config.path:
        monitors.append(ConfigFileMonitor(failures, config=given.config))
    if given.capabilities.rewinds:
        monitors.append(
            WalMonitor(failures, changed=changed, fleet=tools.fleet, rewinder=tools.rewinder)
        )
    return monitors


def _make_server_monitor(
    given: Prerequisites, tools: Tools, pools: Pools, templates: Templates
) -> ServerMonitor:
    return ServerMonitor(
        tools.failures,
        changed=given.server_changed,
        embedded=given.server.embedded,
        has_clients=lambda: bool(given.listener.peers),
        outages=Outages(
            copiers=tools.copiers,
            events=pools.dispatcher,
            gateway=given.server.gateway,
            look_at_sources=templates.builder.files_due.set,
            rewinder=tools.rewinder,
            templates=tools.table,
        ),
        reconciler=Reconciler(
            events=pools.dispatcher,
            fleet=tools.fleet,
            losses=templates.losses,
            metrics=given.metrics,
            templates=tools.table,
        ),
        sentinel=given.sentinel,
    )
