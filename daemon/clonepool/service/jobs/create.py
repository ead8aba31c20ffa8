"""Makes clones: copied, checked, with a login, and measured for the rewind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.core.events import CloneCreated, CreateDeclined, CreateFailed
from clonepool.errors import StatementError
from clonepool.postgres.clones.copier import CloneSpec
from clonepool.postgres.clones.lifecycle import IncompleteCloneError
from clonepool.postgres.databases import INVALID_CATALOG_NAME
from clonepool.postgres.rewind.errors import PinError
from clonepool.service.jobs.base import Job
from clonepool.service.limiter import Rank
from clonepool.service.storage import NoRoomError

if TYPE_CHECKING:
    from clonepool.core.decisions import CreateClone
    from clonepool.core.fleet import Fleet
    from clonepool.postgres.clones.copier import Copiers
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.service.credentials import Credentials
    from clonepool.service.failures import Attempt
    from clonepool.service.jobs.base import JobTools, TemplateLosses
    from clonepool.service.limiter import PriorityLimiter
    from clonepool.service.storage import StorageBudget

log = structlog.get_logger()

CREATE_FAILED = "clone.create_failed"
MEASURE_FAILED = "clone.measure_failed"


class CreateJob(Job["CreateClone"]):
    """Carries out `CreateClone`.

    Args:
        tools: of every job.
        fleet: is asked whether tests wait for a clone.
        limiter: for CREATE and DROP DATABASE.
        storage: refuses a clone that there is no room for.
        copiers: copy by the quickest strategy.
        credentials: make the clone's login.
        rewinder: measures the clone.
        losses: is told when the generation is gone or damaged.
    """

    failed_event = CREATE_FAILED

    def __init__(
        self,
        tools: JobTools,
        *,
        fleet: Fleet,
        limiter: PriorityLimiter,
        storage: StorageBudget,
        copiers: Copiers,
        credentials: Credentials,
        rewinder: Rewinder,
        losses: TemplateLosses,
    ) -> None:
        super().__init__(tools)
        self._fleet = fleet
        self._limiter = limiter
        self._storage = storage
        self._copiers = copiers
        self._credentials = credentials
        self._rewinder = rewinder
        self._losses = losses

    def target(self, decision: CreateClone) -> CreateClone:
        """Return the clone to be made."""
        return decision

    async def run_once(self, decision: CreateClone) -> CloneCreated:
        """Make the clone when it is its turn."""
        template, templates = decision.template, self._templates
        async with self._limiter.place(lambda: self._rank(template)):
            began = self._now()
            size = templates.generations[template].size_bytes
            with self._storage.room(size, templates.storage_taken()):
                await self._make(decision)
        seconds = self._now() - began
        self._metrics.of[template].create_seconds.observe(seconds)
        self._rewinder.record_recreate(templates.generations[template].database, seconds)
        log.debug("clone.created", clone=decision.clone, duration_seconds=round(seconds, 4))
        return CloneCreated(template, decision.clone)

    def failed(self, decision: CreateClone, attempt: Attempt) -> CreateDeclined | CreateFailed:
        """Say whether anything of the clone may be there; have a generation repaired."""
        template, cause = decision.template, attempt.cause
        if isinstance(cause, NoRoomError):
            return CreateDeclined(template, decision.clone, attempt.error)
        if isinstance(cause, StatementError) and cause.sqlstate == INVALID_CATALOG_NAME:
            self._losses.lost(template)
        if isinstance(cause, IncompleteCloneError):
            self._losses.damaged(template)
        return CreateFailed(template, decision.clone, attempt.error)

    def _rank(self, template: str) -> Rank:
        return Rank.WAITED_FOR if self._fleet.pools[template].waiting else Rank.REFILL

    async def _make(self, decision: CreateClone) -> None:
        template = decision.template
        generation, section = (
            self._templates.generations[template],
            self._templates.sections[template],
        )
        wanted = CloneSpec(
            name=decision.clone,
            generation=generation.database,
            contents=generation.contents,
            facts=self._comments.plain(template, decision.generation),
            seconds=section.create_timeout,
            owner=generation.owner,
        )
        is_waited_for = self._rank(template) is Rank.WAITED_FOR
        await self._copiers.of(template).make(wanted, urgent=is_waited_for)
        await self._credentials.give(decision.clone, section)
        if self._templates.can_rewind(template):
            await self._measure(template, decision.clone)

    async def _measure(self, template: str, clone: str) -> None:
        """Measure the clone for its rewinds; where that fails it will be recreated instead."""
        generation = self._templates.generations[template].database
        try:
            await self._rewinder.track(clone, generation)
        except PinError as error:
            raise IncompleteCloneError(str(error)) from error
        except StatementError as error:
            self._failures.begin(MEASURE_FAILED, template, error, clone=clone)
        else:
            self._failures.end(MEASURE_FAILED, template)
