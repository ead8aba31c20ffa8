"""Sets clones aside for inspection: reports leaks, ends sessions, writes the comment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.postgres import databases
from clonepool.service.jobs.leaks import ANSWER_SECONDS

if TYPE_CHECKING:
    from clonepool.core.decisions import Keep
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.service.comment_locks import CommentLocks
    from clonepool.service.jobs.base import JobTools
    from clonepool.service.jobs.leaks import Leaks, Reports

log = structlog.get_logger()

KEEP_FAILED = "clone.keep_failed"


class KeepJob:
    """Carries out `Keep`. The pool kept the clone when it decided so, and is told nothing more.

    Args:
        tools: of every job.
        comment_locks: keep the comments in the order of the decisions.
        leaks: finds what the lease left.
        reports: tells the client what that was, and whether the clone is kept.
        rewinder: forgets the clone, which will not be leased again.
    """

    def __init__(
        self,
        tools: JobTools,
        *,
        comment_locks: CommentLocks,
        leaks: Leaks,
        reports: Reports,
        rewinder: Rewinder,
    ) -> None:
        self._failures = tools.failures
        self._gateway = tools.gateway
        self._comments = tools.comments
        self._comment_locks = comment_locks
        self._leaks = leaks
        self._reports = reports
        self._rewinder = rewinder

    async def run(self, decision: Keep) -> None:
        """Name what the lease left, and write down that the clone is kept."""
        template, clone = decision.template, decision.clone
        leaked = None
        with self._failures.attempt(KEEP_FAILED, template, clone=clone) as attempt:
            leaked = await self._leaks.find(template, clone, None, sessions=True)
            self._rewinder.forget(clone)
            await self.run_once(decision)
        self._reports.lease_kept(clone, leaked, written_down=not attempt.failed)

    async def run_once(self, decision: Keep) -> None:
        """End the sessions, and write down that the clone is kept."""
        clone = decision.clone
        comment = self._comments.kept(
            decision.template, decision.generation, clone, decision.label, decision.seconds
        )
        await databases.end_sessions(self._gateway, clone, seconds=ANSWER_SECONDS)
        async with self._comment_locks.hold(clone):
            await databases.annotate(self._gateway, clone, comment)
        log.info("clone.kept", clone=clone, seconds=decision.seconds)
