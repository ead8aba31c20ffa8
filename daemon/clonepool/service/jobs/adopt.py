"""Takes over clones that an earlier daemon parked: locked, checked, and opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.core.events import CloneAdopted, CloneUnusable
from clonepool.postgres.clones.lifecycle import IncompleteCloneError, adopt
from clonepool.postgres.rewind.errors import PinError
from clonepool.postgres.rewind.verify import VerificationError
from clonepool.service.jobs.base import Job
from clonepool.service.limiter import Rank

if TYPE_CHECKING:
    from clonepool.core.decisions import Adopt
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.service.credentials import Credentials
    from clonepool.service.failures import Attempt
    from clonepool.service.jobs.base import JobTools, TemplateLosses
    from clonepool.service.limiter import PriorityLimiter

log = structlog.get_logger()

ADOPT_FAILED = "clone.adopt_failed"


class AdoptJob(Job["Adopt"]):
    """Carries out `Adopt`.

    Args:
        tools: of every job.
        limiter: for CREATE and DROP DATABASE; a check takes as much of the server as a copy.
        credentials: give the clone's login a new password.
        rewinder: compares the clone with its generation.
        losses: is told when the generation is damaged.
    """

    failed_event = ADOPT_FAILED

    def __init__(
        self,
        tools: JobTools,
        *,
        limiter: PriorityLimiter,
        credentials: Credentials,
        rewinder: Rewinder,
        losses: TemplateLosses,
    ) -> None:
        super().__init__(tools)
        self._limiter = limiter
        self._credentials = credentials
        self._rewinder = rewinder
        self._losses = losses

    def target(self, decision: Adopt) -> Adopt:
        """Return the parked clone."""
        return decision

    async def run_once(self, decision: Adopt) -> CloneAdopted | CloneUnusable:
        """Check and open the clone when it is its turn."""
        template = decision.template
        try:
            if self._templates.can_rewind(template):
                # It makes a copy in its turn, and so comes before there is a place for this.
                await self._rewinder.ensure_baseline(self._templates.generations[template].database)
            async with self._limiter.place(lambda: Rank.WAITED_FOR):
                await self._adopt(decision)
        except (IncompleteCloneError, VerificationError) as error:
            if not decision.used:
                raise
            # A rewound clone has other files than its generation, and may be taken for incomplete.
            log.info("clone.not_adopted", clone=decision.clone, reason=str(error))
            return CloneUnusable(template, decision.clone)
        log.info("clone.adopted", clone=decision.clone)
        return CloneAdopted(template, decision.clone)

    def failed(self, decision: Adopt, attempt: Attempt) -> CloneUnusable:
        """Have a new clone made, and the generation too if it is damaged."""
        if isinstance(attempt.cause, PinError):
            self._losses.damaged(decision.template)
        return CloneUnusable(decision.template, decision.clone)

    async def _adopt(self, decision: Adopt) -> None:
        section = self._templates.sections[decision.template]
        current = self._templates.generations[decision.template]
        # Before the clone is opened: its former holder must stay locked out.
        await self._credentials.renew(decision.clone, section)
        await adopt(
            self._gateway,
            decision.clone,
            current.contents,
            self._comments.plain(decision.template, decision.generation),
            section.create_timeout,
        )
        if self._templates.can_rewind(decision.template):
            await self._rewinder.track_adopted(decision.clone, current.database)
