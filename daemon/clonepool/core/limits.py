"""How many clones and waiters there may be, and what a limit is called when it is reached."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class Limit(StrEnum):
    """What keeps a pool from making a clone that it wants; metrics have it as a label."""

    TEMPLATE = "max_clones"
    POOL = "pool.max_clones"
    SERVER = "server"
    STORAGE = "storage"
    CONNECTIONS = "max_connections"
    FILES = "files"
    MEMORY = "memory"
    PROCESSES = "processes"


class Limits(msgspec.Struct, frozen=True):
    """What one template may have.

    Attributes:
        min_ready: clones to hold ready when nobody waits.
        max_clones: clones that may exist at a time.
        max_waiting: acquires that may wait at a time.
        max_kept: clones that may be set aside for people; beyond that the oldest goes.
        max_lease: seconds after which a lease ends whatever its holder does; None for never.
        shrink_after: seconds after which clones beyond min_ready go that nobody needed meanwhile.
        keep_for: seconds for which a clone that is set aside is kept.
        rewinds: whether returned clones are expected to be made good in place.
    """

    min_ready: int
    max_clones: int
    max_waiting: int = 1000
    max_kept: int = 4
    max_lease: float | None = None
    shrink_after: float = 60.0
    keep_for: float = 3600.0
    rewinds: bool = False


class Budget:
    """The number of clones that all pools together may hold.

    Attributes:
        paused: whether the server is away: nothing is granted or started.
        owed: returns how many clones all pools together lack of what min_ready promises.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.paused = False
        self.owed: Callable[[], int] = lambda: 0

    @property
    def room(self) -> int:
        """How many more may be made now; negative when an earlier run left too many."""
        return 0 if self.paused else self.limit - self.used
