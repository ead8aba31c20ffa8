"""When the pools have something to do next, asked only of those that may have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.deadlines import Deadlines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.core.pool_state import PoolState


class Timers:
    """The next timer of each pool.

    A pool whose clone could not be made is asked again each time: when it tries again depends on
    the places that others have.
    """

    def __init__(self) -> None:
        self._changed: set[PoolState] = set()
        self._time_of: dict[PoolState, float] = {}
        self._times: Deadlines[PoolState] = Deadlines()

    def changed(self, pools: Iterable[PoolState]) -> None:
        """Something happened to these pools."""
        self._changed.update(pools)

    def forget(self, pool: PoolState) -> None:
        """The pool has been removed."""
        self._changed.discard(pool)
        self._set(pool, None)

    def first(self) -> float | None:
        """Return when the first of the pools has something to do, in monotonic seconds."""
        if self._changed:
            changed, self._changed = self._changed, set()
            for pool in changed:
                self._set(pool, pool.next_timer())
                if pool.retries.at is not None:
                    self._changed.add(pool)
        return self._times.first()

    def _set(self, pool: PoolState, at: float | None) -> None:
        if at == self._time_of.get(pool):
            return
        if at is None:
            del self._time_of[pool]
            self._times.discard(pool)
        else:
            self._time_of[pool] = at
            self._times.set(pool, at)
