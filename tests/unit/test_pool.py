from __future__ import annotations

import msgspec
import pytest

from clonepool.core import events as ev
from clonepool.core.budget import HANDOVER_SECONDS
from clonepool.core.decisions import Park, Source
from clonepool.core.leases import token_digest
from clonepool.core.limits import Limits
from clonepool.errors import (
    AcquireTimeoutError,
    NotYourLeaseError,
    PoolFullError,
    ResourceError,
    ServerUnavailableError,
    ShuttingDownError,
    TemplateFailedError,
    UnknownTemplateError,
)
from support.pools import (
    creates,
    drops,
    finish_creates,
    grants,
    make_fleet,
    recycles,
    refusals,
    request,
)


def test_a_ready_clone_is_granted_at_once_and_replaced() -> None:
    fleet, first = make_fleet(blog=(2, 5))
    finish_creates(fleet, first)
    decisions = fleet.acquire("blog", request(1), 1.0)
    (grant,) = grants(decisions)
    assert (grant.source, grant.waited_seconds) == (Source.READY, 1.0)
    assert len(creates(decisions)) == 1


def test_waiters_are_served_in_the_order_in_which_they_came() -> None:
    fleet, first = make_fleet(blog=(0, 5))
    assert not first
    started = []
    for waiter in (1, 2, 3):
        started += creates(fleet.acquire("blog", request(waiter, at=waiter), waiter))
    served = []
    for create in started:
        served += [
            g.waiter for g in grants(fleet.handle(ev.CloneCreated("blog", create.clone), 4.0))
        ]
    assert served == [1, 2, 3]


def test_a_newcomer_does_not_overtake_the_waiters() -> None:
    fleet, _ = make_fleet(blog=(0, 1))
    (clone,) = creates(fleet.acquire("blog", request(1), 0.0))
    fleet.acquire("blog", request(2), 0.1)
    (grant,) = grants(fleet.handle(ev.CloneCreated("blog", clone.clone), 1.0))
    assert (grant.waiter, grant.source) == (1, Source.WAITED)


def test_a_request_is_refused_when_its_deadline_comes_and_not_before() -> None:
    fleet, _ = make_fleet(blog=(0, 1))
    fleet.acquire("blog", request(1, timeout=5.0), 0.0)
    assert fleet.next_timer() == 5.0
    assert not refusals(fleet.handle(ev.TimeCame(), 4.99))
    (refusal,) = refusals(fleet.handle(ev.TimeCame(), 5.0))
    assert isinstance(refusal.error, AcquireTimeoutError)
    assert not refusals(fleet.handle(ev.TimeCame(), 6.0))


def test_no_time_to_wait_means_an_answer_at_once() -> None:
    fleet, _ = make_fleet(blog=(0, 1))
    (refusal,) = refusals(fleet.acquire("blog", request(1, timeout=0.0), 0.0))
    assert refusal.error.code == "acquire_timeout"


def test_a_request_that_waits_for_a_build_that_cannot_go_on_is_told_why() -> None:
    fleet, _ = make_fleet(blog=(0, 1))
    pool = fleet.pools["blog"]
    fleet.handle(ev.TemplateLost("blog"), 0.0)
    fleet.handle(
        ev.BuildPostponed(
            "blog", ResourceError("no more (53300)", limit="max_connections", remedy="fewer")
        ),
        0.0,
    )
    (refusal,) = refusals(fleet.acquire("blog", request(1, timeout=0.0), 0.0))
    assert "cannot be built at the moment: no more (53300)" in str(refusal.error)
    assert refusal.error.remedy == "fewer"
    assert pool.snapshot().limited_by == "max_connections"
    assert pool.snapshot().last_error == "no more (53300) (fewer)"
    fleet.handle(ev.BuildPostponed("blog", None), 0.0)
    (refusal,) = refusals(fleet.acquire("blog", request(2, timeout=0.0), 0.0))
    assert "still being built" in str(refusal.error)
    assert pool.snapshot().limited_by == ""


