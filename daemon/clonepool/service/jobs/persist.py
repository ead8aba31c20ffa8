"""Writes down the leases that must outlive the daemon: those with a TTL, and their renewals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.events import LeaseNotRecorded, LeaseRecorded
from clonepool.postgres import databases
from clonepool.service.jobs.base import Job

if TYPE_CHECKING:
    from clonepool.core.decisions import Lease, Record
    from clonepool.service.comment_locks import CommentLocks
    from clonepool.service.credentials import Credentials
    from clonepool.service.failures import Attempt
    from clonepool.service.jobs.base import JobTools

RECORD_FAILED = "lease.record_failed"


class PersistJob(Job["Record"]):
    """Carries out `Record`.

    Args:
        tools: of every job.
        comment_locks: keep the comments in the order of the decisions.
        credentials: tell what the password of the clone's login was derived from.
    """

    failed_event = RECORD_FAILED

    def __init__(
        self,
        tools: JobTools,
        *,
        comment_locks: CommentLocks,
        credentials: Credentials,
    ) -> None:
        super().__init__(tools)
        self._comment_locks = comment_locks
        self._credentials = credentials

    def target(self, decision: Record) -> Lease:
        """Return the clone of the lease."""
        return decision.lease

    async def run_once(self, decision: Record) -> LeaseRecorded:
        """Write the lease into the comment of its clone."""
        lease = decision.lease
        occasion = self._credentials.occasion(lease.clone)
        comment = self._comments.leased(lease, self._now(), occasion)
        async with self._comment_locks.hold(lease.clone):
            await databases.annotate(self._gateway, lease.clone, comment)
        return LeaseRecorded(lease.template, decision.waiter)

    def failed(self, decision: Record, attempt: Attempt) -> LeaseNotRecorded:
        """Refuse the waiter: the lease could not be recorded."""
        return LeaseNotRecorded(decision.lease.template, decision.waiter, attempt.error)
