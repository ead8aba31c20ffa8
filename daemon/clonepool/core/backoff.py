"""When to try again after a clone could not be made, and why the last try failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clonepool.errors import ClonepoolError

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 2.0


class Backoff:
    """The pauses of one pool: each twice as long as the one before, until a try succeeds.

    Attributes:
        last_error: of the last try; None when it succeeded.
        at: when to try again, in monotonic seconds; None when there is nothing to wait for.
    """

    def __init__(self) -> None:
        self.last_error: ClonepoolError | None = None
        self.at: float | None = None
        self._pause = 0.0

    def failed(self, error: ClonepoolError, now: float) -> None:
        """Pause, longer than the last time."""
        self.last_error = error
        self._pause = min(max(self._pause * 2, FIRST_BACKOFF_SECONDS), LONGEST_BACKOFF_SECONDS)
        self.at = now + self._pause

    def succeeded(self) -> None:
        """Forget the failures."""
        self.last_error = self.at = None
        self._pause = 0.0

    def now(self) -> None:
        """Try again at once: what made tries fail is over."""
        if self.at is not None:
            self.at = 0.0

    def is_pausing(self, now: float) -> bool:
        """Say whether nothing is tried because the last try failed a moment ago."""
        return self.at is not None and now < self.at
