from __future__ import annotations

import pytest

from clonepool.core.sizing import clones_to_create


@pytest.mark.parametrize(
    ("min_ready", "waiting", "ready", "coming", "room", "expected"),
    [
        (4, 0, 0, 0, 10, 4),
        (4, 0, 4, 0, 10, 0),
        (4, 0, 1, 2, 10, 1),
        (4, 3, 0, 4, 10, 3),
        (4, 3, 0, 4, 1, 1),
        (4, 0, 9, 0, 10, 0),
        (0, 1, 0, 0, 10, 1),
        (4, 5, 0, 0, -2, 0),
    ],
)
def test_what_is_missing_is_made_as_far_as_there_is_room(
    min_ready: int, waiting: int, ready: int, coming: int, room: int, expected: int
) -> None:
    got = clones_to_create(
        min_ready=min_ready, waiting=waiting, ready=ready, coming=coming, room=room
    )
    assert got == expected
