"""Generations that are no longer current: kept for a while, so that going back costs nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool.postgres.templates.generations import built_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.config import TemplateSection
    from clonepool.postgres.databases import Database
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.postgres.templates.generations import Generations
    from clonepool.postgres.templates.recipe import Generation
    from clonepool.service.failures import Failures
    from clonepool.service.templates.interfaces import TemplateTable

log = structlog.get_logger()

STALE_KEPT = "template.stale_kept"


class FormerGenerations:
    """Retires generations of the configured templates, and drops those that are too many or old.

    Args:
        failures: logs and counts what fails.
        generations: on the server.
        rewinder: forgets what it needs to rewind clones of a generation.
        sections: the configured templates.
        table: the current generations.
    """

    def __init__(
        self,
        *,
        failures: Failures,
        generations: Generations,
        rewinder: Rewinder,
        sections: Mapping[str, TemplateSection],
        table: TemplateTable,
    ) -> None:
        self._failures = failures
        self._generations = generations
        self._rewinder = rewinder
        self._sections = sections
        self._table = table
        self._lock = anyio.Lock()
        """Held so that no generation is dropped while it is being retired."""

    async def retire(self, generation: Generation) -> None:
        """Forget what is needed only to rewind clones of a generation; a failure is logged."""
        async with self._lock:
            try:
                await self._rewinder.generation_retired(generation.database)
            except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
                self._failures.begin(STALE_KEPT, "", error)

    async def tidy(self) -> None:
        """Drop generations that are too many or too old; a failure is logged."""
        async with self._lock:
            try:
                await self._drop_surplus()
            except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
                self._failures.begin(STALE_KEPT, "", error)

    async def _drop_surplus(self) -> None:
        current = {generation.database for generation in self._table.generations.values()}
        configured = set(self._table.generations) & set(self._sections)
        found = [
            each for each in await self._generations.of(configured) if each.name not in current
        ]
        keep = current.union(*(self._kept(template, found) for template in configured))
        for name in await self._generations.drop_others(configured, keep):
            log.info("template.stale_dropped", database=name)

    def _kept(self, template: str, found: list[Database]) -> set[str]:
        """Return the generations to which a template may go back; `found` has the newest first."""
        section = self._sections[template]
        since = time.time() - section.keep_generations_for
        former = [each for each in found if each.identity.template == template]
        return {each.name for each in former[: section.keep_generations] if built_at(each) >= since}
