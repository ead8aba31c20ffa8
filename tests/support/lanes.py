"""In which lane a test runs, and how much of what it repeats it does there.

`make test` checks every promise, and each on the newest PostgreSQL and the oldest that clones can
be rewound on. `make test-slow` repeats what is marked `slow` or `long`: on every version, and with
more rounds. So whatever runs in the slow lane alone is a longer form of something in the other.
"""

from __future__ import annotations

import os

LONG_LANE = "CLONEPOOL_TEST_LONG"
"""Environment variable, not empty in `make test-slow`."""
IS_LONG = bool(os.environ.get(LONG_LANE))


def rounds(short: int, long: int) -> int:
    """Return how many rounds a test marked `long` takes in this lane."""
    return long if IS_LONG else short


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
