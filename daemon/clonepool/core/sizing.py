"""How many clones a pool should be making right now. Arithmetic only."""

from __future__ import annotations


def clones_to_create(*, min_ready: int, waiting: int, ready: int, coming: int, room: int) -> int:
    """Return how many more clones to start, never negative.

    Args:
        min_ready: clones to hold ready when nobody waits.
        waiting: acquires in the queue; each takes one of what comes.
        ready: clones that could be granted now.
        coming: clones being created.
        room: how many more the limits allow.
    """
    missing = min_ready + waiting - ready - coming
    return max(0, min(missing, room))
