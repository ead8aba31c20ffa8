"""When a drop may begin: behind what tests wait for, and not too much of the time.

Pure: no I/O, no clock. DROP DATABASE forces a checkpoint and waits for every backend, so it slows
the copies beside it. Nobody waits for a drop, unless it frees the place that somebody needs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from clonepool.core.limits import Limit

if TYPE_CHECKING:
    from clonepool.core.fleet import Fleet

LONGEST_SECONDS = 10.0
"""After so long a drop is due, whatever else is under way."""
LARGEST_SHARE = 0.25
"""How much of the time drops may take while something else is under way."""
_NEWEST_WEIGHT = 0.3
_OF_PLACES = (Limit.TEMPLATE, Limit.POOL)


class Scene(msgspec.Struct, frozen=True):
    """What a drop has to stand back for, or has not.

    Attributes:
        busy: a test waits for a clone, or clones are being made.
        urgent: templates whose clones keep the place that somebody wants.
        short: there is hardly room for more databases.
    """

    busy: bool
    urgent: frozenset[str] = frozenset()
    short: bool = False


def look_at(fleet: Fleet, *, short: bool = False) -> Scene:
    """Return what there is to stand back for.

    A daemon that stops waits for its drops, and one whose server is away can do nothing else.
    """
    pools = fleet.pools.values()
    busy = any(pool.waiting or pool.coming for pool in pools)
    if not busy or fleet.stopping or fleet.budget.paused:
        return Scene(busy=False, short=short)
    urgent: set[str] = set()
    for pool in pools:
        limited = pool.snapshot().limited_by
        short = short or limited == Limit.STORAGE
        if not pool.waiting and limited not in _OF_PLACES:
            continue
        if fleet.budget.room <= 0:
            urgent.update(fleet.pools)
        elif pool.databases >= pool.limits.max_clones:
            urgent.add(pool.template)
    return Scene(busy=True, urgent=frozenset(urgent), short=short)


class Governor:
    """Says when a drop may begin, and learns what drops cost.

    Args:
        most: drops that may be put off at a time; beyond that they are worked off meanwhile, one
            at a time and spaced.

    Attributes:
        cost: seconds that a drop takes, the latest counting most; 0 as long as that is not known.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way = 0
        self._free_at = -math.inf
        self.cost = 0.0

    def pause(
        self, template: str, asked_at: float, scene: Scene, backlog: int, now: float
    ) -> float:
        """Return the seconds until a drop may begin if the scene stays as it is; 0 for now.

        Args:
            template: whose clone it is.
            asked_at: since when it waits, in monotonic seconds.
            scene: as it is now.
            backlog: how many drops wait, this one counted.
            now: monotonic seconds.

        Returns:
            Infinity while another drop has to end first.
        """
        if not scene.busy or scene.short or template in scene.urgent:
            return 0.0
        due = now if backlog > self._most else asked_at + LONGEST_SECONDS
        if due <= now and self._under_way:
            return math.inf
        return max(0.0, due - now, self._free_at - now)

    def began(self) -> None:
        """A drop begins."""
        self._under_way += 1

    def ended(self, now: float) -> None:
        """It is over, or failed."""
        self._under_way -= 1
        rest = self.cost * (1 / LARGEST_SHARE - 1)
        self._free_at = now + min(rest, LONGEST_SECONDS)

    def learn(self, seconds: float) -> None:
        """One took so long."""
        self.cost += (seconds - self.cost) * (_NEWEST_WEIGHT if self.cost else 1.0)
