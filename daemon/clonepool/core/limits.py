"""How many clones and waiters there may be, and what a limit is called when it is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clonepool.core.limit_names import Limit
from clonepool.errors import ResourceError, StatementError

if TYPE_CHECKING:
    from clonepool.errors import ClonepoolError

__all__ = ["Limit", "Limits", "is_refused", "limit_of"]


_LOGIN_REFUSED = "28"
"""Class of the SQLSTATEs with which a server refuses a login."""


def is_refused(error: Exception | None) -> bool:
    """Say whether the server refuses the daemon's login, so that everything fails."""
    return isinstance(error, StatementError) and error.sqlstate.startswith(_LOGIN_REFUSED)


def limit_of(error: ClonepoolError | None) -> Limit | None:
    """Return what is lacking when work failed with that error, if it is one of the limits."""
    if isinstance(error, ResourceError):
        return Limit(error.limit)
    return Limit.SERVER if is_refused(error) else None


class Limits(msgspec.Struct, frozen=True):
    """What one template may have.

    Attributes:
        min_ready: clones to hold ready when no request waits.
        max_clones: clones that may exist at a time.
        max_waiting: acquires that may wait at a time.
        max_kept: clones that may be set aside for inspection; beyond that the oldest goes.
        max_lease: seconds after which a lease ends whatever its holder does; None for never.
        shrink_after: seconds after which unused surplus clones are dropped.
        keep_for: seconds for which a clone that is set aside is kept.
        rewinds: whether returned clones are expected to be rewound.
    """

    min_ready: int
    max_clones: int
    max_waiting: int = 1000
    max_kept: int = 4
    max_lease: float | None = None
    shrink_after: float = 60.0
    keep_for: float = 3600.0
    rewinds: bool = False
