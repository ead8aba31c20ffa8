"""Makes the daemon from its parts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from clonepool.service.api.admin import AdminMethods
from clonepool.service.api.leases import LeaseMethods
from clonepool.service.api.methods import Methods
from clonepool.service.api.progress import Drains
from clonepool.service.api.status import StatusBoard
from clonepool.service.dispatcher import Dispatcher
from clonepool.service.executor import Executor
from clonepool.service.job_queue import JobQueue
from clonepool.service.lease_results import LeaseResults
from clonepool.service.recovery import Recovery
from clonepool.service.state_changes import StateChanges
from clonepool.service.templates.losses import GenerationLosses
from clonepool.service.wiring.parts import NOW, Daemon, Pools, Prerequisites, Templates, Tools
from clonepool.service.wiring.templates import make_templates
from clonepool.service.wiring.work import make_jobs, make_monitors

if TYPE_CHECKING:
    from anyio.abc import TaskGroup


def make_daemon(given: Prerequisites, tools: Tools, tasks: TaskGroup) -> Daemon:
    """Make everything that works on the server.

    Args:
        given: what exists already.
        tools: as `make_tools` returned them.
        tasks: where work that takes time is done.
    """
    pools = make_pools(given, tools)
    losses = GenerationLosses()
    templates = make_templates(given, tools, pools, losses, tasks)
    jobs = make_jobs(given, tools, pools, losses)
    board = _make_board(given, tools)
    return Daemon(
        board=board,
        executor=Executor(jobs, queue=pools.queue, changed=pools.changed, tasks=tasks),
        methods=_make_methods(given, pools, templates, board),
        monitors=make_monitors(given, tools, pools, templates),
        pools=pools,
        recovery=Recovery(
            comments=tools.comments,
            credentials=tools.credentials,
            events=pools.dispatcher,
            failures=tools.failures,
            fleet=tools.fleet,
            gateway=given.server.gateway,
            now=NOW,
        ),
        templates=templates,
        tools=tools,
    )


def make_pools(given: Prerequisites, tools: Tools) -> Pools:
    """Make the dispatcher, and what stands between it and the jobs."""
    loop, changed = asyncio.get_running_loop(), StateChanges()
    queue = JobQueue(given.listener, loop, NOW)
    drains = Drains(tools.fleet, loop)
    dispatcher = Dispatcher(
        fleet=tools.fleet,
        queue=queue,
        results=LeaseResults(given.server.clients, tools.credentials, NOW),
        connections=given.listener,
        metrics=given.metrics,
        loop=loop,
        clock=NOW,
        changing=tools.table.changes_server,
        observers=(changed.notify, drains.look),
        recorder=tools.recorder,
    )
    return Pools(changed, dispatcher, drains, queue)


def _make_board(given: Prerequisites, tools: Tools) -> StatusBoard:
    return StatusBoard(
        fleet=tools.fleet,
        capabilities=given.capabilities,
        gateway=given.server.gateway,
        storage=tools.storage,
        copiers=tools.copiers,
        instance=given.config.instance,
        configured=given.config.templates.keys(),
        recreated_because=tools.table.recreated_because,
        server_problem=lambda: given.sentinel.problem,
        short_of=given.resources.current,
        now=NOW,
    )


def _make_methods(
    given: Prerequisites, pools: Pools, templates: Templates, board: StatusBoard
) -> Methods:
    config = given.config
    return Methods(
        leases=LeaseMethods(
            pools.dispatcher,
            templates.builds,
            acquire_timeout=config.pool.acquire_timeout,
            max_leases=config.access.max_leases_per_client,
        ),
        templates=templates.methods,
        admin=AdminMethods(
            pools.dispatcher,
            pools.drains,
            instance=config.instance,
            programs=str(given.server.psql.parent) if given.is_embedded else "",
        ),
        board=board,
        max_pending=config.access.max_pending_per_client,
    )
