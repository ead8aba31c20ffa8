"""Makes clones, and adopts those that an earlier daemon parked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.errors import ResourceError, StatementError
from clonepool.postgres.clones.copier import CloneSpec
from clonepool.postgres.clones.lifecycle import IncompleteCloneError, adopt
from clonepool.postgres.databases import INVALID_CATALOG_NAME
from clonepool.postgres.rewind.errors import PinError
from clonepool.postgres.rewind.verify import VerificationError

if TYPE_CHECKING:
    from clonepool.core.decisions import Adopt, CreateClone
    from clonepool.service.context import Context

log = structlog.get_logger()

URGENT, REFILL = 0, 1
CREATE_FAILED, ADOPT_FAILED = "clone.create_failed", "clone.adopt_failed"
MEASURE_FAILED = "clone.measure_failed"


class CreateJob:
    """Carries out `CreateClone` and `Adopt`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self, decision: CreateClone) -> None:
        """Make the clone when it is its turn, and tell the pool how it went."""
        context, template = self._context, decision.template
        pool = context.fleet.pools[template]
        async with context.limiter.place(lambda: URGENT if pool.waiting else REFILL):
            began = context.now()
            size = context.generations[template].size_bytes
            try:
                context.storage.begin(size, context.reckoned_storage())
            except ResourceError as error:
                told = context.failures.begin(CREATE_FAILED, template, error)
                now = context.now()
                context.carry_out(
                    context.fleet.create_declined(template, decision.clone, told, now)
                )
                return
            try:
                await self._run_once(decision)
            except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
                self._failed(decision, error)
                return
            finally:
                context.storage.end(size)
        context.failures.end(CREATE_FAILED, template)
        seconds = context.now() - began
        context.metrics.of[template].create_seconds.observe(seconds)
        context.rewinder.record_recreate(context.generations[template].database, seconds)
        log.debug("clone.created", clone=decision.clone, duration_seconds=round(seconds, 4))
        context.carry_out(pool.created(decision.clone, context.now()))

    async def adopt(self, decision: Adopt) -> None:
        """Check and open the clone when it is its turn, and tell the pool how it went."""
        context, template = self._context, decision.template
        pool = context.fleet.pools[template]
        try:
            if context.can_rewind(template):
                # Copies in its turn, and so before there is a place for this.
                await context.rewinder.ensure_baseline(context.generations[template].database)
            async with context.limiter.place(lambda: URGENT):
                await self._adopt_once(decision)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            self._not_adopted(decision, error)
            context.carry_out(pool.unusable(decision.clone, context.now()))
            return
        log.info("clone.adopted", clone=decision.clone)
        context.carry_out(pool.adopted(decision.clone, context.now()))

    def _not_adopted(self, decision: Adopt, error: Exception) -> None:
        """Say why; that a rewound clone has other files than its generation is as it should be."""
        context, template = self._context, decision.template
        if isinstance(error, PinError):
            context.replace(template)
        if decision.used and isinstance(error, (IncompleteCloneError, VerificationError)):
            log.info("clone.not_adopted", clone=decision.clone, reason=str(error))
            return
        context.failures.begin(ADOPT_FAILED, template, error, clone=decision.clone)

    def _failed(self, decision: CreateClone, error: Exception) -> None:
        context, template = self._context, decision.template
        told = context.failures.begin(CREATE_FAILED, template, error, clone=decision.clone)
        if isinstance(error, StatementError) and error.sqlstate == INVALID_CATALOG_NAME:
            context.rebuild(template)
        if isinstance(error, IncompleteCloneError):
            context.replace(template)
        pool = context.fleet.pools[template]
        context.carry_out(pool.create_failed(decision.clone, told, context.now()))

    async def _run_once(self, decision: CreateClone) -> None:
        context = self._context
        generation = context.generations[decision.template]
        section = context.sections[decision.template]
        spec = CloneSpec(
            name=decision.clone,
            generation=generation.database,
            contents=generation.contents,
            facts=context.comments.plain(decision.template, decision.generation),
            seconds=section.create_timeout,
            owner=generation.owner,
        )
        waiting = context.fleet.pools[decision.template].waiting
        await context.copiers.of(decision.template).make(spec, urgent=waiting > 0)
        await context.credentials.give(decision.clone, section)
        await self._measure(decision.template, decision.clone)

    async def _measure(self, template: str, clone: str) -> None:
        """Take the measure that a rewind will need; without one the clone is recreated."""
        context = self._context
        if not context.can_rewind(template):
            return
        try:
            await context.rewinder.track(clone, context.generations[template].database)
        except PinError as error:
            raise IncompleteCloneError(str(error)) from error
        except StatementError as error:
            context.failures.begin(MEASURE_FAILED, template, error, clone=clone)
        else:
            context.failures.end(MEASURE_FAILED, template)

    async def _adopt_once(self, decision: Adopt) -> None:
        context = self._context
        section, current = (
            context.sections[decision.template],
            context.generations[decision.template],
        )
        # Before it is open to anybody: whoever had it in the days of an earlier daemon stays out.
        await context.credentials.renew(decision.clone, section)
        await adopt(
            context.gateway,
            decision.clone,
            current.contents,
            context.comments.plain(decision.template, decision.generation),
            section.create_timeout,
        )
        if context.can_rewind(decision.template):
            await context.rewinder.track_adopted(decision.clone, current.database)
