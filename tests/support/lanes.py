"""In which lane a test runs, and how often it repeats things there.

`make test` checks every promise, and each on the newest PostgreSQL and the oldest that clones can
be rewound on. `make test-slow` repeats what is marked `slow` or `long`: on every version, and with
more rounds. So a test that runs only in the slow lane is a longer form of one in the standard lane.
`make test-fast` is what takes seconds, without servers and with few examples.
"""

from __future__ import annotations

import os
from enum import StrEnum


class Lane(StrEnum):
    """How thorough the tests are."""

    FAST = "fast"
    STANDARD = "standard"
    SLOW = "slow"


VARIABLE = "CLONEPOOL_TEST_LANE"
"""Environment variable: one of the lanes; `standard` when it is not set."""
LANE = Lane(os.environ.get(VARIABLE) or "standard")
_SHARE_OF_EXAMPLES = {Lane.FAST: 0.2, Lane.STANDARD: 1.0, Lane.SLOW: 10.0}


def rounds(standard: int, slow: int) -> int:
    """Return how many rounds a test marked `long` takes in this lane."""
    return slow if LANE is Lane.SLOW else standard


def examples(standard: int) -> int:
    """Return how many examples a property test tries in this lane."""
    return max(1, int(standard * _SHARE_OF_EXAMPLES[LANE]))


def is_slow(major: int, versions: list[int], oldest: int, marks: set[str]) -> bool:
    """Say whether a test that runs on every version belongs in the slow lane on this one.

    Args:
        major: the version.
        versions: all that there are, the newest first.
        oldest: the oldest that clones are rewound on.
        marks: what the test is marked with; `smoke` runs on all versions in both lanes.
    """
    if "smoke" in marks or major == versions[0]:
        return False
    return "long" in marks or major != oldest
