"""How many clones to hold ready, and so how many to make or to drop.

Inventory theory's base-stock policy, without its two estimates. A stock of S clones that reorders
one for each that is taken is empty just when S are *out*: taken and not yet replaced. On average,
by Little's law, there are as many out as acquires come in the time that a replacement takes, by
copy or by rewind; how far it goes beyond that depends on how they come. So what is out is counted,
and its peak is what the stock would have had to hold: neither rate nor lead time has to be
measured, and no distribution of either is assumed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.clone import State
from clonepool.core.reservations import Reservations

if TYPE_CHECKING:
    from clonepool.core.inventory import Inventory
    from clonepool.core.limits import Limits
    from clonepool.core.queue import WaitQueue

SPARE_SHARE = 4
"""Clones that were needed for each one held beyond them: the next burst may be larger."""
DROP_AT_A_TIME = 4
"""Surplus clones that are dropped at once."""
DROP_EVERY_SECONDS = 1.0
"""Seconds between two such drops: tests could use what dropping takes from the server."""
REWIND_SHARE_THRESHOLD = 0.5
"""Share of rewinds above which a clone that is being recycled is expected to be rewound."""
REWIND_SHARE_WEIGHT = 0.125
"""Weight of the latest recycled clone in that share."""


def clones_to_create(*, min_ready: int, waiting: int, ready: int, coming: int, room: int) -> int:
    """Return how many more clones to start, never negative.

    Args:
        min_ready: clones to hold ready when no request waits.
        waiting: acquires in the queue; each takes one of what comes.
        ready: clones that could be granted now.
        coming: clones being created.
        room: how many more the limits allow.
    """
    missing = min_ready + waiting - ready - coming
    return max(0, min(missing, room))


class Demand:
    """The recent demand for one template, and how many clones it should therefore hold ready.

    The most that was out, and the fewest that were ready, are remembered over the current period
    and the one before: so for at least `shrink_after` seconds and for at most twice as long. Each
    event costs a few comparisons. Nothing happens with time unless `next_time` says when.

    Args:
        limits: between which the target stays.
        inventory: the pool's clones; read only.
        queue: requests that wait for them; read only.

    Attributes:
        target: clones to hold ready when nobody waits.
        needed: clones that the recent demand would have needed, and some to spare.
        reservations: what runners have announced.
    """

    __slots__ = (
        "_awake",
        "_drop_at",
        "_inventory",
        "_least",
        "_least_before",
        "_limits",
        "_out",
        "_peak",
        "_peak_before",
        "_queue",
        "_rewound",
        "_stock",
        "_turn_at",
        "needed",
        "reservations",
        "target",
    )  # fmt: skip

    def __init__(self, limits: Limits, inventory: Inventory, queue: WaitQueue) -> None:
        self.target = self._stock = limits.min_ready
        self.needed = 0
        self.reservations = Reservations()
        self._limits = limits
        self._inventory = inventory
        self._queue = queue
        self._out = 0
        self._peak = self._peak_before = 0
        self._least = self._least_before = 0
        self._rewound = float(limits.rewinds)
        self._turn_at = 0.0
        self._drop_at = 0.0
        self._awake = False

    # What happened ------------------------------------------------------------------------

    def took(self, holder: int, now: float) -> None:
        """A clone was granted to that connection."""
        self._out += 1
        if self.reservations.ready:
            self.reservations.count(holder, now)
            self._awake = True
        self.asked(now)

    def asked(self, now: float) -> None:
        """An acquire has come, and waits if it was not granted."""
        if now >= self._turn_at:
            self._turn(now)
        self._aim()
        ready, waiting = self._inventory.ready, len(self._queue)
        self._least = min(self._least, ready)
        if ready >= self._stock and not waiting:
            self._out = 0  # the stock is full all the same
        elif self._out + waiting > self._peak:
            self._peak = self._out + waiting
            self._learn()

    def replaced(self) -> None:
        """A clone has become ready."""
        self._aim()
        ready = self._inventory.ready
        full = ready >= self._stock and not self._queue
        self._out = 0 if full else max(0, self._out - 1)
        if ready > self.target or self.needed > self._limits.min_ready:
            self._awake = True

    def recycled(self, *, rewound: bool) -> None:
        """A returned clone was rewound, or has to be recreated."""
        self._rewound += (rewound - self._rewound) * REWIND_SHARE_WEIGHT
        self._aim()

    def reserve(self, holder: int, tests: int, parallelism: int, now: float) -> None:
        """A runner announces tests and how many run at a time; see `Reservations.enter`."""
        self.reservations.enter(holder, tests, parallelism, now)
        self._awake = True
        self._aim()

    def holder_gone(self, holder: int) -> None:
        """A connection has ended, and what it reserved."""
        if self.reservations.end(holder):
            self._awake = True
            self._aim()

    @property
    def rewinds_mostly(self) -> bool:
        """Whether a clone that is being recycled is expected to be rewound, and not dropped."""
        return self._rewound > REWIND_SHARE_THRESHOLD

    # Time ---------------------------------------------------------------------------------

    def review(self, now: float) -> int:
        """Forget what is long ago; return how many of the ready clones to drop now."""
        if self.reservations.expire(now):
            self._awake = True
            self._aim()
        if now >= self._turn_at:
            self._turn(now)
        surplus = self._surplus()
        if not surplus or now < self._drop_at:
            return 0
        self._drop_at = now + DROP_EVERY_SECONDS
        return min(surplus, DROP_AT_A_TIME)

    def next_time(self) -> float | None:
        """Return when `review` has something to do, in monotonic seconds; None when it never has.

        It moves on once a period and not with each event: setting a timer costs more than all the
        rest.
        """
        ending = self.reservations.next_time
        if not self._awake:
            return ending
        if self._surplus():
            return self._drop_at
        return self._turn_at if ending is None else min(ending, self._turn_at)

    # Inside -------------------------------------------------------------------------------

    def _turn(self, now: float) -> None:
        """Begin a new period; sleep if it can bring nothing new by itself."""
        out, ready = self._out + len(self._queue), self._inventory.ready
        self._peak_before, self._peak = self._peak, out
        self._least_before, self._least = self._least, ready
        self._turn_at = now + self._limits.shrink_after
        self._learn()
        forgetting = self._peak_before > out and self.needed > self._limits.min_ready
        self._awake = forgetting or ready > self.target

    def _learn(self) -> None:
        most = max(self._peak, self._peak_before)
        self.needed = most + most // SPARE_SHARE
        self._awake = self._awake or self.needed > self._limits.min_ready
        self._aim()

    def _aim(self) -> None:
        """Set the target.

        What is in use and will be rewound counts as stock that meets what was needed
        lately; but whoever announces tests wants other clones than those that are in use.
        """
        least, needed, reserved = self._limits.min_ready, self.needed, self.reservations.ready
        if needed <= least and reserved <= least:
            self.target = self._stock = least
            return
        states = self._inventory.count
        returning = int(self._rewound * (states[State.LEASED] + states[State.RECYCLING]))
        self._stock = min(max(least, reserved, needed), self._limits.max_clones)
        self.target = min(max(least, reserved, needed - returning), self._limits.max_clones)

    def _surplus(self) -> int:
        """Return how many clones were always ready beyond the target; 0 if a request waits."""
        if self._least <= self.target or self._queue:
            return 0
        return max(0, min(self._inventory.ready, self._least, self._least_before) - self.target)
