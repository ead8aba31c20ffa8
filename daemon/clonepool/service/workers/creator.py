"""Makes clones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.postgres.clones import make_clone

if TYPE_CHECKING:
    from clonepool.core.decisions import CreateClone
    from clonepool.service.workers.context import Context

log = structlog.get_logger()

URGENT, REFILL = 0, 1


class Creator:
    """Carries out `CreateClone`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self, decision: CreateClone) -> None:
        """Make the clone when it is its turn, and tell the pool how it went."""
        context, pool = self._context, self._context.fleet.pools[decision.template]
        async with context.limiter.place(lambda: URGENT if pool.waiting else REFILL):
            began = context.now()
            try:
                await self._run_once(decision)
            except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
                told = context.count_failure(error)
                log.warning("clone.create_failed", clone=decision.clone, error=told.sentence())
                context.carry_out(pool.create_failed(decision.clone, told, context.now()))
                return
        seconds = context.now() - began
        context.metrics.of[decision.template].create_seconds.observe(seconds)
        log.debug("clone.created", clone=decision.clone, duration_seconds=round(seconds, 4))
        context.carry_out(pool.created(decision.clone, context.now()))

    async def _run_once(self, decision: CreateClone) -> None:
        context = self._context
        generation = context.generations[decision.template]
        await make_clone(
            context.gateway,
            decision.clone,
            generation.database,
            generation.contents,
            options=context.copy_options,
            facts={
                "kind": "clone",
                "instance": context.config.instance,
                "template": decision.template,
                "generation": decision.generation,
            },
            seconds=context.config.templates[decision.template].create_timeout,
        )
