"""When a drop may begin, decided without a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from clonepool.core import events
from clonepool.core.decisions import Drop
from clonepool.core.drop_schedule import LONGEST_SECONDS, DropSchedule
from support.pools import creates, finish_creates, grants, make_fleet, recycles, request

if TYPE_CHECKING:
    from clonepool.core.fleet import Fleet

FEW = 8
"""A limit of clones with which four drops may wait."""


def schedule_of(fleet: Fleet, *, storage_short: bool = False) -> DropSchedule:
    return DropSchedule(fleet, FEW, lambda: storage_short)


def wait(schedule: DropSchedule, count: int, at: float = 100.0) -> list[str]:
    """Let so many drops wait, and return the names of their clones in order."""
    clones = [f"clone{number}" for number in range(count)]
    for clone in clones:
        schedule.ask(clone, at)
    return clones


def may_begin(schedule: DropSchedule, template: str, asked_at: float, now: float) -> bool:
    """Say whether the only drop that waits may begin."""
    schedule.ask("only", asked_at)
    said = schedule.may_begin(template, "only", now)
    schedule.withdraw("only")
    return said


def busy_fleet() -> Fleet:
    """Return a fleet that makes a clone, which is far below all limits."""
    fleet, decisions = make_fleet(blog=(1, 9), shop=(0, 9))
    assert creates(decisions)
    return fleet


def test_when_nothing_is_under_way_a_drop_begins_at_once() -> None:
    fleet, decisions = make_fleet(blog=(1, 4))
    finish_creates(fleet, decisions)
    schedule = schedule_of(fleet)
    schedule.took(5.0)
    schedule.began("another")
    schedule.ended("another", 99.0, done=True)
    assert may_begin(schedule, "blog", 100.0, 100.0)


def test_while_clones_are_made_a_drop_waits_and_not_without_end() -> None:
    schedule = schedule_of(busy_fleet())
    assert not may_begin(schedule, "blog", 100.0, 104.0)
    assert may_begin(schedule, "blog", 100.0, 100.0 + LONGEST_SECONDS)


def test_while_a_test_waits_a_drop_of_any_template_waits_too() -> None:
    fleet, _ = make_fleet(ready_templates=False, blog=(1, 9), shop=(1, 9))
    fleet.acquire("blog", request(1), 0.0)
    assert not may_begin(schedule_of(fleet), "shop", 100.0, 104.0)


def test_when_storage_is_short_drops_begin_at_once() -> None:
    schedule = schedule_of(busy_fleet(), storage_short=True)
    assert may_begin(schedule, "blog", 100.0, 100.0)


def test_a_long_backlog_is_worked_off_one_at_a_time_and_in_order() -> None:
    schedule = schedule_of(busy_fleet())
    first, *others = wait(schedule, 4)
    assert not schedule.may_begin("blog", first, 100.0)
    schedule.ask("clone4", 100.0)
    assert schedule.may_begin("blog", first, 100.0)
    assert not any(schedule.may_begin("blog", each, 100.0) for each in others)
    schedule.began(first)
    schedule.ask("clone5", 100.0)
    assert not schedule.may_begin("blog", others[0], 100.0)
    schedule.ended(first, 101.0, done=True)
    assert schedule.may_begin("blog", others[0], 101.0), "the cost is not known yet"


def test_dear_drops_take_a_quarter_of_the_time_at_most() -> None:
    schedule = schedule_of(busy_fleet())
    first, second, *_ = wait(schedule, 6, 90.0)
    schedule.began(first)
    schedule.took(0.5)
    schedule.ended(first, 101.0, done=True)
    assert not schedule.may_begin("blog", second, 102.4)
    assert schedule.may_begin("blog", second, 102.5)


def test_however_dear_drops_are_one_is_never_put_off_much_longer() -> None:
    schedule = schedule_of(busy_fleet())
    first, second = wait(schedule, 2, 50.0)
    schedule.began(first)
    schedule.took(600.0)
    schedule.ended(first, 100.0, done=True)
    assert schedule.may_begin("blog", second, 100.0 + LONGEST_SECONDS)


def test_a_drop_that_failed_has_waited_since_it_asked_first() -> None:
    schedule = schedule_of(busy_fleet())
    (clone,) = wait(schedule, 1, 100.0)
    schedule.began(clone)
    schedule.ended(clone, 111.0, done=False)
    schedule.ask(clone, 112.0)
    assert schedule.may_begin("blog", clone, 112.0)


def test_a_drop_that_failed_lets_the_others_go_first() -> None:
    schedule = schedule_of(busy_fleet())
    first, second = wait(schedule, 2, 100.0)
    schedule.began(first)
    schedule.ended(first, 111.0, done=False)
    schedule.ask(first, 112.0)
    assert schedule.is_first(second)
    assert schedule.may_begin("blog", second, 112.0)


def test_a_used_clone_that_is_in_the_way_of_a_fresh_one_is_dropped_at_once() -> None:
    fleet, decisions = make_fleet(blog=(1, 2), shop=(1, 9))
    finish_creates(fleet, [made for made in creates(decisions) if made.template == "blog"])
    granted = []
    for waiter in (1, 2):
        decisions = fleet.acquire("blog", request(waiter), 0.0)
        granted += grants([*decisions, *finish_creates(fleet, decisions)])
    for grant in granted:
        for recycle in recycles(fleet.handle(events.Release(grant.lease.token), 0.0)):
            fleet.handle(events.CloneRewound("blog", recycle.clone), 0.0)
    decisions = fleet.acquire("blog", structs.replace(request(3), fresh=True), 0.0)
    assert any(isinstance(each, Drop) for each in decisions)
    schedule = schedule_of(fleet)
    assert schedule.is_urgent("blog", 0.0)
    assert may_begin(schedule, "blog", 0.0, 0.0)


def test_when_the_pools_come_to_rest_drops_begin() -> None:
    fleet, decisions = make_fleet(blog=(1, 9))
    schedule = schedule_of(fleet)
    assert not may_begin(schedule, "blog", 0.0, 0.0)
    finish_creates(fleet, decisions)
    assert may_begin(schedule, "blog", 0.0, 0.01)


def test_an_orderly_stop_waits_for_no_drop_to_be_put_off() -> None:
    fleet = busy_fleet()
    fleet.handle(events.Stop(), 0.0)
    assert may_begin(schedule_of(fleet), "blog", 0.0, 0.0)


def test_a_server_that_is_away_is_no_reason_to_wait() -> None:
    fleet = busy_fleet()
    fleet.handle(events.ServerLost("gone"), 0.0)
    assert may_begin(schedule_of(fleet), "blog", 0.0, 0.0)


def test_where_a_limit_is_reached_drops_free_the_place_that_somebody_waits_for() -> None:
    fleet, decisions = make_fleet(blog=(1, 2), shop=(1, 9))
    finish_creates(fleet, [made for made in creates(decisions) if made.template == "blog"])
    for waiter in (1, 2, 3):
        finish_creates(fleet, fleet.acquire("blog", request(waiter), 0.0))
    schedule = schedule_of(fleet)
    assert may_begin(schedule, "blog", 0.0, 0.0)
    assert schedule.is_urgent("blog", 0.0)
    assert not may_begin(schedule, "shop", 0.0, 0.0)


def test_a_refill_that_finds_no_place_is_reason_enough() -> None:
    fleet, decisions = make_fleet(blog=(2, 2), shop=(1, 9))
    finish_creates(fleet, [made for made in creates(decisions) if made.template == "blog"])
    fleet.acquire("blog", request(1), 0.0)
    schedule = schedule_of(fleet)
    assert schedule.is_urgent("blog", 0.0)
    assert not schedule.is_urgent("shop", 0.0)


def test_where_the_common_limit_is_reached_every_drop_frees_a_place() -> None:
    fleet, decisions = make_fleet(3, blog=(1, 9), shop=(1, 9))
    finish_creates(fleet, decisions)
    granted = []
    for waiter in (1, 2, 3):
        decisions = fleet.acquire("blog", request(waiter), 0.0)
        granted += grants([*decisions, *finish_creates(fleet, decisions)])
    assert recycles(fleet.handle(events.Release(granted[0].lease.token), 0.0))
    schedule = schedule_of(fleet)
    assert schedule.is_urgent("blog", 0.0)
    assert schedule.is_urgent("shop", 0.0)
