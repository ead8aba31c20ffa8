"""The work that decisions call for, on its way from the dispatcher to the executor.

Grants come first: work begins when no request is waiting to be read, because its first steps on the
event loop would take the time of the next grant. How work is carried out, and how much runs at a
time, do not belong here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from clonepool.core.decisions import Adopt, CreateClone, Drop, Keep, Park, Record, Recycle

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

Work = CreateClone | Recycle | Keep | Record | Park | Adopt | Drop
"""The decisions that take time to carry out; any other is carried out at once."""

QUIET_SECONDS = 0.002
"""Seconds without a request after which work begins that nobody waits for."""
LONGEST_HOLD_SECONDS = 0.005
"""Seconds that work is held back at most, however many requests arrive."""


class Requests(Protocol):
    """Counts the requests of all clients."""

    @property
    def requests_read(self) -> int:
        """How many requests have been read so far."""


class JobQueue:
    """Holds work back while requests arrive.

    Work that somebody waits for is let go as soon as the event loop has looked once at all sockets
    and found no request, and at once while requests are in a queue: there is nothing to grant them
    first. Any other, such as a refill, is let go when no request has come for
    `QUIET_SECONDS`: a client that asks again and again leaves the loop idle between its requests.
    Neither is held for longer than `LONGEST_HOLD_SECONDS`.

    Args:
        requests: counts what is read.
        loop: calls back between its looks at the sockets.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, requests: Requests, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self._requests = requests
        self._loop = loop
        self._clock = clock
        self._held: list[Work] = []
        self._held_since = 0.0
        self._requests_seen = 0
        self._is_looking = False
        self._timer: asyncio.TimerHandle | None = None
        self._released: list[Work] = []
        self._consumer: asyncio.Future[None] | None = None

    def put(self, work: Work, *, waited_for: bool) -> None:
        """Hold work back until its time comes; return at once.

        Args:
            work: what is to be done.
            waited_for: whether a client waits for what the work brings about.
        """
        if not self._held:
            self._held_since = self._clock()
        self._held.append(work)
        if waited_for:
            self._look_soon()
        elif self._timer is None and not self._is_looking:
            self._set_timer()

    def hurry(self) -> None:
        """Let the work that is held go: requests that cannot be granted now wait for it."""
        if self._held:
            self._loop.call_soon(self._release)

    async def get(self) -> list[Work]:
        """Wait for work to be let go, and return it in the order in which it was put.

        One task may wait at a time. A task that is cancelled while it waits has taken no work.
        """
        while not self._released:
            self._consumer = self._loop.create_future()
            await self._consumer
        released, self._released = self._released, []
        return released

    # Inside -------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        """Let the event loop poll the sockets once, then check whether it found a request.

        The first callback runs before that look, the second after it.
        """
        if not self._is_looking:
            self._is_looking = True
            self._loop.call_soon(self._begin_to_look)

    def _begin_to_look(self) -> None:
        self._requests_seen = self._requests.requests_read
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        if not self._held:
            self._is_looking = False
        elif self._is_quiet():
            self._release()
        else:
            self._loop.call_soon(self._look)

    def _set_timer(self) -> None:
        self._requests_seen = self._requests.requests_read
        self._timer = self._loop.call_later(QUIET_SECONDS, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        if self._is_looking or not self._held:
            return
        if self._is_quiet():
            self._look_soon()
        else:
            self._set_timer()

    def _is_quiet(self) -> bool:
        """Say whether no request has come since this was asked last, or work can wait no longer."""
        read, self._requests_seen = self._requests_seen, self._requests.requests_read
        quiet = read == self._requests_seen
        return quiet or self._clock() - self._held_since >= LONGEST_HOLD_SECONDS

    def _release(self) -> None:
        self._is_looking = False
        self._released += self._held
        self._held = []
        if self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)
