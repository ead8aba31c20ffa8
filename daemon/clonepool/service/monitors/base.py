"""What all monitors have in common: the loop, its pauses, and the boundary of a pass."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import anyio

from clonepool.core.backoff import Backoff
from clonepool.service.wakeup import WakeUp

if TYPE_CHECKING:
    from clonepool.service.failures import Attempt, Failures


class Pause(NamedTuple):
    """How long a monitor waits for its next pass, in seconds.

    Attributes:
        least: the pause is never shorter.
        most: the pass is due after this, even if nothing woke the monitor.
    """

    least: float = 0.0
    most: float = math.inf


class Monitor(ABC):
    """Makes one pass after another until it is cancelled.

    Args:
        failures: logs and counts passes that failed.
        woken: set by others to end the pause: what the monitor looks after may have changed.
    """

    failed_event: ClassVar[str]
    """The log event of a pass that failed."""
    expected: ClassVar[tuple[type[Exception], ...]] = ()
    """Exceptions that end the monitor, and the daemon with it."""
    first_pause: float = 0.1
    longest_pause: float = 2.0
    """Seconds between two passes while they fail."""

    def __init__(self, failures: Failures, woken: WakeUp | None = None) -> None:
        self._failures = failures
        self._woken = WakeUp() if woken is None else woken

    async def run(self) -> None:
        """Make passes until cancelled; one that fails is followed by another after a pause."""
        backoff = Backoff(self.first_pause, self.longest_pause)
        while True:
            with self._failures.attempt(self.failed_event, expected=self.expected) as attempt:
                pause = await self.run_once()
                backoff.succeeded()
            if attempt.failed:
                self.after_failure(attempt)
                seconds = backoff.next_pause()
                pause = Pause(seconds, seconds)
            await anyio.sleep(pause.least)
            if await self._woken.wait(pause.most - pause.least):
                self.after_wake_up()

    @abstractmethod
    async def run_once(self) -> Pause:
        """Make one pass and return for how long to wait then."""

    def after_wake_up(self) -> None:  # noqa: B027 - few monitors care
        """Note that the next pass was requested."""

    def after_failure(self, attempt: Attempt) -> None:  # noqa: B027 - few monitors care
        """Note a failed pass."""
