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
from clonepool.service.storage import StorageBudget
from clonepool.service.template_table import TemplateTable
from clonepool.service.templates.registry import limits_of
from clonepool.service.wiring.parts import NOW, Prerequisites, Tools

if TYPE_CHECKING:
    from clonepool.core.fleet import Fleet


def make_tools(given: Prerequisites) -> Tools:
    """Make what the other parts work with."""
    config, capabilities, server = given.config, given.capabilities, given.server
    secret = load_secret(server.state / "secret")
    roles = Roles(server.gateway, capabilities, embedded=given.is_embedded)
    beginning = _beginning(given)
    fleet = beginning.fleet(given.serials)
    table = TemplateTable(config.templates, capabilities, fleet, embedded=given.is_embedded)
    comments = Comments(given.namer, secret, begin_run(server.state / "run"))
    copiers = _make_copiers(given)
    limiter = PriorityLimiter(config.pool.ddl_concurrency)
    storage = _make_storage(given)
    references = ReferenceJob(
        comments=comments,
        copiers=copiers,
        limiter=limiter,
        namer=given.namer,
        serials=given.serials,
        storage=storage,
        templates=table,
    )
    return Tools(
        comments=comments,
        copiers=copiers,
        credentials=Credentials(
            roles, server.clients, capabilities, secret, embedded=given.is_embedded
        ),
        failures=Failures(given.metrics, given.resources),
        fleet=fleet,
        limiter=limiter,
        recorder=_make_recorder(given, beginning),
        rewinder=_make_rewinder(given, fleet, references),
        roles=roles,
        server_changes=ServerChanges(
            server.gateway,
            capabilities.major,
            fleet,
            given.metrics,
            server.state / "server.json",
            takes_back=given.is_embedded,
        ),
        storage=storage,
        table=table,
    )


def _beginning(given: Prerequisites) -> Beginning:
    """Return how the fleet begins, which a recording tells first."""
    return Beginning(
        clonepool=version("clonepool"),
        instance=given.namer.instance,
        system_identifier=given.capabilities.system_identifier,
        max_clones=given.config.pool.max_clones,
        limits={
            name: limits_of(section, rewinds=given.capabilities.rewinds)
            for name, section in given.config.templates.items()
        },
    )


def _make_recorder(given: Prerequisites, beginning: Beginning) -> Recorder | None:
    if given.recording is None:
        return None
    return Recorder(given.recording, beginning, given.serials)


def _make_copiers(given: Prerequisites) -> Copiers:
    by_clients = given.config.client_templates
    if by_clients.allow:  # its copy strategy must be possible before the first one is made
        candidates(by_clients.copy, given.capabilities, throwaway=given.is_embedded)
    return Copiers(
        given.server.gateway,
        given.capabilities,
        {name: section.copy for name, section in given.config.templates.items()},
        NOW,
        throwaway=given.is_embedded,
    )


def _make_storage(given: Prerequisites) -> StorageBudget:
    storage = given.server.embedded.storage if given.server.embedded else None
    return StorageBudget(
        given.config,
        storage.root if storage else None,
        in_memory=bool(storage and storage.in_memory),
    )


def _make_rewinder(given: Prerequisites, fleet: Fleet, references: ReferenceJob) -> Rewinder:
    capabilities = given.capabilities
    shared = database_facts.NOTHING_SHARED
    if given.is_embedded:
        shared = shared_objects.digest_sql(capabilities.major)
    return Rewinder(
        given.server.gateway,
        references.make,
        capabilities.major,
        kept_connections(capabilities.max_connections),
        shared,
        lambda: fleet.is_idle,
    )
