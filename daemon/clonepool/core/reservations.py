"""Tests that runners have announced: a number, and how many run at a time. A hint, no promise."""

from __future__ import annotations

LASTS_SECONDS = 600.0
"""Seconds after which an unused reservation ends, so that a runner that hangs holds no clones."""


class _Reservation:
    """What one connection announced; `tests` are still to come."""

    __slots__ = ("parallelism", "tests", "until")

    def __init__(self, tests: int, parallelism: int, until: float) -> None:
        self.tests = tests
        self.parallelism = parallelism
        self.until = until

    @property
    def ready(self) -> int:
        """How many clones it may want at once from now on."""
        return min(self.tests, self.parallelism)


class Reservations:
    """The reservations of one template, by connection, the oldest first.

    Attributes:
        ready: how many clones all of them may want at once.
        next_time: when one may be over by time, in monotonic seconds; None when there is none.
    """

    __slots__ = ("_of", "next_time", "ready")

    def __init__(self) -> None:
        self.ready = 0
        self.next_time: float | None = None
        self._of: dict[int, _Reservation] = {}

    def enter(self, holder: int, tests: int, parallelism: int, now: float) -> None:
        """Replace the reservation of a holder; 0 tests end it."""
        self.end(holder)
        if tests <= 0:
            return
        reservation = self._of[holder] = _Reservation(tests, parallelism, now + LASTS_SECONDS)
        self.ready += reservation.ready
        if self.next_time is None:
            self.next_time = reservation.until

    def count(self, holder: int, now: float) -> None:
        """Count an acquire: on the holder's own reservation, else on the oldest.

        A runner's workers are often processes of their own, each with its connection.
        """
        if not self._of:
            return
        holder = holder if holder in self._of else next(iter(self._of))
        reservation = self._of[holder]
        self.ready -= reservation.ready
        reservation.tests -= 1
        reservation.until = now + LASTS_SECONDS
        self.ready += reservation.ready
        if not reservation.tests:
            self.end(holder)

    def end(self, holder: int) -> bool:
        """Forget what the holder announced; say whether there was anything."""
        ended = self._of.pop(holder, None)
        if ended is None:
            return False
        self.ready -= ended.ready
        if not self._of:
            self.next_time = None
        return True

    def expire(self, now: float) -> bool:
        """Forget the reservations that were unused for long; say whether there were any."""
        if self.next_time is None or now < self.next_time:
            return False
        over = [holder for holder, it in self._of.items() if it.until <= now]
        for holder in over:
            self.end(holder)
        self.next_time = min((it.until for it in self._of.values()), default=None)
        return bool(over)
