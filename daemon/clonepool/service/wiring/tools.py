"""Makes what jobs, monitors and the builder of templates work with."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from clonepool.core.recording import Beginning
from clonepool.postgres import shared_objects
from clonepool.postgres.clones.copier import Copiers
from clonepool.postgres.clones.copy_strategy import candidates
from clonepool.postgres.rewind import database_facts
from clonepool.postgres.rewind.rewinder import Rewinder
from clonepool.postgres.roles import Roles
from clonepool.service.clone_comment import Comments
from clonepool.service.credentials import Credentials
from clonepool.service.failures import Failures
from clonepool.service.jobs.reference import ReferenceJob
from clonepool.service.limiter import PriorityLimiter
from clonepool.service.recorder import Recorder
from clonepool.service.server import kept_connections
from clonepool.service.server_changes import ServerChanges
from clonepool.service.state_files import begin_run, load_secret
from clonepool.service.storage import StorageGuard
from clonepool.service.template_table import TemplateTable
from clonepool.service.templates.registry import limits_of
from clonepool.service.wiring.parts import NOW, Ground, Tools

if TYPE_CHECKING:
    from clonepool.core.fleet import Fleet


def make_tools(ground: Ground) -> Tools:
    """Make what the other parts work with."""
    config, capabilities, server = ground.config, ground.capabilities, ground.server
    secret = load_secret(server.state / "secret")
    roles = Roles(server.gateway, capabilities, embedded=ground.is_embedded)
    beginning = _beginning(ground)
    fleet = beginning.fleet(ground.serials)
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
        recorder=_make_recorder(ground, beginning),
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


def _beginning(ground: Ground) -> Beginning:
    """Return how the fleet begins, which a recording tells first."""
    return Beginning(
        clonepool=version("clonepool"),
        instance=ground.namer.instance,
        system_identifier=ground.capabilities.system_identifier,
        max_clones=ground.config.pool.max_clones,
        limits={
            name: limits_of(section, rewinds=ground.capabilities.rewinds)
            for name, section in ground.config.templates.items()
        },
    )


def _make_recorder(ground: Ground, beginning: Beginning) -> Recorder | None:
    if ground.recording is None:
        return None
    return Recorder(ground.recording, beginning, ground.serials)


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
