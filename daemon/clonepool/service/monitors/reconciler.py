"""Compares what the pools believe with what is on the server: people drop and rename databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.core.clone import State

if TYPE_CHECKING:
    from clonepool.service.context import Context

log = structlog.get_logger()

_THERE = (State.READY, State.LEASED, State.KEPT)
"""States in which a clone's database exists, for as long as the state lasts."""


class Reconciler:
    """Finds the clones and generations that are gone."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reported: set[str] = set()

    def expected(self) -> dict[str, set[str]]:
        """Return the clones that must be there now, by template."""
        pools = self._context.fleet.pools
        return {template: pool.inventory.names(*_THERE) for template, pool in pools.items()}

    def compare(self, expected: dict[str, set[str]], there: set[str]) -> None:
        """Give up what is gone; what was only just dropped by us is no concern.

        Args:
            expected: what `expected` said before the server was asked.
            there: names of our databases, as the server told.
        """
        context = self._context
        for template, names in expected.items():
            pool = context.fleet.pools.get(template)
            if pool is None:
                continue  # it was given up meanwhile
            gone = (names - there) & pool.inventory.names(*_THERE)
            for name in sorted(gone - self._reported):
                log.warning("clone.lost", clone=name, template=template)
                context.metrics.clones_lost.labels(context.metrics.label(template)).inc()
            self._reported |= gone
            if gone:
                context.carry_out(context.fleet.lost(template, gone, context.now()))
            generation = context.generations.get(template)
            if generation is not None and generation.database not in there:
                context.rebuild(template)
        self._reported &= set().union(*self.expected().values())