def test_a_request_that_waits_while_the_server_is_away_is_told_in_which_way() -> None:
    fleet, _ = make_fleet(blog=(0, 1))
    fleet.handle(ev.ServerLost("pg_hba.conf rejects connection"), 0.0)
    (refusal,) = refusals(fleet.acquire("blog", request(1, timeout=0.0), 0.0))
    assert isinstance(refusal.error, ServerUnavailableError)
    assert "pg_hba.conf rejects" in str(refusal.error)


def test_a_full_pool_says_how_many_are_leased_and_by_whom() -> None:
    fleet, first = make_fleet(blog=(1, 1))
    finish_creates(fleet, first)
    fleet.acquire("blog", request(1, holder=7), 0.0)
    (refusal,) = refusals(fleet.acquire("blog", request(2, at=3.0, timeout=0.0), 3.0))
    assert isinstance(refusal.error, PoolFullError)
    assert "1 of 1 are leased, 1 by client 7 (the oldest for 3.0 s)" in str(refusal.error)
    assert "templates.blog.max_clones" in refusal.error.remedy


def test_a_full_fleet_says_how_many_are_leased_and_by_whom_whatever_their_template() -> None:
    fleet, first = make_fleet(2, blog=(2, 2), shop=(0, 2))
    finish_creates(fleet, first)
    for waiter in (1, 2):
        fleet.acquire("blog", request(waiter, holder=7), 0.0)
    (refusal,) = refusals(fleet.acquire("shop", request(3, at=3.0, timeout=0.0), 3.0))
    assert isinstance(refusal.error, PoolFullError)
    assert "2 of 2 are leased, 2 by client 7 (the oldest for 3.0 s)" in str(refusal.error)
    assert "all templates together" in str(refusal.error)
    assert "raise pool.max_clones" in refusal.error.remedy


def test_a_clone_that_comes_back_gives_its_place_to_the_request_that_has_waited_longer() -> None:
    fleet, first = make_fleet(1, rewinds=True, blog=(1, 1), shop=(0, 1))
    finish_creates(fleet, first)
    (grant,) = grants(fleet.acquire("blog", request(1), 0.0))
    fleet.acquire("shop", request(2, holder=2, at=1.0), 1.0)
    fleet.acquire("blog", request(3, holder=3, at=1.0 + 2 * HANDOVER_SECONDS), 2.0)
    (recycle,) = recycles(fleet.handle(ev.Release(grant.lease.token), 0.0))
    (drop,) = drops(fleet.handle(ev.CloneRewound("blog", recycle.clone), 2.0))
    (create,) = creates(fleet.handle(ev.CloneDropped("blog", drop.clone), 2.1))
    assert create.template == "shop"


def test_a_returned_clone_serves_its_own_template_unless_another_waited_much_longer() -> None:
    fleet, first = make_fleet(1, rewinds=True, blog=(1, 1), shop=(0, 1))
    finish_creates(fleet, first)
    (grant,) = grants(fleet.acquire("blog", request(1), 0.0))
    fleet.acquire("shop", request(2, holder=2, at=1.0), 1.0)
    fleet.acquire("blog", request(3, holder=3, at=1.0 + HANDOVER_SECONDS / 2), 2.0)
    (recycle,) = recycles(fleet.handle(ev.Release(grant.lease.token), 0.0))
    (again,) = grants(fleet.handle(ev.CloneRewound("blog", recycle.clone), 2.0))
    assert again.waiter == 3


def test_a_clone_that_comes_back_and_that_its_template_does_not_need_makes_way_at_once() -> None:
    fleet, first = make_fleet(1, rewinds=True, blog=(1, 1), shop=(0, 1))
    finish_creates(fleet, first)
    (grant,) = grants(fleet.acquire("blog", request(1), 0.0))
    (recycle,) = recycles(fleet.handle(ev.Release(grant.lease.token), 0.0))
    fleet.acquire("shop", request(2, holder=2, at=1.0), 1.0)
    (drop,) = drops(fleet.handle(ev.CloneRewound("blog", recycle.clone), 2.0))
    assert drop.clone == recycle.clone


