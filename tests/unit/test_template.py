"""The transition table of a template's conditions, and the properties of each."""

from __future__ import annotations

import itertools

import pytest

from clonepool.core.clone import IllegalTransitionError
from clonepool.core.template import (
    COVERED,
    TRANSITIONS,
    Condition,
    Template,
    TemplateEvent,
)
from clonepool.errors import ClonepoolError

Row = tuple[Condition, TemplateEvent]
LEGAL = {(condition, event) for condition, steps in TRANSITIONS.items() for event in steps}
NOT_COVERED = {(Condition.DRAINING, TemplateEvent.LOSE)}
"""Legal if the condition that is covered allows it."""
BOOM = ClonepoolError("boom")


def drained(underlying: Condition) -> Template:
    template = Template("shop", underlying)
    template.apply(TemplateEvent.DRAIN)
    return template


def code(template: Template, *, continues: bool = False) -> str:
    refusal = template.refusal(continues=continues)
    return "" if refusal is None else refusal.code


@pytest.mark.parametrize(("condition", "event"), sorted(LEGAL - NOT_COVERED))
def test_a_legal_event_moves_the_template_to_the_tables_condition(
    condition: Condition, event: TemplateEvent
) -> None:
    template = Template("shop", condition)
    after = TRANSITIONS[condition][event] or template.underlying
    assert template.takes(event)
    assert template.apply(event) is template.condition is after


@pytest.mark.parametrize(
    ("condition", "event"), sorted(set(itertools.product(Condition, TemplateEvent)) - LEGAL)
)
def test_an_illegal_event_raises_and_changes_nothing(
    condition: Condition, event: TemplateEvent
) -> None:
    template = Template("shop", condition)
    template.generation, template.failure, template.obstacle = "g1", BOOM, BOOM
    assert not template.takes(event)
    with pytest.raises(IllegalTransitionError, match=f"shop is {condition}: {event}"):
        template.apply(event, generation="g2", failure=None)
    assert template.condition is template.underlying or condition is Condition.DRAINING
    assert (template.condition, template.generation) == (condition, "g1")
    assert template.failure is template.obstacle is BOOM


@pytest.mark.parametrize("underlying", COVERED)
def test_lifting_a_drain_shows_the_condition_that_it_covered(underlying: Condition) -> None:
    template = drained(underlying)
    assert (template.condition, template.underlying) == (Condition.DRAINING, underlying)
    assert template.apply(TemplateEvent.LIFT) is underlying


def test_a_build_that_ends_during_a_drain_shows_when_the_drain_is_lifted() -> None:
    template = drained(Condition.STALE)
    assert template.apply(TemplateEvent.BUILT, generation="g2") is Condition.DRAINING
    assert template.can_create
    assert template.apply(TemplateEvent.LIFT) is Condition.READY
    assert template.generation == "g2"


@pytest.mark.parametrize("underlying", COVERED)
def test_a_generation_can_be_lost_during_a_drain_if_there_is_one(underlying: Condition) -> None:
    template = drained(underlying)
    assert template.takes(TemplateEvent.LOSE) is (underlying is Condition.READY)
    if underlying is not Condition.READY:
        with pytest.raises(IllegalTransitionError):
            template.apply(TemplateEvent.LOSE)
    assert template.underlying is underlying


def test_every_condition_leads_to_retired_and_none_out_of_it() -> None:
    for condition in set(Condition) - {Condition.RETIRED}:
        assert TRANSITIONS[condition][TemplateEvent.RETIRE] is Condition.RETIRED
    assert not TRANSITIONS[Condition.RETIRED]


@pytest.mark.parametrize(
    ("condition", "granting", "creating", "building", "over"),
    [
        (Condition.BUILDING, True, False, True, False),  # clones of a lost generation are left
        (Condition.READY, True, True, False, False),
        (Condition.STALE, False, False, True, False),
        (Condition.FAILED, False, False, False, False),
        (Condition.STOPPING, False, False, False, True),
        (Condition.RETIRED, False, False, False, True),
    ],
)
def test_what_can_be_had_follows_from_the_condition(
    condition: Condition, granting: bool, creating: bool, building: bool, over: bool
) -> None:
    templates = [Template("shop", condition)]
    if condition in COVERED:
        templates.append(drained(condition))
    for template in templates:
        assert template.is_granting is granting
        assert template.can_create is creating
        assert template.is_being_built is building
        assert template.is_over is over
        assert template.is_stale is (condition is Condition.STALE)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Condition.BUILDING, ""),
        (Condition.READY, ""),
        (Condition.STALE, ""),
        (Condition.FAILED, "template_failed"),
        (Condition.STOPPING, "shutting_down"),
        (Condition.RETIRED, "unknown_template"),
    ],
)
def test_a_refusal_says_why_there_is_nothing_to_wait_for(
    condition: Condition, expected: str
) -> None:
    template = Template("shop", condition)
    assert code(template) == code(template, continues=True) == expected


def test_a_drain_refuses_new_leases_and_leaves_those_alone_that_go_on() -> None:
    template = drained(Condition.READY)
    assert code(template) == "draining"
    assert code(template, continues=True) == ""


def test_a_drain_does_not_hide_that_the_build_failed() -> None:
    template = drained(Condition.FAILED)
    assert code(template) == code(template, continues=True) == "template_failed"


def test_a_refusal_names_the_cause_of_the_failure() -> None:
    template = Template("shop")
    template.apply(TemplateEvent.FAIL, failure=BOOM)
    assert "boom" in str(template.refusal())


def test_a_failure_is_forgotten_when_the_template_is_built_or_changed() -> None:
    for event in (TemplateEvent.BUILT, TemplateEvent.CHANGE):
        template = Template("shop")
        template.apply(TemplateEvent.FAIL, failure=BOOM)
        assert template.failure is BOOM
        template.apply(event)
        assert template.failure is None


def test_an_obstacle_is_noted_while_a_build_is_due_and_forgotten_when_it_ends() -> None:
    template, noted = Template("shop"), []
    for event in (TemplateEvent.LIFT, TemplateEvent.BUILT, TemplateEvent.LIFT):
        if template.takes(event):
            template.apply(event, generation="g1")
            noted.append(template.obstacle)
        template.postpone(BOOM)
        noted.append(template.obstacle)
    assert noted == [BOOM, None, None, None]


@pytest.mark.parametrize("condition", COVERED)
def test_the_phase_on_the_wire_knows_no_drain_and_nothing_stale(condition: Condition) -> None:
    expected = Condition.BUILDING if condition is Condition.STALE else condition
    assert Template("shop", condition).phase is drained(condition).phase is expected
