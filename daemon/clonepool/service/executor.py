"""All hands: starts a task for each decision that takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clonepool.service.jobs.create import CreateJob
from clonepool.service.jobs.drop import DropJob
from clonepool.service.jobs.persist import PersistJob
from clonepool.service.jobs.recycle import RecycleJob
from clonepool.service.monitors.lock_watch import LockWatch
from clonepool.service.monitors.wal import WalMonitor
from clonepool.service.tasks import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from clonepool.core.decisions import Adopt, CreateClone, Drop, Keep, Park, Record, Recycle
    from clonepool.service.context import Context


class Executor:
    """The dispatcher's hands: how many work at once is the limiter's matter, not this one's."""

    def __init__(self, context: Context, tasks: TaskGroup) -> None:
        self._context = context
        self._tasks = tasks
        self._creator = CreateJob(context)
        self._recycler = RecycleJob(context)
        self._dropper = DropJob(context)
        self._scribe = PersistJob(context)
        self._courtesy = LockWatch(context)
        self._follower = WalMonitor(context)
        tasks.start_soon(self._courtesy.run)
        tasks.start_soon(self._follower.run)

    def stir(self) -> None:
        """Look whether what was put off may be done now."""
        self._dropper.stir()
        self._courtesy.stir()
        self._follower.stir()

    def create(self, decision: CreateClone) -> None:
        """Start to make a clone."""
        self._tasks.start_soon(guarded, self._creator.run, decision)

    def recycle(
        self, decision: Recycle, report: Callable[[list[dict[str, Any]] | None], None] | None
    ) -> None:
        """Start to recycle a clone.

        Where leases are known to change the server as a whole nobody is granted a clone until it is
        known what this one changed, and that is undone.
        """
        holds = decision.template in self._context.changes_server
        if holds:
            self._context.fleet.hold()
        self._tasks.start_soon(guarded, self._recycler.run, decision, report, holds)

    def keep(
        self, decision: Keep, report: Callable[[list[dict[str, Any]] | None, bool], None]
    ) -> None:
        """Start to set a clone aside."""
        self._tasks.start_soon(guarded, self._recycler.keep, decision, report)

    def record(self, decision: Record) -> None:
        """Start to write a lease down."""
        self._tasks.start_soon(guarded, self._scribe.record, decision)

    def park(self, decision: Park) -> None:
        """Start to leave a clone to the next daemon."""
        self._tasks.start_soon(guarded, self._scribe.park, decision)

    def adopt(self, decision: Adopt) -> None:
        """Start to take over a clone of an earlier daemon."""
        self._tasks.start_soon(guarded, self._creator.adopt, decision)

    def drop(self, decision: Drop) -> None:
        """Start to drop a clone."""
        self._tasks.start_soon(guarded, self._dropper.run, decision)