def test_clones_that_are_being_reset_count_for_no_waiter_of_their_template() -> None:
    fleet, first = make_fleet(2, rewinds=True, blog=(1, 2), shop=(1, 2))
    finish_creates(fleet, first)
    (grant,) = grants(fleet.acquire("blog", request(1), 0.0))
    fleet.handle(ev.Reset(grant.lease.token, request(2, timeout=60.0)), 0.0)
    waiting = fleet.acquire("blog", request(3, holder=3), 1.0)
    (drop,) = drops(waiting)
    (create,) = creates(fleet.handle(ev.CloneDropped("shop", drop.clone), 1.1))
    assert create.template == "blog"


def test_a_waiter_that_wants_a_fresh_clone_is_not_passed_over_for_good() -> None:
    fleet, first = make_fleet(rewinds=True, blog=(1, 1))
    finish_creates(fleet, first)
    (grant,) = grants(fleet.acquire("blog", request(1), 0.0))
    fleet.acquire("blog", msgspec.structs.replace(request(2, holder=2), fresh=True), 1.0)
    fleet.acquire("blog", request(3, holder=3, at=2.0), 2.0)
    (recycle,) = recycles(fleet.handle(ev.Release(grant.lease.token), 0.0))
    back = fleet.handle(ev.CloneRewound("blog", recycle.clone), 2.5)
    assert not grants(back)
    (drop,) = drops(back)
    (create,) = creates(fleet.handle(ev.CloneDropped("blog", drop.clone), 2.6))
    (grant,) = grants(fleet.handle(ev.CloneCreated("blog", create.clone), 3.0))
    assert grant.waiter == 2


def test_limits_are_never_exceeded() -> None:
    fleet, first = make_fleet(blog=(2, 3))
    finish_creates(fleet, first)
    for waiter in range(10):
        fleet.acquire("blog", request(waiter), 0.0)
    assert fleet.pools["blog"].databases == 3


def test_a_released_clone_is_recycled_once_and_its_token_is_worth_nothing_then() -> None:
    fleet, first = make_fleet(blog=(1, 1))
    finish_creates(fleet, first)
    (grant,) = grants(fleet.acquire("blog", request(1, holder=7), 0.0))
    (recycle,) = recycles(fleet.handle(ev.Release(grant.lease.token), 0.0))
    assert recycle.clone == grant.lease.clone
    with pytest.raises(NotYourLeaseError):
        fleet.handle(ev.Release(grant.lease.token), 0.0)


def test_a_wrong_token_frees_nothing() -> None:
    fleet, first = make_fleet(blog=(1, 1))
    finish_creates(fleet, first)
    (grant,) = grants(fleet.acquire("blog", request(1, holder=7), 0.0))
    for wrong in ("", grant.lease.token[:-1], grant.lease.clone, token_digest(grant.lease.token)):
        with pytest.raises(NotYourLeaseError):
            fleet.handle(ev.Release(wrong), 0.0)
    assert fleet.pools["blog"].snapshot().leased == 1


def test_a_returned_clone_is_not_granted_before_it_is_good_again() -> None:
    fleet, first = make_fleet(blog=(1, 1))
    finish_creates(fleet, first)
    (grant,) = grants(fleet.acquire("blog", request(1), 0.0))
    fleet.handle(ev.Release(grant.lease.token), 0.0)
    assert not grants(fleet.acquire("blog", request(2), 0.0))
    (served,) = grants(fleet.handle(ev.CloneRewound("blog", grant.lease.clone), 1.0))
    assert (served.waiter, served.lease.clone) == (2, grant.lease.clone)


def test_a_clone_that_cannot_be_rewound_is_dropped_and_another_made_under_a_new_name() -> None:
    fleet, first = make_fleet(blog=(1, 2))
    finish_creates(fleet, first)
    (grant,) = grants(fleet.acquire("blog", request(1), 0.0))
    fleet.handle(ev.Release(grant.lease.token), 0.0)
    (drop,) = drops(fleet.handle(ev.CloneUnusable("blog", grant.lease.clone), 1.0))
    assert drop.clone == grant.lease.clone
    fleet.handle(ev.CloneDropped("blog", drop.clone), 2.0)
    assert drop.clone not in fleet.pools["blog"].inventory._clones
    assert fleet.pools["blog"].databases == 1


