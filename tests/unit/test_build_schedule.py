"""When builds begin, to the second, which the state machine test does not check."""

from __future__ import annotations

from clonepool.core.build_decisions import AnswerBuild, BuildStep, Look, StartBuild
from clonepool.core.build_entries import Rule
from clonepool.core.build_schedule import (
    LONGEST_UNREST_SECONDS,
    MOST_REPEATS,
    QUIET_SECONDS,
    BuildSchedule,
)
from clonepool.errors import ClonepoolError


def plan(schedule: BuildSchedule, now: float) -> list[BuildStep]:
    return schedule.plan(now, lambda _: 0)


def started(schedule: BuildSchedule, now: float) -> list[str]:
    """Let looks find nothing, and return the builds that begin."""
    steps = plan(schedule, now)
    if any(isinstance(step, Look) for step in steps):
        steps += plan(schedule, now)
    return [step.template for step in steps if isinstance(step, StartBuild)]


def built() -> BuildSchedule:
    """Return a schedule with one template, which is built."""
    schedule = BuildSchedule({"shop": Rule()}, 2)
    assert started(schedule, 0.0) == ["shop"]
    schedule.built("shop", ("f1", "g1"), [], 1.0)
    return schedule


def test_a_build_begins_only_after_a_look_that_finds_nothing_new() -> None:
    schedule, now = built(), 10.0
    schedule.looked("shop", "f2", ["edited"], now)
    for number in range(3):
        assert plan(schedule, now) == []
        now += QUIET_SECONDS
        assert isinstance(plan(schedule, now)[0], Look)
        schedule.looked("shop", f"f3 {number}", ["edited"], now)  # the look found this
    now += QUIET_SECONDS
    assert started(schedule, now) == ["shop"]


def test_a_build_begins_in_the_end_although_every_look_finds_something() -> None:
    schedule, now, number = built(), 10.0, 0
    schedule.looked("shop", "f2", ["edited"], now)
    while not any(isinstance(step, StartBuild) for step in plan(schedule, now)):
        number += 1
        schedule.looked("shop", f"f3 {number}", ["edited"], now)
        now += QUIET_SECONDS / 2
    assert now >= 10.0 + LONGEST_UNREST_SECONDS
    assert now < 10.0 + LONGEST_UNREST_SECONDS + QUIET_SECONDS


def test_a_build_that_somebody_asks_for_waits_for_no_quiet() -> None:
    schedule = built()
    schedule.looked("shop", "f2", ["edited"], 10.0)
    schedule.ask("shop", 1, 10.0, anew=False)
    assert started(schedule, 10.0) == ["shop"]


def test_a_build_answers_the_requests_that_came_before_it_and_no_others() -> None:
    schedule = built()
    schedule.ask("shop", 1, 10.0, anew=True)
    assert started(schedule, 10.0) == ["shop"]
    schedule.ask("shop", 2, 11.0, anew=False)
    outcomes = schedule.built("shop", ("f1", "g2"), [], 12.0)
    assert [each for each in outcomes if isinstance(each, AnswerBuild)] == [
        AnswerBuild("shop", (1,), None, 2.0)
    ]
    assert started(schedule, 12.0) == ["shop"]


def test_a_template_that_changes_while_it_is_built_keeps_its_place_so_many_times() -> None:
    schedule = BuildSchedule({"shop": Rule(), "other": Rule()}, 1)
    assert started(schedule, 0.0) == ["shop"]
    now = 0.0
    for _ in range(MOST_REPEATS):
        schedule.built("shop", ("f", "g"), ["edited"], now)
        assert plan(schedule, now) == []
        now += QUIET_SECONDS
        assert started(schedule, now) == ["shop"]
    schedule.built("shop", ("f", "g"), ["edited"], now)
    assert started(schedule, now + QUIET_SECONDS) == ["other"]


def test_a_build_that_fails_beside_another_is_tried_again_alone() -> None:
    schedule = BuildSchedule({"shop": Rule(), "other": Rule()}, 2)
    assert started(schedule, 0.0) == ["shop", "other"]
    assert schedule.is_disturbed("shop")
    schedule.disturbed("shop", 1.0)
    assert started(schedule, 1.0) == []
    schedule.built("other", ("f", "g"), [], 2.0)
    assert started(schedule, 2.0) == ["shop"]
    assert not schedule.is_disturbed("shop")


def test_what_failed_is_built_again_when_its_sources_change() -> None:
    schedule = built()
    schedule.ask("shop", 1, 10.0, anew=True)
    assert started(schedule, 10.0) == ["shop"]
    error = ClonepoolError("nonsense")
    outcomes = schedule.failed("shop", error, "f2", 11.0, tried=True)
    assert AnswerBuild("shop", (1,), error, 1.0) in outcomes
    assert schedule.looked("shop", "f2", [], 12.0) == []
    assert schedule.looked("shop", "f3", ["edited"], 12.0)
    assert started(schedule, 13.0) == ["shop"]


def test_an_edit_after_a_build_that_was_repeated_is_waited_out_as_any_other() -> None:
    schedule = built()
    schedule.looked("shop", "f2", ["edited"], 10.0)
    now = 10.0 + QUIET_SECONDS
    assert started(schedule, now) == ["shop"]
    schedule.built("shop", ("f2", "g2"), ["edited"], now)
    plan(schedule, now)
    now += QUIET_SECONDS
    assert started(schedule, now) == ["shop"]
    plan(schedule, now)
    schedule.built("shop", ("f3", "g3"), [], now)
    plan(schedule, now)
    schedule.looked("shop", "f4", ["edited"], 100.0)
    assert plan(schedule, 100.0) == []
    assert isinstance(plan(schedule, 100.0 + QUIET_SECONDS)[0], Look)
