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
from clonepool.service.wiring.parts import NOW, Ground, Pools, Templates, Tools

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from clonepool.service.templates.losses import GenerationLosses


def make_templates(
    ground: Ground, tools: Tools, pools: Pools, losses: GenerationLosses, tasks: TaskGroup
) -> Templates:
    """Make everything about templates.

    Args:
        ground: what is there.
        tools: to work with.
        pools: are told whether each template can be leased.
        losses: of generations, reported by jobs and monitors.
        tasks: where work that takes time is done.
    """
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
        configured=config.templates,
        fleet=tools.fleet,
        fills=fills,
        now=NOW,
        snapshots=snapshots,
        tasks=tasks,
        templates=from_clients,
    )
