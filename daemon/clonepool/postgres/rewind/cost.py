"""Whether rewinding a clone costs less than making a new one, by what both took of late."""

from __future__ import annotations

import msgspec

_FIRST_SECONDS_A_STEP = 20e-6
"""What a page or a row is reckoned to take before any was measured."""
_WEIGHT = 0.25
"""Of what was measured last, in the average."""
_FORGIVEN = 0.9
"""What refuses is tried again some time: a slow hour must not be the end of rewinding."""
_FEWEST_STEPS = 200
"""Of a rewind that tells what a step takes; in smaller ones other things take longer."""
_STEPS_A_ROW = 2
_FREE_SECONDS = 0.01
"""What takes less is not worth asking about: making a clone also has PostgreSQL checkpoint."""


class Economy(msgspec.Struct):
    """What rewinding and recreating clones of one template take.

    Attributes:
        seconds_a_step: of rewinding, a page that is looked at being one, and a row that is written
            two.
        recreate_seconds: of dropping a clone and making another; None when that is not known.
    """

    seconds_a_step: float = _FIRST_SECONDS_A_STEP
    recreate_seconds: float | None = None

    def recreated(self, seconds: float) -> None:
        """Take in what making a clone took."""
        before = self.recreate_seconds
        self.recreate_seconds = seconds if before is None else _average(before, seconds)

    def rewound(self, pages: int, rows: int, seconds: float) -> None:
        """Take in what a rewind took."""
        steps = pages + _STEPS_A_ROW * rows
        if steps >= _FEWEST_STEPS:
            self.seconds_a_step = _average(self.seconds_a_step, seconds / steps)

    def is_worth_it(self, pages: int, rows: int = 0) -> bool:
        """Say whether a rewind of so many pages and rows is expected to take less."""
        seconds = (pages + _STEPS_A_ROW * rows) * self.seconds_a_step
        if self.recreate_seconds is None or seconds <= max(self.recreate_seconds, _FREE_SECONDS):
            return True
        self.seconds_a_step *= _FORGIVEN
        return False


def _average(before: float, now: float) -> float:
    return before + _WEIGHT * (now - before)
