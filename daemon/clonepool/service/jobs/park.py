"""Seals ready clones when the daemon stops, for the next daemon to adopt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.core.events import CloneParked, CloneUnusable
from clonepool.postgres.clones.lifecycle import park
from clonepool.service.jobs.base import Job

if TYPE_CHECKING:
    from clonepool.core.decisions import Park
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.service.failures import Attempt
    from clonepool.service.jobs.base import JobTools

log = structlog.get_logger()

PARK_FAILED = "clone.park_failed"


class ParkJob(Job["Park"]):
    """Carries out `Park`.

    Args:
        tools: of every job.
        rewinder: knows whether the next daemon could see that the clone is clean.
    """

    failed_event = PARK_FAILED

    def __init__(self, tools: JobTools, *, rewinder: Rewinder) -> None:
        super().__init__(tools)
        self._rewinder = rewinder

    def target(self, decision: Park) -> Park:
        """Return the ready clone."""
        return decision

    async def run_once(self, decision: Park) -> CloneParked | CloneUnusable:
        """Seal the clone, unless the next daemon could not prove that it is clean."""
        template, clone = decision.template, decision.clone
        provable = self._rewinder.can_be_adopted(clone)
        self._rewinder.forget(clone)
        if decision.used and not provable:
            return CloneUnusable(template, clone)
        generation = self._templates.generations[template].short
        comment = self._comments.parked(template, generation, clone, used=decision.used)
        await park(self._gateway, clone, comment)
        log.debug("clone.parked", clone=clone)
        return CloneParked(template, clone)

    def failed(self, decision: Park, attempt: Attempt) -> CloneUnusable:
        """Request a drop of the clone."""
        del attempt
        return CloneUnusable(decision.template, decision.clone)
