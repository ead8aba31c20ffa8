"""What clients are told while they wait: of an acquire in the queue, and of a drain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog

from clonepool.protocol.messages import DrainProgress, DrainResult, Progress
from clonepool.service.call import internal_error

if TYPE_CHECKING:
    import asyncio

    from clonepool.core.fleet import Fleet
    from clonepool.core.pool import Pool
    from clonepool.postgres.templates.builder import Step
    from clonepool.service.call import Call
    from clonepool.service.dispatcher import Dispatcher

log = structlog.get_logger()

EVERY_SECONDS = 1.0
"""Seconds between two notifications about the progress of one acquire."""


class BuildSteps(Protocol):
    """Knows how far builds are."""

    def step_of(self, template: str) -> Step | None:
        """Return the step that a build of the template is in; None while there is no build."""


class AcquireProgress:
    """Notifies the client of one acquire, once a second until the call is answered.

    Args:
        dispatcher: keeps the time.
        steps: knows how far builds are.
        call: the acquire.
        pool: that it waits for.
    """

    def __init__(self, dispatcher: Dispatcher, steps: BuildSteps, call: Call, pool: Pool) -> None:
        self._dispatcher = dispatcher
        self._steps = steps
        self._call = call
        self._pool = pool
        self._began = dispatcher.now()

    def begin(self) -> None:
        """Notify the client for the first time, and again in a second."""
        if self._call.is_gone:
            return
        pool = self._pool.snapshot()
        told = Progress(
            self._call.request,
            round(self._dispatcher.now() - self._began, 3),
            self._pool.queue.position(self._call.number) or 0,
            pool.phase,
            pool.limited_by,
            *self._build(),
        )
        self._call.notify("progress", told)
        self._dispatcher.call_later(EVERY_SECONDS, self.begin)

    def _build(self) -> tuple[str, int, int, float]:
        step = self._steps.step_of(self._pool.template)
        if step is None:
            return "", 0, 0, 0.0
        return step.what, step.number, step.steps, round(step.seconds, 3)


class Drains:
    """The drains that wait for leases to end. The dispatcher calls `look` after each decision.

    Args:
        fleet: knows how many leases are held.
        loop: calls back when a drain's time is up.
    """

    def __init__(self, fleet: Fleet, loop: asyncio.AbstractEventLoop) -> None:
        self._fleet = fleet
        self._loop = loop
        self._waiting: dict[_Drain, asyncio.TimerHandle] = {}

    def watch(self, call: Call, template: str | None, timeout: float, *, progress: bool) -> None:
        """Answer a call when no lease is left, or when its time is up.

        Args:
            call: is answered with the number of leases left.
            template: whose leases count; None for those of all templates.
            timeout: seconds to wait at most.
            progress: whether the client is notified when the number of leases changes.
        """
        drain = _Drain(call, template, self._fleet, progress=progress)
        if drain.look(is_over=timeout <= 0):
            return
        self._waiting[drain] = self._loop.call_later(timeout, self._time_is_up, drain)
        call.on_cancel(lambda: self._end(drain))

    def look(self) -> None:
        """Answer or notify the clients, if leases have ended."""
        if self._waiting:
            for drain in list(self._waiting):
                if drain.look():
                    self._end(drain)

    def _time_is_up(self, drain: _Drain) -> None:
        drain.look(is_over=True)
        self._end(drain)

    def _end(self, drain: _Drain) -> None:
        timer = self._waiting.pop(drain, None)
        if timer is not None:
            timer.cancel()


class _Drain:
    """One call that waits for leases to end."""

    def __init__(self, call: Call, template: str | None, fleet: Fleet, *, progress: bool) -> None:
        self._call = call
        self._template = template
        self._fleet = fleet
        self._progress = progress
        self._told: int | None = None

    def look(self, *, is_over: bool = False) -> bool:
        """Answer if no lease is left or the time is over; say whether the call needs no more."""
        if self._call.is_gone:
            return True
        try:
            self._answer_or_notify(is_over=is_over)
        except Exception as error:
            log.exception("request.failed", method="drain")
            self._call.fail(internal_error(error))
        return self._call.is_answered

    def _answer_or_notify(self, *, is_over: bool) -> None:
        leases = self._fleet.leased(self._template)
        if not leases or is_over:
            self._call.reply(DrainResult(leases))
        elif self._progress and leases != self._told:
            self._call.notify("progress", DrainProgress(self._call.request, leases))
            self._told = leases
