"""Compares what the pools believe with what is on the server: people drop and rename databases.

Not a loop of its own: the server monitor gets the list of databases as its pulse, and passes it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.core.clone import State
from clonepool.core.events import ClonesLost

if TYPE_CHECKING:
    from clonepool.core.fleet import Fleet
    from clonepool.observe.metrics import Metrics
    from clonepool.service.event_handler import EventHandler
    from clonepool.service.jobs.base import TemplateLosses
    from clonepool.service.template_table import TemplateTable

log = structlog.get_logger()

_THERE = (State.READY, State.LEASED, State.KEPT)
"""States in which the database of a clone exists for as long as the state lasts."""


class Reconciler:
    """Finds the clones and generations that are gone.

    Args:
        events: is told of lost clones.
        fleet: the pools.
        losses: is told of lost generations.
        metrics: count lost clones.
        templates: the current generations.
    """

    def __init__(
        self,
        *,
        events: EventHandler,
        fleet: Fleet,
        losses: TemplateLosses,
        metrics: Metrics,
        templates: TemplateTable,
    ) -> None:
        self._events = events
        self._fleet = fleet
        self._losses = losses
        self._metrics = metrics
        self._templates = templates
        self._reported: set[str] = set()

    def expected(self) -> dict[str, set[str]]:
        """Return the clones that must exist now, by template."""
        pools = self._fleet.pools
        return {template: pool.inventory.names(*_THERE) for template, pool in pools.items()}

    def compare(self, expected: dict[str, set[str]], there: set[str]) -> None:
        """Give up what is gone, except what the daemon itself has dropped since.

        Args:
            expected: what `expected` returned before the server was asked.
            there: the names of the instance's databases on the server.
        """
        for template, names in expected.items():
            pool = self._fleet.pools.get(template)
            if pool is None:
                continue  # it was given up since
            self._compare_clones(template, (names - there) & pool.inventory.names(*_THERE))
            generation = self._templates.generations.get(template)
            if generation is not None and generation.database not in there:
                self._losses.lost(template)
        self._reported &= set().union(*self.expected().values())

    def _compare_clones(self, template: str, gone: set[str]) -> None:
        for name in sorted(gone - self._reported):
            log.warning("clone.lost", clone=name, template=template)
            self._metrics.clones_lost.labels(self._metrics.label(template)).inc()
        self._reported |= gone
        if gone:
            self._events.handle(ClonesLost(template, tuple(sorted(gone))))