def test_the_end_of_a_connection_ends_its_leases_and_its_waiting() -> None:
    fleet, first = make_fleet(blog=(2, 2))
    finish_creates(fleet, first)
    fleet.acquire("blog", request(1, holder=7), 0.0)
    fleet.acquire("blog", request(2, holder=8), 0.0)
    fleet.acquire("blog", request(3, holder=7), 0.0)
    assert len(recycles(fleet.handle(ev.HolderGone(7, (3,)), 0.0))) == 1
    snapshot = fleet.pools["blog"].snapshot()
    assert (snapshot.waiting, snapshot.leased) == (0, 1)


def test_a_failed_creation_is_cleaned_up_and_tried_again_after_a_pause() -> None:
    fleet, (create, *_) = make_fleet(blog=(1, 1))
    error = ServerUnavailableError("down")
    pool = fleet.pools["blog"]
    (drop,) = drops(fleet.handle(ev.CreateFailed("blog", create.clone, error), 10.0))  # type: ignore[union-attr]
    assert not creates(fleet.handle(ev.CloneDropped("blog", drop.clone), 10.01))
    assert pool.snapshot().last_error == "down"
    retry = fleet.next_timer()
    assert retry is not None
    assert 10.0 < retry <= 12.0
    assert len(creates(fleet.handle(ev.TimeCame(), retry))) == 1


def test_the_pause_between_failures_grows_and_stays_under_two_seconds() -> None:
    fleet, decisions = make_fleet(blog=(1, 1))
    _pool, now, pauses = fleet.pools["blog"], 0.0, []
    for _ in range(8):
        (create,) = creates(decisions)
        fleet.handle(ev.CreateFailed("blog", create.clone, ServerUnavailableError("down")), now)
        fleet.handle(ev.CloneDropped("blog", create.clone), now)
        due = fleet.next_timer()
        assert due is not None
        pauses.append(due - now)
        now = due
        decisions = fleet.handle(ev.TimeCame(), now)
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.2
    assert pauses[-1] == 2.0


def test_a_timeout_names_the_failure_that_caused_it() -> None:
    fleet, (create, *_) = make_fleet(blog=(1, 1))
    fleet.handle(ev.CreateFailed("blog", create.clone, ServerUnavailableError("down")), 0.0)  # type: ignore[union-attr]
    fleet.acquire("blog", request(1, timeout=1.0), 0.0)
    (refusal,) = refusals(fleet.handle(ev.TimeCame(), 1.0))
    assert "down" in str(refusal.error)


def test_a_request_waits_for_the_template_that_is_being_built() -> None:
    fleet, _ = make_fleet(ready_templates=False, blog=(1, 1))
    assert not fleet.acquire("blog", request(1), 0.0)
    made = fleet.handle(ev.TemplateReady("blog", "abcdefgh"), 1.0)
    (grant,) = grants(finish_creates(fleet, made, 2.0))
    assert grant.waiter == 1


def test_a_failed_template_is_told_to_waiters_and_to_later_requests() -> None:
    fleet, _ = make_fleet(ready_templates=False, blog=(1, 1))
    fleet.acquire("blog", request(1), 0.0)
    told = fleet.handle(
        ev.TemplateFailed("blog", TemplateFailedError("a.sql:3: syntax error")), 0.0
    )
    (late,) = refusals(fleet.acquire("blog", request(2), 1.0))
    for refusal in (*refusals(told), late):
        assert isinstance(refusal.error, TemplateFailedError)
        assert "a.sql:3: syntax error" in str(refusal.error)


def test_an_unknown_template_is_named_with_the_known_ones() -> None:
    fleet, _ = make_fleet(blog=(1, 1), shop=(1, 1))
    with pytest.raises(UnknownTemplateError, match="'blag'") as caught:
        fleet.acquire("blag", request(1), 0.0)
    assert caught.value.remedy == "known templates: blog, shop"


def test_the_common_limit_holds_over_all_templates() -> None:
    fleet, first = make_fleet(max_clones=3, blog=(2, 5), shop=(2, 5))
    assert len(creates(first)) == 3
    assert fleet.databases == 3


