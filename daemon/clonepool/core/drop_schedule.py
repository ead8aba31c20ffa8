"""When a drop may begin, so that drops do not slow down what tests wait for.

DROP DATABASE forces a checkpoint and waits for every backend, so it slows the copies beside it. A
drop waits while there is anything to stand back for, unless a waiter needs the place or the storage
that it frees. It does not wait for long: after `LONGEST_SECONDS`, or when many wait, drops are
made one at a time, with a rest after each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from clonepool.core.limits import Limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.fleet import Fleet

LONGEST_SECONDS = 10.0
"""Seconds that a drop stands back, and the longest rest after one."""
RESTS = 3.0
"""The rest after a drop, in times of what it took: drops get a quarter of the time."""
LARGEST_SHARE, SMALLEST_BACKLOG = 8, 4
"""Drops that may wait at a time: one in 8 of all clones, but 4 in any case."""
LOOK_SECONDS = 0.004
"""Seconds for which what was seen of the pools is believed."""


class _Pressure(NamedTuple):
    """What drops stand back for, and what hurries them."""

    busy: bool
    urgent: frozenset[str]
    storage_short: bool


class DropSchedule:
    """Decides for each drop when it asks.

    Args:
        fleet: the pools.
        max_clones: the limit of all clones.
        is_storage_short: says whether there is hardly room for another clone.

    Attributes:
        waiting: drops that wait for their turn.
        running: drops that are being made.
        cost: seconds that the last drop took.
    """

    def __init__(self, fleet: Fleet, max_clones: int, is_storage_short: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._most_waiting = max(SMALLEST_BACKLOG, max_clones // LARGEST_SHARE)
        self._is_storage_short = is_storage_short
        self._pressure = _Pressure(False, frozenset(), False)
        self._looked_at = float("-inf")
        self._resting_until = float("-inf")
        self.waiting = 0
        self.running = 0
        self.cost = 0.0

    def may_begin(self, template: str, asked_at: float, now: float) -> bool:
        """Say whether a drop may begin.

        Args:
            template: whose clone it is.
            asked_at: when it asked first, in monotonic seconds.
            now: monotonic seconds.
        """
        pressure = self._look(now)
        if not pressure.busy or pressure.storage_short or template in pressure.urgent:
            return True
        is_due = self.waiting > self._most_waiting or now >= asked_at + LONGEST_SECONDS
        return is_due and not self.running and now >= self._resting_until

    def is_urgent(self, template: str, now: float) -> bool:
        """Say whether a request waits for the place of a clone of that template."""
        return template in self._look(now).urgent

    def began(self) -> None:
        """Count a drop that begins."""
        self.running += 1

    def ended(self, now: float) -> None:
        """Count a drop that ended, done or failed."""
        self.running -= 1
        self._resting_until = now + min(RESTS * self.cost, LONGEST_SECONDS)

    def _look(self, now: float) -> _Pressure:
        if not 0 <= now - self._looked_at < LOOK_SECONDS:
            self._looked_at, self._pressure = now, self._seen()
        return self._pressure

    def _seen(self) -> _Pressure:
        """Look at all pools.

        A daemon that stops waits for its drops, and one whose server is away can do nothing else.
        """
        fleet = self._fleet
        pools = fleet.pools.values()
        busy = any(pool.waiting or pool.coming for pool in pools)
        if not busy or fleet.stopping or fleet.budget.paused:
            return _Pressure(False, frozenset(), False)
        in_want = [pool for pool in pools if pool.shortage.wanted() > 0 and pool.shortage.room <= 0]
        every = bool(in_want) and fleet.budget.room <= 0
        urgent = fleet.pools if every else [pool.template for pool in in_want]
        storage_short = self._is_storage_short() or any(
            pool.shortage.limited_by(pool.retries.last_error) is Limit.STORAGE for pool in pools
        )
        return _Pressure(True, frozenset(urgent), storage_short)
