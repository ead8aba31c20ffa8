"""The transition table of a fill: an event that it does not allow raises and changes nothing."""

from __future__ import annotations

import itertools

import pytest

from clonepool.core.clone import IllegalTransitionError
from clonepool.core.fills import TRANSITIONS, Fill, FillEvent, Stage
from support.pools import request

LEGAL = {(stage, event) for stage, steps in TRANSITIONS.items() for event in steps}


@pytest.mark.parametrize(("stage", "event"), sorted(LEGAL))
def test_a_legal_event_moves_the_fill_to_the_tables_stage(stage: Stage, event: FillEvent) -> None:
    fill = Fill("shop", request(1), stage, 9.0)
    assert fill.apply(event) is TRANSITIONS[stage][event] is fill.stage
    assert fill.expires_at is None


@pytest.mark.parametrize(
    ("stage", "event"), sorted(set(itertools.product(Stage, FillEvent)) - LEGAL)
)
def test_an_illegal_event_raises_and_changes_nothing(stage: Stage, event: FillEvent) -> None:
    fill = Fill("shop", request(1), stage, 9.0)
    with pytest.raises(IllegalTransitionError, match=f"shop is {stage}: {event}"):
        fill.apply(event)
    assert (fill.stage, fill.expires_at) == (stage, 9.0)