def test_a_rich_pool_gives_way_to_a_request_that_waits_at_the_common_limit() -> None:
    fleet, first = make_fleet(max_clones=3, blog=(3, 3), shop=(0, 3))
    finish_creates(fleet, first)
    decisions = fleet.acquire("shop", request(1), 0.0)
    (drop,) = drops(decisions)
    assert drop.template == "blog"
    after = fleet.handle(ev.CloneDropped("blog", drop.clone), 1.0)
    assert [c.template for c in creates(after)] == ["shop"]


def test_only_as_many_give_way_as_wait() -> None:
    fleet, first = make_fleet(max_clones=4, blog=(4, 4), shop=(0, 4))
    finish_creates(fleet, first)
    dropped = drops(fleet.acquire("shop", request(1), 0.0))
    dropped += drops(fleet.acquire("shop", request(2), 0.0))
    dropped += drops(fleet.handle(ev.TimeCame(), 0.0))
    assert len(dropped) == 2


def test_stopping_refuses_the_waiters_parks_what_is_ready_and_grants_nothing_more() -> None:
    fleet, first = make_fleet(blog=(1, 2))
    finish_creates(fleet, first)
    fleet.acquire("blog", request(1), 0.0)
    fleet.acquire("blog", request(2), 0.0)
    decisions = fleet.handle(ev.Stop(), 0.0)
    assert [type(r.error) for r in refusals(decisions)] == [ShuttingDownError]
    with pytest.raises(ShuttingDownError):
        fleet.acquire("blog", request(3), 0.0)
    assert not creates(fleet.handle(ev.TimeCame(), 0.0))


def test_a_clone_that_becomes_ready_while_stopping_is_parked() -> None:
    fleet, (create, *_) = make_fleet(blog=(1, 1))
    fleet.handle(ev.Stop(), 0.0)
    (park,) = finish_creates(fleet, [create])
    assert isinstance(park, Park)
    assert fleet.unsettled == 1
    fleet.handle(ev.CloneParked("blog", park.clone), 0.0)
    assert fleet.unsettled == fleet.databases == 0


def test_what_an_earlier_run_left_counts_until_it_is_gone() -> None:
    fleet, _ = make_fleet(ready_templates=False, max_clones=1, blog=(1, 1))
    (drop,) = drops(fleet.handle(ev.FoundUnknown("blog", "old"), 0.0))
    assert not creates(fleet.handle(ev.TemplateReady("blog", "abcdefgh"), 0.0))
    assert len(creates(fleet.handle(ev.CloneDropped("blog", drop.clone), 1.0))) == 1


def test_while_the_server_is_away_nothing_is_started_and_no_timer_runs() -> None:
    fleet, (create, *_) = make_fleet(blog=(1, 2))
    fleet.handle(ev.ServerLost(), 0.0)
    (drop,) = drops(
        fleet.handle(ev.CreateFailed("blog", create.clone, ServerUnavailableError("x")), 0.0)  # type: ignore[union-attr]
    )
    assert not creates(fleet.handle(ev.CloneDropped("blog", drop.clone), 5.0))
    assert fleet.next_timer() is None
    assert fleet.pools["blog"].snapshot().limited_by == "server"
    assert len(creates(fleet.handle(ev.ServerFound(), 6.0))) == 1


def test_a_pool_that_is_full_of_what_is_being_dropped_sets_no_timer() -> None:
    fleet, (create, *_) = make_fleet(blog=(1, 1))
    fleet.handle(ev.CreateFailed("blog", create.clone, ServerUnavailableError("x")), 0.0)  # type: ignore[union-attr]
    assert fleet.next_timer() is None


def test_no_pool_gives_way_to_one_that_cannot_create() -> None:
    fleet, _ = make_fleet(ready_templates=False, max_clones=3, blog=(3, 3), shop=(0, 3))
    finish_creates(fleet, fleet.handle(ev.TemplateReady("blog", "abcdefgh"), 0.0))
    assert not drops(fleet.acquire("shop", request(1), 0.0))
    assert not drops(fleet.handle(ev.TimeCame(), 0.0))


def test_a_template_that_is_finished_while_stopping_starts_nothing() -> None:
    fleet, _ = make_fleet(ready_templates=False, blog=(1, 1))
    fleet.handle(ev.Stop(), 0.0)
    assert not fleet.handle(ev.TemplateReady("blog", "abcdefgh"), 0.0)
    assert not fleet.handle(ev.TemplateFailed("blog", TemplateFailedError("x")), 0.0)
    assert fleet.pools["blog"].phase == "stopping"


