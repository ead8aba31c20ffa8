"""Drops clones, behind everything else; `core.drop_schedule` decides when a drop may begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.core.backoff import Backoff
from clonepool.core.events import CloneDropped
from clonepool.errors import ClonepoolError
from clonepool.postgres import databases
from clonepool.service.jobs.base import PersistentJob
from clonepool.service.limiter import Rank

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from clonepool.core.decisions import Drop
    from clonepool.core.drop_schedule import DropSchedule
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.service.credentials import Credentials
    from clonepool.service.jobs.base import JobTools
    from clonepool.service.limiter import PriorityLimiter
    from clonepool.service.state_changes import StateChanges

DROP_FAILED, VACUUM_FAILED = "clone.drop_failed", "server.vacuum_failed"
DROPS_AT_A_TIME = 2
PATIENCE_SECONDS = 1.0
"""Seconds that a drop may hold one of the places that creating clones needs too."""
VACUUM_EVERY = 200
"""Drops, after which the shared catalogs of the embedded server are vacuumed."""
_ENDING_SECONDS = 0.5
_FIRST_RECHECK_SECONDS, _LONGEST_RECHECK_SECONDS = 0.01, 1.0
"""Seconds after which the first drop asks again though the pools have not changed: time passes."""


class _StillInUseError(ClonepoolError):
    """A session on the clone does not end."""

    code = "clone_in_use"


class DropJob(PersistentJob["Drop"]):
    """Carries out `Drop`, again and again until the database is gone.

    Args:
        tools: of every job.
        changed: notified when the pools change.
        credentials: remove the clone's login.
        limiter: for CREATE and DROP DATABASE.
        rewinder: forgets the clone.
        schedule: decides when a drop may begin.
        vacuums: whether the shared catalogs are vacuumed now and then: on the daemon's own server.
    """

    failed_event = DROP_FAILED

    def __init__(
        self,
        tools: JobTools,
        *,
        changed: StateChanges,
        credentials: Credentials,
        limiter: PriorityLimiter,
        rewinder: Rewinder,
        schedule: DropSchedule,
        vacuums: bool,
    ) -> None:
        super().__init__(tools)
        self._changed = changed
        self._credentials = credentials
        self._limiter = limiter
        self._places = anyio.Semaphore(DROPS_AT_A_TIME)
        self._rewinder = rewinder
        self._schedule = schedule
        self._vacuums = vacuums
        self._drops = 0

    def target(self, decision: Drop) -> Drop:
        """Return the clone to be removed."""
        return decision

    async def run(self, decision: Drop) -> None:
        """Remove the database, then tidy the server if it is time for that."""
        await super().run(decision)
        self._drops += 1
        if self._vacuums and self._drops % VACUUM_EVERY == 0:
            with self._failures.attempt(VACUUM_FAILED):
                await databases.vacuum_shared(self._gateway)

    async def run_once(self, decision: Drop) -> CloneDropped:
        """Try to remove the database when it is its turn.

        Sessions are ended before a place for DDL is taken, so that a hung one blocks no other job.
        """
        template, clone = decision.template, decision.clone
        self._rewinder.forget(clone)
        await self._wait_for_turn(template, clone)
        done = False
        try:
            await self._drop(template, clone)
            done = True
        finally:
            self._schedule.ended(clone, self._now(), done=done)
            self._changed.notify()
        return CloneDropped(template, clone)

    async def _drop(self, template: str, clone: str) -> None:
        await self._end_sessions(clone)
        async with self._places, self._place(template):
            began = self._now()
            await databases.drop(self._gateway, clone)
            await self._credentials.remove(clone)
        seconds = self._now() - began
        self._schedule.took(seconds)
        self._metrics.of[template].drop_seconds.observe(seconds)

    async def _wait_for_turn(self, template: str, clone: str) -> None:
        """Return when the drop may begin, and is counted as begun.

        The pools notify of all that lets a drop begin, but for time; and that lets only the first
        begin, so the others set no timers.
        """
        schedule = self._schedule

        def may_begin() -> bool:
            return schedule.may_begin(template, clone, self._now())

        recheck = Backoff(_FIRST_RECHECK_SECONDS, _LONGEST_RECHECK_SECONDS)
        schedule.ask(clone, self._now())
        try:
            while not may_begin():
                if schedule.is_first(clone):
                    with anyio.move_on_after(recheck.next_pause()):
                        await self._changed.wait_for(may_begin)
                else:
                    await self._changed.wait_for(lambda: schedule.is_first(clone) or may_begin())
        except BaseException:
            schedule.withdraw(clone)
            raise
        schedule.began(clone)
        self._changed.notify()  # another drop is the first now

    def _place(self, template: str) -> AbstractAsyncContextManager[None]:
        """Take a place for DDL; a drop that hangs gives it back early."""
        return self._limiter.place(lambda: self._rank(template), seconds=PATIENCE_SECONDS)

    def _rank(self, template: str) -> Rank:
        is_urgent = self._schedule.is_urgent(template, self._now())
        return Rank.WAITED_FOR if is_urgent else Rank.LAST

    async def _end_sessions(self, clone: str) -> None:
        if not await databases.end_sessions(
            self._gateway, clone, seconds=_ENDING_SECONDS, clients_only=True
        ):
            raise _StillInUseError(f"a session on {clone} does not end")
