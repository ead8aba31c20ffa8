"""Whether rewinding a clone takes less time than making a new one, from recent measurements."""

from __future__ import annotations

import msgspec

_FIRST_SECONDS_PER_STEP = 20e-6
"""Time assumed for one step before any was measured."""
_WEIGHT = 0.25
"""Weight of the latest measurement in the moving average."""
_REFUSAL_DISCOUNT = 0.9
"""Factor on the time per step at each refusal, so that rewinding is tried again in the end."""
_FEWEST_STEPS = 200
"""Least number of steps of a rewind that is measured; in smaller ones, fixed costs prevail."""
_STEPS_PER_ROW = 2
_FREE_SECONDS = 0.01
"""Expected time up to which a clone is always rewound: making one also causes a checkpoint."""


class Costs(msgspec.Struct):
    """How long rewinding and recreating the clones of one generation take.

    Attributes:
        seconds_per_step: of a rewind. A page that is read is one step, a row that is written two.
        recreate_seconds: of making a clone; None until one was timed.
    """

    seconds_per_step: float = _FIRST_SECONDS_PER_STEP
    recreate_seconds: float | None = None

    def record_recreate(self, seconds: float) -> None:
        """Record how long making a clone took."""
        before = self.recreate_seconds
        self.recreate_seconds = seconds if before is None else _average(before, seconds)

    def record_rewind(self, pages: int, rows: int, seconds: float) -> None:
        """Record how long a rewind took."""
        steps = pages + _STEPS_PER_ROW * rows
        if steps >= _FEWEST_STEPS:
            self.seconds_per_step = _average(self.seconds_per_step, seconds / steps)

    def favor_rewind(self, pages: int, rows: int = 0) -> bool:
        """Say whether rewinding so many pages and rows should be faster than a new clone."""
        seconds = (pages + _STEPS_PER_ROW * rows) * self.seconds_per_step
        if self.recreate_seconds is None or seconds <= max(self.recreate_seconds, _FREE_SECONDS):
            return True
        self.seconds_per_step *= _REFUSAL_DISCOUNT
        return False


def _average(before: float, now: float) -> float:
    return before + _WEIGHT * (now - before)
