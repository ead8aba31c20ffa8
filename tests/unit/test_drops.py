"""When a drop may begin, decided without a clock."""

from __future__ import annotations

import pytest

from clonepool.service.jobs.drop_schedule import LONGEST_SECONDS, Governor, Scene, look_at
from support.pools import creates, finish_creates, grants, make_fleet, recycles, request

BUSY, IDLE = Scene(busy=True), Scene(busy=False)


def test_when_nothing_is_under_way_a_drop_begins_at_once() -> None:
    governor = Governor(most=2)
    governor.learn(5.0)
    governor.ended(99.0)
    assert governor.pause("blog", 100.0, IDLE, 5, 100.0) == 0.0


def test_while_a_test_waits_a_drop_waits_too_and_not_for_ever() -> None:
    governor = Governor(most=2)
    assert governor.pause("blog", 100.0, BUSY, 1, 104.0) == LONGEST_SECONDS - 4.0
    assert governor.pause("blog", 100.0, BUSY, 1, 100.0 + LONGEST_SECONDS) == 0.0


def test_a_drop_that_frees_a_place_somebody_wants_begins_at_once() -> None:
    governor = Governor(most=2)
    scene = Scene(busy=True, urgent=frozenset({"blog"}))
    governor.began()
    assert governor.pause("blog", 100.0, scene, 1, 100.0) == 0.0
    assert governor.pause("shop", 100.0, scene, 1, 100.0) > 0.0


def test_when_storage_is_short_drops_begin_at_once() -> None:
    assert Governor(most=2).pause("blog", 100.0, Scene(busy=True, short=True), 1, 100.0) == 0.0


def test_a_long_backlog_is_worked_off_one_at_a_time() -> None:
    governor = Governor(most=2)
    assert governor.pause("blog", 100.0, BUSY, 2, 100.0) > 0.0
    assert governor.pause("blog", 100.0, BUSY, 3, 100.0) == 0.0
    governor.began()
    assert governor.pause("blog", 100.0, BUSY, 3, 100.0) == float("inf")
    governor.ended(101.0)
    assert governor.pause("blog", 100.0, BUSY, 3, 101.0) == 0.0, "the cost is not known yet"


def test_dear_drops_take_a_quarter_of_the_time_at_most() -> None:
    governor = Governor(most=2)
    governor.began()
    governor.learn(0.5)
    governor.ended(101.0)
    assert governor.pause("blog", 90.0, BUSY, 3, 101.0) == 1.5
    assert governor.pause("blog", 90.0, BUSY, 3, 102.5) == 0.0


def test_the_cost_follows_the_latest_drops() -> None:
    governor = Governor(most=2)
    governor.learn(4.0)
    assert governor.cost == 4.0
    for _ in range(20):
        governor.learn(0.01)
    assert governor.cost == pytest.approx(0.01, rel=0.5)


def test_however_dear_drops_are_one_is_never_put_off_much_longer() -> None:
    governor = Governor(most=2)
    governor.began()
    governor.learn(600.0)
    governor.ended(100.0)
    assert governor.pause("blog", 50.0, BUSY, 3, 100.0) == LONGEST_SECONDS


def test_a_scene_is_busy_while_a_test_waits_or_a_clone_is_made() -> None:
    fleet, decisions = make_fleet(blog=(1, 4))
    assert look_at(fleet) == Scene(busy=True)
    finish_creates(fleet, decisions)
    assert look_at(fleet) == Scene(busy=False)
    fleet.acquire("blog", request(1), 0.0)
    finish_creates(fleet, fleet.acquire("blog", request(2), 0.0))
    assert look_at(fleet).busy
    assert not look_at(fleet).urgent
    fleet.stop()
    assert not look_at(fleet).busy, "an orderly stop waits for no drop"


def test_a_server_that_is_away_is_no_reason_to_wait() -> None:
    fleet, _ = make_fleet(blog=(1, 4))
    fleet.pause()
    assert not look_at(fleet).busy


def test_where_a_limit_is_reached_drops_free_the_place_that_somebody_waits_for() -> None:
    fleet, decisions = make_fleet(blog=(1, 2), shop=(1, 9))
    finish_creates(fleet, decisions)
    for waiter in (1, 2, 3):
        finish_creates(fleet, fleet.acquire("blog", request(waiter), 0.0))
    assert look_at(fleet).urgent == {"blog"}


def test_a_refill_that_finds_no_place_is_reason_enough() -> None:
    fleet, decisions = make_fleet(blog=(2, 2), shop=(1, 9))
    finish_creates(fleet, [made for made in creates(decisions) if made.template == "blog"])
    fleet.acquire("blog", request(1), 0.0)
    assert look_at(fleet) == Scene(busy=True, urgent=frozenset({"blog"}))


def test_where_the_common_limit_is_reached_every_drop_frees_a_place() -> None:
    fleet, decisions = make_fleet(3, blog=(1, 9), shop=(1, 9))
    finish_creates(fleet, decisions)
    granted = []
    for waiter in (1, 2, 3):
        decisions = fleet.acquire("blog", request(waiter), 0.0)
        granted += grants([*decisions, *finish_creates(fleet, decisions)])
    assert recycles(fleet.release(granted[0].lease.token))
    assert look_at(fleet).urgent == {"blog", "shop"}
