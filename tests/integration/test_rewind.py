"""A rewound clone equals its template, by an oracle that shares no code with the rewind."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from support import lanes
from support.kitchen_sink import EITHER, NOT_REWINDABLE, REWINDABLE

if TYPE_CHECKING:
    from support.rewinding import RewindHarness

pytestmark = [pytest.mark.anyio, pytest.mark.long]
ROUNDS = lanes.rounds(standard=15, slow=80)


async def test_whatever_can_be_undone_is_undone_again_and_again(harness: RewindHarness) -> None:
    clone = harness.clone
    for round_number in range(lanes.rounds(standard=1, slow=3)):
        for name, script in REWINDABLE.items():
            assert await harness.lease(script), f"{name} in round {round_number}: {harness.why}"
            assert await harness.look() == harness.pristine, name
    assert harness.clone == clone


async def test_whatever_cannot_be_undone_is_recreated(harness: RewindHarness) -> None:
    for name, script in NOT_REWINDABLE.items():
        assert not await harness.lease(script), f"{name} was rewound"
        assert await harness.look() == harness.pristine, name


async def test_what_is_done_in_any_order_is_undone_or_recreated(harness: RewindHarness) -> None:
    seed = random.SystemRandom().randrange(2**32)
    choice = random.Random(seed)
    scripts = list({**REWINDABLE, **NOT_REWINDABLE, **EITHER}.items())
    for _ in range(ROUNDS):
        some = choice.sample(scripts, choice.randint(1, 4))
        await harness.lease(";\n".join(script for _, script in some))
        found = await harness.look()
        assert found == harness.pristine, f"seed {seed}: {[name for name, _ in some]}"