def test_while_the_server_is_away_no_clone_is_granted() -> None:
    fleet, first = make_fleet(blog=(2, 2))
    finish_creates(fleet, first)
    fleet.handle(ev.ServerLost(), 0.0)
    assert not grants(fleet.acquire("blog", request(1, timeout=5.0), 0.0))
    fleet.acquire("blog", request(2, timeout=1.0), 0.0)
    (refusal,) = refusals(fleet.handle(ev.TimeCame(), 1.0))
    assert (refusal.waiter, refusal.error.code) == (2, "server_unavailable")
    (grant,) = grants(fleet.handle(ev.ServerFound(), 2.0))
    assert grant.waiter == 1


def test_a_template_that_is_given_up_refuses_its_waiters_and_drops_unleased_clones() -> None:
    fleet, first = make_fleet(blog=(2, 4))
    finish_creates(fleet, first)
    pool = fleet.pools["blog"]
    fleet.handle(ev.FoundParked("blog", "parked", "another"), 0.0)
    (grant,) = grants(fleet.acquire("blog", request(1), 0.0))
    fleet.acquire("blog", request(2), 0.0)
    late = fleet.acquire("blog", request(3), 0.0)
    pool_waited = pool.waiting
    assert pool_waited == 1
    decisions = fleet.handle(ev.Retire("blog"), 0.0)
    assert len(refusals(decisions)) == pool_waited
    assert {refusal.error.code for refusal in refusals(decisions)} == {"unknown_template"}
    assert "parked" in {drop.clone for drop in drops(decisions)}
    assert refusals(fleet.acquire("blog", request(4), 0.0))[0].error.code == "unknown_template"
    assert fleet.handle(ev.TimeCame(), 0.0) == []
    assert fleet.handle(ev.TemplateReady("blog", "other234"), 0.0) == []
    for create in creates(late):
        assert drops(fleet.handle(ev.CloneCreated("blog", create.clone), 0.0))
    assert recycles(fleet.handle(ev.Release(grant.lease.token), 0.0))
    assert drops(fleet.handle(ev.CloneRewound("blog", grant.lease.clone), 0.0))
    assert fleet.handle(ev.Stop(), 0.0) == []
    assert pool.lifecycle.is_over


def test_a_template_that_comes_later_is_drained_and_stopped_like_the_others() -> None:
    fleet, _ = make_fleet(blog=(0, 4))
    fleet.handle(ev.Drain(None, True), 0.0)
    fleet.handle(ev.TemplateEntered("shop", Limits(0, 4)), 0.0)
    shop = fleet.pool("shop")
    fleet.handle(ev.TemplateReady("shop", "abcdefgh"), 0.0)
    assert refusals(fleet.acquire("shop", request(1), 0.0))[0].error.code == "draining"
    fleet.handle(ev.TemplateEntered("shop", Limits(1, 9)), 0.0)
    assert fleet.pool("shop") is shop
    fleet.handle(ev.Drain(None, False), 0.0)
    assert creates(fleet.acquire("shop", request(2), 0.0))
    fleet.handle(ev.Stop(), 0.0)
    fleet.handle(ev.TemplateEntered("late", Limits(1, 4)), 0.0)
    assert fleet.handle(ev.TemplateReady("late", "abcdefgh"), 0.0) == []
    fleet.handle(ev.TemplateRemoved("late"), 0.0)
    with pytest.raises(UnknownTemplateError):
        fleet.pool("late")


def test_no_ready_clone_is_dropped_for_waiters_of_its_own_template_while_grants_are_held() -> None:
    fleet, decisions = make_fleet(3, blog=(2, 4), shop=(1, 2))
    finish_creates(fleet, decisions)
    fleet.acquire("shop", request(1), 0.0)
    fleet.handle(ev.GrantsHeld(), 0.0)
    for waiter in (2, 3):
        assert not drops(fleet.acquire("blog", request(waiter), 0.0))
    assert len(grants(fleet.handle(ev.GrantsResumed(), 0.0))) == 2
