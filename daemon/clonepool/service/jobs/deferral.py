"""Where drops wait for their turn. When that comes is the governor's matter, not this one's."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from clonepool.service.jobs.drop_schedule import Governor, Scene

LOOK_SECONDS = 0.005
"""How soon it is looked again after something changed: a hit changes something every time, and has
no time to look."""


class _Deferred:
    """One drop that waits."""

    def __init__(self, template: str, asked_at: float) -> None:
        self.template = template
        self.asked_at = asked_at
        self.admitted = asyncio.Event()


class DropQueue:
    """The drops that wait, the oldest first, and the one timer that wakes them.

    Args:
        look: says what drops have to stand back for.
        governor: decides.
        now: monotonic seconds.
    """

    def __init__(
        self, look: Callable[[], Scene], governor: Governor, now: Callable[[], float]
    ) -> None:
        self._look = look
        self._governor = governor
        self._now = now
        self._queue: list[_Deferred] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    @property
    def waiting(self) -> int:
        """How many drops are put off."""
        return len(self._queue)

    @asynccontextmanager
    async def turn(self, template: str, asked_at: float) -> AsyncIterator[None]:
        """Wait until a drop of that template, asked for at that time, may begin; it is made inside.

        Args:
            template: whose clone it is.
            asked_at: monotonic seconds.
        """
        await self._wait(_Deferred(template, asked_at))
        try:
            yield
        finally:
            self._governor.ended(self._now())
            self.stir()

    def stir(self) -> None:
        """Look again soon: something changed."""
        if self._queue:
            self._wake_at(self._now() + LOOK_SECONDS)

    async def _wait(self, drop: _Deferred) -> None:
        self._queue.append(drop)
        self._admit()
        try:
            await drop.admitted.wait()
        except BaseException:
            if drop in self._queue:
                self._queue.remove(drop)
            else:
                self._governor.ended(self._now())  # it was admitted already
            self._admit()
            raise

    def _admit(self) -> None:
        """Let begin what may, and see to it that the rest is looked at in time."""
        self._sleep()
        if not self._queue:
            return
        scene, now, soonest = self._look(), self._now(), math.inf
        for drop in list(self._queue):
            backlog = len(self._queue)
            pause = self._governor.pause(drop.template, drop.asked_at, scene, backlog, now)
            if pause > 0.0:
                soonest = min(soonest, pause)
                continue
            self._governor.began()
            self._queue.remove(drop)
            drop.admitted.set()
        if soonest < math.inf:
            self._wake_at(now + soonest)

    def _wake_at(self, due: float) -> None:
        if due >= self._due:
            return
        self._sleep()
        self._due = due
        delay = max(0.0, due - self._now())
        self._timer = asyncio.get_running_loop().call_later(delay, self._admit)

    def _sleep(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, math.inf
