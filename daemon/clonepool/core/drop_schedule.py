"""When a drop may begin, so that drops do not slow down what tests wait for.

DROP DATABASE forces a checkpoint and waits for every backend, so it slows the copies beside it. A
drop waits while there is anything to stand back for, unless a waiter needs the place or the storage
that it frees. It does not wait for long: after `LONGEST_SECONDS`, or when many wait, drops are
made one at a time in the order in which they asked, with a rest after each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from clonepool.core.limits import Limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.fleet import Fleet

LONGEST_SECONDS = 10.0
"""Maximum seconds that a drop waits, and the longest rest after one."""
RESTS = 3.0
"""The rest after a drop, in times of what it took: drops get a quarter of the time."""
LARGEST_SHARE, SMALLEST_BACKLOG = 8, 4
"""Drops that may wait at a time: one in 8 of all clones, but 4 in any case."""
LOOK_SECONDS = 0.004
"""Seconds for which what was seen of the pools is believed."""


class _Pressure(NamedTuple):
    """What delays drops, and what makes them urgent."""

    busy: bool
    urgent: frozenset[str]
    storage_short: bool


class DropSchedule:
    """The drops that wait, and when each may begin.

    Args:
        fleet: the pools.
        max_clones: the limit of all clones.
        is_storage_short: says whether storage is short.

    Attributes:
        cost: seconds that the last drop took.
    """

    def __init__(self, fleet: Fleet, max_clones: int, is_storage_short: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._most_waiting = max(SMALLEST_BACKLOG, max_clones // LARGEST_SHARE)
        self._is_storage_short = is_storage_short
        self._pressure = _Pressure(False, frozenset(), False)
        self._looked_at = float("-inf")
        self._resting_until = float("-inf")
        self._waiting: dict[str, None] = {}
        self._asked_at: dict[str, float] = {}
        self._running = 0
        self.cost = 0.0

    def ask(self, clone: str, now: float) -> None:
        """Let a drop wait for its turn; one that asks again has waited since it asked first."""
        self._asked_at.setdefault(clone, now)
        self._waiting[clone] = None

    def withdraw(self, clone: str) -> None:
        """Forget a drop that waits: it is not to be made any more."""
        self._waiting.pop(clone, None)
        self._asked_at.pop(clone, None)

    def is_first(self, clone: str) -> bool:
        """Say whether a drop has waited longest for its turn: time alone can let it begin."""
        return next(iter(self._waiting), None) == clone

    def may_begin(self, template: str, clone: str, now: float) -> bool:
        """Say whether a drop that waits may begin.

        Args:
            template: whose clone it is.
            clone: that is to be dropped.
            now: monotonic seconds.
        """
        pressure = self._look(now)
        if not pressure.busy or pressure.storage_short or template in pressure.urgent:
            return True
        if self._running or now < self._resting_until or not self.is_first(clone):
            return False
        is_backlog_long = len(self._waiting) > self._most_waiting
        return is_backlog_long or now >= self._asked_at[clone] + LONGEST_SECONDS

    def is_urgent(self, template: str, now: float) -> bool:
        """Say whether the place of a clone of that template is wanted."""
        return template in self._look(now).urgent

    def began(self, clone: str) -> None:
        """Count a drop that begins."""
        self._waiting.pop(clone, None)
        self._running += 1

    def took(self, seconds: float) -> None:
        """Note how long a drop took that succeeded; to be called before `ended`."""
        self.cost = seconds

    def ended(self, clone: str, now: float, *, done: bool) -> None:
        """Count a drop that ended; one that is not done will ask again."""
        self._running -= 1
        if done:
            self._asked_at.pop(clone, None)
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
        in_want = [pool for pool in pools if pool.shortage.is_in_want()]
        every = bool(in_want) and fleet.budget.room <= 0
        urgent = fleet.pools if every else [pool.template for pool in in_want]
        storage_short = self._is_storage_short() or any(
            pool.shortage.limited_by(pool.retries.last_error) is Limit.STORAGE for pool in pools
        )
        return _Pressure(True, frozenset(urgent), storage_short)
