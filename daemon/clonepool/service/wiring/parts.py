"""The structs that hold the parts of the daemon, in the order in which they are made."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from clonepool.config import Config
    from clonepool.core.fleet import Fleet
    from clonepool.core.naming import Namer, Serials
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.clones.copier import Copiers
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.postgres.roles import Roles
    from clonepool.service.api.builds import Builds
    from clonepool.service.api.listener import Listener
    from clonepool.service.api.methods import Methods
    from clonepool.service.api.progress import Drains
    from clonepool.service.api.status import StatusBoard
    from clonepool.service.api.templates import TemplateMethods
    from clonepool.service.clone_comment import Comments
    from clonepool.service.credentials import Credentials
    from clonepool.service.dispatcher import Dispatcher
    from clonepool.service.executor import Executor
    from clonepool.service.failures import Failures
    from clonepool.service.job_queue import JobQueue
    from clonepool.service.limiter import PriorityLimiter
    from clonepool.service.monitors.base import Monitor
    from clonepool.service.recorder import Recorder
    from clonepool.service.recovery import Recovery
    from clonepool.service.resources import Resources
    from clonepool.service.sentinel import Sentinel
    from clonepool.service.server import Server
    from clonepool.service.server_changes import ServerChanges
    from clonepool.service.state_changes import StateChanges
    from clonepool.service.storage import StorageBudget
    from clonepool.service.template_table import TemplateTable
    from clonepool.service.templates.builder import TemplateBuilder
    from clonepool.service.templates.client_templates import ClientTemplates
    from clonepool.service.templates.losses import GenerationLosses

NOW = time.monotonic


class Prerequisites(NamedTuple):
    """What exists before the parts are made.

    Attributes:
        capabilities: of the server.
        config: of the daemon.
        listener: has the socket.
        metrics: of the daemon.
        namer: makes and reads the names of databases.
        recording: the file that events are recorded in, if any.
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
    recording: Path | None
    resources: Resources
    sentinel: Sentinel
    serials: Serials
    server: Server
    server_changed: StateChanges

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
    recorder: Recorder | None
    rewinder: Rewinder
    roles: Roles
    server_changes: ServerChanges
    storage: StorageBudget
    table: TemplateTable


class Pools(NamedTuple):
    """The pools and the way to them.

    Attributes:
        changed: notified when the pools may have changed.
        dispatcher: the door for events.
        drains: the calls that wait for leases to end.
        queue: from the dispatcher to the executor.
    """

    changed: StateChanges
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
