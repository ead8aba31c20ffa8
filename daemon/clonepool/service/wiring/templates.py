"""Makes the parts that build templates and let clients make them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clonepool.postgres.templates.builder import Builder
from clonepool.postgres.templates.client_generation import ClientGenerations
from clonepool.postgres.templates.file_digests import Digests
from clonepool.service.api.builds import Builds
from clonepool.service.api.templates import TemplateMethods
from clonepool.service.templates.builder import TemplateBuilder
from clonepool.service.templates.client_templates import ClientTemplates
from clonepool.service.templates.fills import FillCoordinator
from clonepool.service.templates.registry import Registry
from clonepool.service.templates.snapshots import Snapshots
from clonepool.service.templates.sources import TemplateSources
from clonepool.service.wiring.parts import NOW, Pools, Prerequisites, Templates, Tools

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from clonepool.service.templates.losses import GenerationLosses


def make_templates(
    given: Prerequisites, tools: Tools, pools: Pools, losses: GenerationLosses, tasks: TaskGroup
) -> Templates:
    """Make everything about templates.

    Args:
        given: what exists already.
        tools: to work with.
        pools: are told whether each template can be leased.
        losses: of generations, reported by jobs and monitors.
        tasks: where work that takes time is done.
    """
    server_builder = Builder(
        given.server.gateway,
        given.namer,
        given.capabilities,
        tools.roles,
        given.server.clients,
        given.server.psql,
        given.serials.next,
        Digests(given.server.state / "digests.json"),
    )
    builder = _make_builder(given, tools, pools, server_builder)
    from_clients = _make_client_templates(given, tools, pools, server_builder, tasks)
    generations = ClientGenerations(
        given.server.gateway,
        given.capabilities,
        server_builder.generations,
        server_builder.steps,
        server_builder.next_serial,
    )
    builds = Builds(builder, tasks)
    methods = _make_template_methods(given, tools, pools, from_clients, generations, builds, tasks)
    return Templates(builder, builds, from_clients, losses, methods)


def _make_builder(
    given: Prerequisites, tools: Tools, pools: Pools, server_builder: Builder
) -> TemplateBuilder:
    config = given.config
    return TemplateBuilder(
        builder=server_builder,
        credentials=tools.credentials,
        events=pools.dispatcher,
        failures=tools.failures,
        fleet=tools.fleet,
        gateway=given.server.gateway,
        metrics=given.metrics,
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
    given: Prerequisites, tools: Tools, pools: Pools, server_builder: Builder, tasks: TaskGroup
) -> ClientTemplates:
    config = given.config
    return ClientTemplates(
        capabilities=given.capabilities,
        changed=pools.changed,
        configured=config.templates,
        credentials=tools.credentials,
        events=pools.dispatcher,
        failures=tools.failures,
        fleet=tools.fleet,
        gateway=given.server.gateway,
        generations=server_builder.generations,
        now=NOW,
        options=config.client_templates,
        registry=Registry(
            capabilities=given.capabilities,
            copiers=tools.copiers,
            events=pools.dispatcher,
            fleet=tools.fleet,
            metrics=given.metrics,
            table=tools.table,
        ),
        rewinder=tools.rewinder,
        server_changes=tools.server_changes,
        table=tools.table,
        tasks=tasks,
    )


def _make_template_methods(
    given: Prerequisites,
    tools: Tools,
    pools: Pools,
    from_clients: ClientTemplates,
    generations: ClientGenerations,
    builds: Builds,
    tasks: TaskGroup,
) -> TemplateMethods:
    config = given.config
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
        capabilities=given.capabilities,
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
        configured=config.templates,
        fleet=tools.fleet,
        fills=fills,
        now=NOW,
        snapshots=snapshots,
        tasks=tasks,
        templates=from_clients,
    )
