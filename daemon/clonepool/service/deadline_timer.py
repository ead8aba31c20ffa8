"""One timer of the event loop for whatever is due next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class DeadlineTimer:
    """Calls back when something is due.

    A timer that is set too early stays, and is set anew when it goes off: to set one with every
    decision would take longer than most decisions do.

    Args:
        loop: has the timer.
        clock: returns monotonic seconds.
        next_due: returns when something is due next, in monotonic seconds; None while nothing is.
        on_due: called when it is; what was due must not be due any more after that.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        next_due: Callable[[], float | None],
        on_due: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._next_due = next_due
        self._on_due = on_due
        self._timer: asyncio.TimerHandle | None = None
        self._goes_off_at = 0.0
        self._is_closed = False

    def set(self) -> None:
        """Make sure that the timer fires in time: something else may be due next."""
        due = None if self._is_closed else self._next_due()
        if due is None or (self._timer is not None and self._goes_off_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._goes_off_at = due
        self._timer = self._loop.call_later(max(0.0, due - self._clock()), self._go_off)

    def close(self) -> None:
        """Never call back again."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_off(self) -> None:
        self._timer = None
        due = self._next_due()
        if due is not None and due <= self._clock():
            self._on_due()
        else:
            self.set()
