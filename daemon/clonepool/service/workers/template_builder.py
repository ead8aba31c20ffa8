"""Finds or builds each template's generation: at the start, and when one is gone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool.core.pool import Phase
from clonepool.errors import ServerUnavailableError
from clonepool.postgres import databases
from clonepool.postgres.builder import Recipe
from clonepool.postgres.roles import derived_password

if TYPE_CHECKING:
    from clonepool.config import TemplateSection
    from clonepool.postgres.builder import Builder
    from clonepool.service.workers.context import Context

log = structlog.get_logger()

BUILD_POSTPONED, BUILD_FAILED = "template.build_postponed", "template.build_failed"
_PAUSE_SECONDS = 1.0


class TemplateBuilder:
    """Brings the templates up, one after another, and tidies away what they replace."""

    def __init__(self, context: Context, builder: Builder, secret: bytes) -> None:
        self._context = context
        self._secret = secret
        self._builder = builder
        self._gone: set[str] = set()
        self._damaged: set[str] = set()
        self._wanted = anyio.Event()

    async def run(self) -> None:
        """Build every template, then those whose generation is gone, for ever."""
        for template in self._context.config.templates:
            await self._insist(template)
        await self._tidy()
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            while self._gone:
                await self._insist(self._gone.pop())

    def rebuild(self, template: str) -> None:
        """Have a template built again: its generation is not on the server any more."""
        if self._give_up(template):
            log.warning("template.lost", template=template)

    def replace(self, template: str) -> None:
        """Have a template built again: clones of its generation are not what it was.

        So it is after a crash of the server, which empties unlogged tables.
        """
        if self._give_up(template):
            log.warning("template.damaged", template=template)
            self._damaged.add(template)

    def _give_up(self, template: str) -> bool:
        """Have a template built again, unless that is so already."""
        pool = self._context.fleet.pools[template]
        if pool.phase is not Phase.READY:
            return False
        pool.template_lost()
        self._gone.add(template)
        self._wanted.set()
        return True

    async def _insist(self, template: str) -> None:
        """Build one; a server that is away is waited for."""
        while not await self._run_once(template):
            await anyio.sleep(_PAUSE_SECONDS)

    async def _tidy(self) -> None:
        current = {generation.database for generation in self._context.generations.values()}
        try:
            for name in await self._builder.drop_stale(current, set(self._context.generations)):
                log.info("template.stale_dropped", database=name)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            self._context.troubles.begin("template.stale_kept", "", error)

    async def _run_once(self, template: str) -> bool:
        context, section = self._context, self._context.config.templates[template]
        pool, began = context.fleet.pools[template], context.now()
        recipe = Recipe(
            template,
            section.sql,
            Path(context.config.directory),
            section.build_timeout,
            section.role,
            rewindable=context.is_rewindable(template),
        )
        try:
            if template in self._damaged:
                damaged = context.generations[template].database
                await databases.drop(context.gateway, damaged, sealed=True)
                self._damaged.discard(template)
            await self._prepare_role(template, section)
            generation = await self._builder.ensure(recipe)
        except ServerUnavailableError as error:
            context.troubles.begin(BUILD_POSTPONED, template, error)
            return False
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            told = context.troubles.begin(BUILD_FAILED, template, error)
            context.carry_out(pool.template_failed(told))
            return True
        context.troubles.end(BUILD_POSTPONED, template)
        context.troubles.end(BUILD_FAILED, template)
        seconds = context.now() - began
        context.metrics.of[template].build_seconds.observe(seconds)
        log.info(
            "template.reused" if generation.reused else "template.built",
            template=template,
            database=generation.database,
            relations=generation.contents.relations,
            duration_seconds=round(seconds, 3),
        )
        context.generations[template] = generation
        if not generation.reused:
            context.rewinder.built(generation.database)
        context.carry_out(pool.template_ready(generation.short, context.now()))
        return True

    async def _prepare_role(self, template: str, section: TemplateSection) -> None:
        """Make the template's role, and remember as whom its leases log in."""
        context = self._context
        if not section.role:
            return
        derived = derived_password(self._secret, section.role)
        password = await context.roles.ensure(section.role, derived, section.password)
        if section.lease_roles:
            await context.roles.ensure_lease_group()
            context.logins.use_lease_roles(template)
        else:
            context.logins.use_role(template, section.role, password)
