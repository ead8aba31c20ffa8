"""Starts a task for each decision that takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar, assert_never

from clonepool.core.decisions import Adopt, CreateClone, Drop, Keep, Park, Record, Recycle
from clonepool.service.tasks import guarded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from clonepool.service.job_queue import JobQueue, Work
    from clonepool.service.jobs.adopt import AdoptJob
    from clonepool.service.jobs.create import CreateJob
    from clonepool.service.jobs.drop import DropJob
    from clonepool.service.jobs.keep import KeepJob
    from clonepool.service.jobs.park import ParkJob
    from clonepool.service.jobs.persist import PersistJob
    from clonepool.service.jobs.recycle import RecycleJob
    from clonepool.service.state_changes import StateChanges

W = TypeVar("W")


class Jobs(NamedTuple):
    """One job for each kind of work."""

    create: CreateJob
    recycle: RecycleJob
    keep: KeepJob
    persist: PersistJob
    park: ParkJob
    adopt: AdoptJob
    drop: DropJob


class Executor:
    """Takes work from the queue and starts it; how much runs at a time is up to the limiters.

    Args:
        jobs: one for each kind of work.
        queue: filled by the dispatcher.
        changed: notified when work has ended.
        tasks: where the jobs run.
    """

    def __init__(
        self, jobs: Jobs, *, queue: JobQueue, changed: StateChanges, tasks: TaskGroup
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._changed = changed
        self._tasks = tasks

    async def run(self) -> None:
        """Start what the queue lets go, for as long as the daemon runs."""
        while True:
            for work in await self._queue.get():
                self._start(work)

    def _start(self, work: Work) -> None:
        jobs = self._jobs
        match work:
            case CreateClone():
                self._begin(jobs.create.run, work)
            case Recycle():
                self._begin(jobs.recycle.run, work)
            case Keep():
                self._begin(jobs.keep.run, work)
            case Record():
                self._begin(jobs.persist.run, work)
            case Park():
                self._begin(jobs.park.run, work)
            case Adopt():
                self._begin(jobs.adopt.run, work)
            case Drop():
                self._begin(jobs.drop.run, work)
            case _:
                assert_never(work)

    def _begin(self, run: Callable[[W], Awaitable[None]], work: W) -> None:
        self._tasks.start_soon(self._run, run, work)

    async def _run(self, run: Callable[[W], Awaitable[None]], work: W) -> None:
        await guarded(run, work)
        self._changed.notify()
