"""Recycles returned clones: the former holder locked out, leaks named, the clone rewound.

A clone that cannot be rewound, for whatever reason, is reported as unusable, and recreated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.core.events import CloneRewound, CloneSuspect, CloneUnusable
from clonepool.postgres import databases
from clonepool.postgres.rewind.errors import CannotRewindError, LockOutError
from clonepool.postgres.rewind.stray_sessions import ENDING_SECONDS, inspect_returned
from clonepool.postgres.rewind.verify import VerificationError
from clonepool.service.jobs.base import Job
from clonepool.service.jobs.keep import KEEP_FAILED
from clonepool.service.jobs.leaks import ANSWER_SECONDS, answer_within

if TYPE_CHECKING:
    from clonepool.core.decisions import Recycle
    from clonepool.postgres.rewind.inspection import Inspection
    from clonepool.postgres.rewind.rewinder import Rewinder, Rewound
    from clonepool.service.comment_locks import CommentLocks
    from clonepool.service.credentials import Credentials
    from clonepool.service.failures import Attempt
    from clonepool.service.jobs.base import JobTools
    from clonepool.service.jobs.leaks import Leaks, Reports

log = structlog.get_logger()

RECYCLE_FAILED, REWIND_FAILED = "clone.recycle_failed", "clone.rewind_failed"
LOCK_OUT_FAILED = "clone.lock_out_failed"


class RecycleJob(Job["Recycle"]):
    """Carries out `Recycle`.

    Args:
        tools: of every job.
        comment_locks: keep the comments in the order of the decisions.
        credentials: lock the former holder out.
        leaks: finds what the lease left.
        reports: tells clients what that was.
        rewinder: undoes what the lease changed.
    """

    failed_event = RECYCLE_FAILED

    def __init__(
        self,
        tools: JobTools,
        *,
        comment_locks: CommentLocks,
        credentials: Credentials,
        leaks: Leaks,
        reports: Reports,
        rewinder: Rewinder,
    ) -> None:
        super().__init__(tools)
        self._comment_locks = comment_locks
        self._credentials = credentials
        self._leaks = leaks
        self._reports = reports
        self._rewinder = rewinder

    def target(self, decision: Recycle) -> Recycle:
        """Return the returned clone."""
        return decision

    async def run_once(self, decision: Recycle) -> CloneRewound | CloneUnusable | CloneSuspect:
        """Name what the lease left, then rewind the clone or say that it cannot be."""
        template, clone = decision.template, decision.clone
        seen = await self._look_and_report(decision)
        try:
            rewound = await self._rewind(decision, seen)
        except VerificationError as error:
            return await self._keep_suspect(decision, error)
        metrics = self._metrics.of[template]
        if rewound is None:
            metrics.recreated.inc()
            return CloneUnusable(template, clone)
        log.debug("clone.rewound", clone=clone, tables=rewound.tables, sequences=rewound.sequences)
        metrics.rewound.inc()
        metrics.rewind_seconds.observe(rewound.seconds)
        return CloneRewound(template, clone, locked_out=not decision.same_holder)

    def failed(self, decision: Recycle, attempt: Attempt) -> CloneUnusable:
        """Request a new clone, and end the wait of a client for a report."""
        del attempt
        self._reports.lease_left(decision.clone, None)
        return CloneUnusable(decision.template, decision.clone)

    # What the lease left ------------------------------------------------------------------
    #
    # Steps whose failure does not end the pass are subjects of their own: a pass that ends well
    # must not count as their success.

    async def _look_and_report(self, decision: Recycle) -> Inspection | None:
        """Look at the clone and report what the lease left.

        Returns:
            What is known of the clone; None if that is not enough to rewind it.
        """
        template, clone = decision.template, decision.clone
        leaked, seen = None, None
        try:
            answers = True
            if self._templates.can_rewind(template):
                answers, seen = await self._look(decision)
            if answers:  # else the client would only wait for the server once more
                wanted = self._reports.is_awaited(clone)
                leaked = await self._leaks.find(template, clone, seen, sessions=wanted)
        finally:
            self._events.looked_at(clone)
        if decision.written_down:
            await self._write_end(decision)
        self._reports.lease_left(clone, leaked)
        return seen

    async def _look(self, decision: Recycle) -> tuple[bool, Inspection | None]:
        """Lock the former holder out, and look at the clone after that.

        A holder that is to have the clone again is let in again later.

        Returns:
            Whether the server answers; and what is known of the clone, as `_look_and_report`.
        """
        template, clone = decision.template, decision.clone
        section = self._templates.sections[template]
        try:
            with (
                self._failures.attempt(
                    RECYCLE_FAILED,
                    template,
                    subject="inspection",
                    expected=(LockOutError, CannotRewindError),
                    clone=clone,
                ),
                answer_within(ANSWER_SECONDS, clone),
            ):
                seen = await inspect_returned(
                    self._rewinder,
                    clone,
                    lock_out=self._credentials.lock_out(
                        clone, section, suspended=decision.same_holder
                    ),
                    with_shared=self._leaks.may_change_server(template),
                )
                self._failures.end(LOCK_OUT_FAILED, template)
                return True, seen
        except LockOutError as error:
            self._failures.begin(LOCK_OUT_FAILED, template, error, clone=clone)
            return True, None
        except CannotRewindError as reason:
            self._not_rewound(decision, reason)
            return True, None
        return False, None

    async def _write_end(self, decision: Recycle) -> None:
        """Write down that the lease is over: a later daemon must not take it for a living one."""
        template, clone = decision.template, decision.clone
        comment = self._comments.plain(template, decision.generation)
        with self._failures.attempt(RECYCLE_FAILED, template, subject="comment", clone=clone):
            async with self._comment_locks.hold(clone):
                await databases.annotate(self._gateway, clone, comment)

    # The rewind ---------------------------------------------------------------------------

    async def _rewind(self, decision: Recycle, seen: Inspection | None) -> Rewound | None:
        """Rewind the clone; return None if it is to be recreated.

        Raises:
            VerificationError: it was rewound wrongly.
        """
        is_alone = seen is not None and not seen.facts.sessions
        if not is_alone and not await self._end_sessions(decision):
            return None
        if seen is None or not self._templates.can_rewind(decision.template):
            return None
        return await self._try_rewind(decision, seen if is_alone else None)

    async def _end_sessions(self, decision: Recycle) -> bool:
        """End the sessions that the lease left; say whether nobody is connected any more."""
        with self._failures.attempt(
            RECYCLE_FAILED, decision.template, subject="sessions", clone=decision.clone
        ):
            return await databases.end_sessions(
                self._gateway,
                decision.clone,
                seconds=ENDING_SECONDS,
                clients_only=True,
                but=self._rewinder.backend_pid(decision.clone),
            )
        return False

    async def _try_rewind(self, decision: Recycle, seen: Inspection | None) -> Rewound | None:
        """Rewind the clone; return None if that cannot be done or fails.

        Args:
            decision: which clone.
            seen: the inspection, if there has been no session since.

        Raises:
            VerificationError: it was rewound wrongly.
        """
        template, clone = decision.template, decision.clone
        section = self._templates.sections[template]
        try:
            with self._failures.attempt(
                REWIND_FAILED,
                template,
                expected=(VerificationError, CannotRewindError),
                clone=clone,
            ):
                rewound = await self._rewinder.rewind(
                    clone,
                    self._comments.plain(template, decision.generation),
                    inspection=seen,
                    verify_every=section.verify_every,
                    stay_connected=self._templates.stays_connected(template),
                )
                if decision.same_holder:
                    await self._credentials.resume(clone, section)
                return rewound
        except CannotRewindError as reason:
            self._not_rewound(decision, reason)
        return None

    def _not_rewound(self, decision: Recycle, reason: CannotRewindError) -> None:
        log.debug("clone.not_rewound", clone=decision.clone, reason=str(reason))
        self._templates.recreated_because[decision.template] = str(reason)

    async def _keep_suspect(self, decision: Recycle, error: VerificationError) -> CloneSuspect:
        """Keep a clone that was rewound wrongly, and rewind no more clones of its template."""
        template, clone = decision.template, decision.clone
        log.error("clone.proof_failed", clone=clone, error=str(error))
        self._metrics.of[template].proofs_failed.inc()
        self._templates.rewind_disabled.add(template)
        seconds = self._templates.sections[template].keep_for
        comment = self._comments.kept(
            template, decision.generation, clone, str(error)[:200], seconds
        )
        with self._failures.attempt(KEEP_FAILED, template, clone=clone):
            await databases.annotate(self._gateway, clone, comment)
        return CloneSuspect(template, clone, seconds)
