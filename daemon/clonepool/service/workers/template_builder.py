"""Finds or builds each template's generation at the start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool.errors import ServerUnavailableError
from clonepool.postgres.builder import Recipe

if TYPE_CHECKING:
    from clonepool.postgres.builder import Builder
    from clonepool.service.workers.context import Context

log = structlog.get_logger()

_PAUSE_SECONDS = 1.0


class TemplateBuilder:
    """Brings the templates up, one after another, and tidies away what they replace."""

    def __init__(self, context: Context, builder: Builder) -> None:
        self._context = context
        self._builder = builder

    async def run(self) -> None:
        """Build every template; a server that is away is waited for."""
        templates = self._context.config.templates
        for template in templates:
            while not await self._run_once(template):
                await anyio.sleep(_PAUSE_SECONDS)
        current = {generation.database for generation in self._context.generations.values()}
        try:
            for name in await self._builder.drop_stale(current, set(self._context.generations)):
                log.info("template.stale_dropped", database=name)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            log.warning("template.stale_kept", error=str(self._context.count_failure(error)))

    async def _run_once(self, template: str) -> bool:
        context, section = self._context, self._context.config.templates[template]
        pool, began = context.fleet.pools[template], context.now()
        recipe = Recipe(
            template, section.sql, Path(context.config.directory), section.build_timeout
        )
        try:
            generation = await self._builder.ensure(recipe)
        except ServerUnavailableError as error:
            context.count_failure(error)
            log.warning("template.build_postponed", template=template, error=error.sentence())
            return False
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            told = context.count_failure(error)
            log.error("template.build_failed", template=template, error=told.sentence())  # noqa: TRY400 - the error's own words are enough
            context.carry_out(pool.template_failed(told))
            return True
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
        context.carry_out(pool.template_ready(generation.short, context.now()))
        return True
