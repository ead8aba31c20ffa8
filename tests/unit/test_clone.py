from __future__ import annotations

import itertools

import pytest

from clonepool.core.clone import TRANSITIONS, Clone, CloneEvent, IllegalTransitionError, State

ALL = set(itertools.product(State, CloneEvent))
LEGAL = {(state, event) for state, steps in TRANSITIONS.items() for event in steps}


@pytest.mark.parametrize(("state", "event"), sorted(LEGAL))
def test_a_legal_event_moves_the_clone_to_the_tables_state(state: State, event: CloneEvent) -> None:
    clone = Clone("x", state)
    assert clone.apply(event) is TRANSITIONS[state][event] is clone.state


@pytest.mark.parametrize(("state", "event"), sorted(ALL - LEGAL))
def test_an_illegal_event_raises_and_changes_nothing(state: State, event: CloneEvent) -> None:
    clone = Clone("x", state)
    with pytest.raises(IllegalTransitionError, match=f"x is {state}: {event}"):
        clone.apply(event)
    assert clone.state is state


def test_a_leased_clone_cannot_be_dropped() -> None:
    assert CloneEvent.DROP not in TRANSITIONS[State.LEASED]


def test_every_state_but_gone_leads_to_gone() -> None:
    for state in set(State) - {State.GONE}:
        reached, frontier = set[State](), {state}
        while frontier:
            reached |= frontier
            frontier = {after for s in frontier for after in TRANSITIONS[s].values()} - reached
        assert State.GONE in reached, state


def test_only_a_ready_clone_can_be_granted() -> None:
    assert [s for s, steps in TRANSITIONS.items() if CloneEvent.GRANT in steps] == [State.READY]
