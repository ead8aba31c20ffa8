"""How long to pause between tries: each pause is twice as long as the one before, up to a limit.

All work of the daemon that is tried again goes by this. Pure: the time comes in as an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clonepool.errors import ClonepoolError

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 2.0


class Backoff:
    """The pauses of one kind of work.

    A loop sleeps for `next_pause` after each failure. The core, which cannot sleep, says `failed`
    and asks `is_pausing`.

    Args:
        first: seconds of the pause after the first failure.
        longest: seconds of the longest pause.

    Attributes:
        last_error: why the last try failed; None when it succeeded.
        at: when to try again, in monotonic seconds; None when there is nothing to wait for.
    """

    def __init__(
        self, first: float = FIRST_BACKOFF_SECONDS, longest: float = LONGEST_BACKOFF_SECONDS
    ) -> None:
        self.last_error: ClonepoolError | None = None
        self.at: float | None = None
        self._first = first
        self._longest = longest
        self._pause = 0.0

    def next_pause(self) -> float:
        """Return the seconds to pause after one more failure."""
        self._pause = min(max(self._pause * 2, self._first), self._longest)
        return self._pause

    def failed(self, error: ClonepoolError, now: float) -> None:
        """Remember a failure, and pause for longer than the last time."""
        self.last_error = error
        self.at = now + self.next_pause()

    def succeeded(self) -> None:
        """Forget the failures."""
        self.last_error = self.at = None
        self._pause = 0.0

    def now(self) -> None:
        """End the pause: what made the tries fail is over."""
        if self.at is not None:
            self.at = 0.0

    def is_pausing(self, now: float) -> bool:
        """Say whether nothing is tried because the last try failed a moment ago."""
        return self.at is not None and now < self.at
