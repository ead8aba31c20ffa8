"""Starts a task for each decision that takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from clonepool.core.decisions import Adopt, CreateClone, Drop, Keep, Park, Record, Recycle
from clonepool.service.jobs.create import CreateJob
from clonepool.service.jobs.drop import DropJob
from clonepool.service.jobs.persist import PersistJob
from clonepool.service.jobs.recycle import RecycleJob
from clonepool.service.monitors.lock_watch import LockWatch
from clonepool.service.monitors.wal import WalMonitor
from clonepool.service.tasks import guarded

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from clonepool.service.context import Context
    from clonepool.service.dispatcher import Dispatcher
    from clonepool.service.job_queue import Job, JobQueue


class Watchers:
    """Observes the dispatcher: something was decided, so what was put off may be due."""

    def __init__(self, context: Context) -> None:
        self.dropper = DropJob(context)
        self.lock_watch = LockWatch(context)
        self.wal = WalMonitor(context)

    def look(self) -> None:
        """Look whether what was put off may be done now."""
        self.dropper.stir()
        self.lock_watch.stir()
        self.wal.stir()


class Executor:
    """Takes jobs from the queue; how many run at a time is the limiter's matter, not this one's."""

    def __init__(
        self,
        context: Context,
        queue: JobQueue,
        dispatcher: Dispatcher,
        watchers: Watchers,
        tasks: TaskGroup,
    ) -> None:
        self._queue = queue
        self._tasks = tasks
        self._create = CreateJob(context)
        self._recycle = RecycleJob(context, dispatcher)
        self._drop = watchers.dropper
        self._persist = PersistJob(context)
        tasks.start_soon(watchers.lock_watch.run)
        tasks.start_soon(watchers.wal.run)
        tasks.start_soon(self.run)

    async def run(self) -> None:
        """Start the jobs that the queue lets go, for as long as the daemon runs."""
        while True:
            for job in await self._queue.get():
                self._start(job)

    def _start(self, job: Job) -> None:
        match job:
            case CreateClone():
                self._tasks.start_soon(guarded, self._create.run, job)
            case Recycle():
                self._tasks.start_soon(guarded, self._recycle.run, job)
            case Keep():
                self._tasks.start_soon(guarded, self._recycle.keep, job)
            case Record():
                self._tasks.start_soon(guarded, self._persist.record, job)
            case Park():
                self._tasks.start_soon(guarded, self._persist.park, job)
            case Adopt():
                self._tasks.start_soon(guarded, self._create.adopt, job)
            case Drop():
                self._tasks.start_soon(guarded, self._drop.run, job)
            case _:
                assert_never(job)
