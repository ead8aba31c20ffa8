"""Leases: found by token, ended by time, recorded before their clients are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from clonepool.core import events as ev
from clonepool.core.decisions import (
    Adopt,
    Grant,
    Keep,
    Lease,
    News,
    Notice,
    Park,
    Record,
    Recycle,
    Refuse,
    Renewed,
)
from clonepool.core.fleet import Fleet
from clonepool.core.leases import LeaseBook, token_digest
from clonepool.core.limits import Limits
from clonepool.core.naming import Namer, Serials
from clonepool.errors import (
    AcquireTimeoutError,
    DrainingError,
    LeaseBusyError,
    NotYourLeaseError,
    QueueFullError,
    ServerUnavailableError,
    ShuttingDownError,
    TemplateFailedError,
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

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.decisions import Decision, Request
    from clonepool.core.pool import Pool


def durable(waiter: int, ttl: float = 60.0, timeout: float = 10.0, at: float = 0.0) -> Request:
    return msgspec.structs.replace(request(waiter, timeout=timeout, at=at), ttl=ttl)


def ready_fleet(min_ready: int = 2, max_clones: int = 4, **more: object) -> tuple[Fleet, Pool]:
    limits = msgspec.convert({"min_ready": min_ready, "max_clones": max_clones, **more}, Limits)
    fleet = Fleet({"blog": limits}, 100, Namer("test", 1), Serials(0))
    pool = fleet.pools["blog"]
    finish_creates(fleet, fleet.handle(ev.TemplateReady("blog", "abcdefgh"), 0.0))
    return fleet, pool


def held(fleet: Fleet, ttl: float | None = None, at: float = 0.0, waiter: int = 1) -> Lease:
    """Take a lease, written down if it has a TTL."""
    asked = request(waiter, at=at) if ttl is None else durable(waiter, ttl, at=at)
    decisions = fleet.acquire("blog", asked, at)
    if ttl is not None:
        decisions = fleet.handle(ev.LeaseRecorded("blog", waiter), at)
    (grant,) = grants(decisions)
    return grant.lease


def test_a_lease_that_outlives_its_connection_is_told_only_when_it_is_written_down() -> None:
    fleet, _ = ready_fleet()
    record, *_ = fleet.acquire("blog", durable(1), 1.0)
    assert isinstance(record, Record)
    assert record.lease.expires_at == 61.0
    (grant,) = fleet.handle(ev.LeaseRecorded("blog", 1), 1.5)
    assert isinstance(grant, Grant)
    assert grant.lease == record.lease
    assert not fleet.handle(ev.HolderGone(1, ()), 0.0)
    assert not fleet.handle(ev.LeaseRecorded("blog", 1), 2.0)


def test_a_lease_that_cannot_be_recorded_is_not_granted() -> None:
    fleet, _ = ready_fleet()
    fleet.acquire("blog", durable(1), 0.0)
    refuse, recycle = fleet.handle(ev.LeaseNotRecorded("blog", 1, ServerUnavailableError("x")), 0.0)
    assert isinstance(refuse, Refuse)
    assert isinstance(recycle, Recycle)
    assert recycle.written_down
    assert not fleet.leases()
    assert not fleet.handle(ev.LeaseRecorded("blog", 1), 1.0)


def test_writing_down_that_takes_past_the_deadline_is_given_up() -> None:
    fleet, _ = ready_fleet()
    fleet.acquire("blog", durable(1, timeout=2.0), 0.0)
    assert fleet.next_timer() == 2.0
    refuse, recycle, *_ = fleet.handle(ev.TimeCame(), 2.0)
    assert isinstance(refuse, Refuse)
    assert isinstance(recycle, Recycle)


def test_a_client_that_vanishes_while_the_lease_is_written_down_costs_no_clone() -> None:
    fleet, _ = ready_fleet()
    fleet.acquire("blog", durable(1), 0.0)
    (recycle,) = fleet.handle(ev.HolderGone(1, (1,)), 0.0)
    assert isinstance(recycle, Recycle)
    assert not fleet.leases()


def test_the_end_is_announced_and_then_comes() -> None:
    fleet, _ = ready_fleet()
    lease = held(fleet, ttl=100.0)
    assert fleet.next_timer() == 80.0
    (notice,) = fleet.handle(ev.TimeCame(), 80.0)
    assert notice == Notice(News.EXPIRING, lease, 20.0)
    assert not fleet.handle(ev.TimeCame(), 99.9)
    expired, recycle, *_ = fleet.handle(ev.TimeCame(), 100.0)
    assert expired == Notice(News.EXPIRED, lease, 0.0)
    assert isinstance(recycle, Recycle)
    with pytest.raises(NotYourLeaseError):
        fleet.handle(ev.Release(lease.token), 0.0)


def test_the_warning_comes_a_minute_before_the_end_of_a_long_lease() -> None:
    fleet, _ = ready_fleet()
    held(fleet, ttl=3600.0)
    assert fleet.next_timer() == 3540.0


def test_a_renewal_counts_from_now_once_it_is_written_down() -> None:
    fleet, _ = ready_fleet()
    lease = held(fleet, ttl=100.0)
    (record,) = fleet.handle(ev.Renew(lease.token, None, request(7, at=50.0)), 0.0)
    assert isinstance(record, Record)
    assert record.lease.expires_at == 150.0
    assert fleet.lease(lease.token).expires_at == 100.0
    (renewed,) = fleet.handle(ev.LeaseRecorded("blog", 7), 50.1)
    assert isinstance(renewed, Renewed)
    assert fleet.lease(lease.token).expires_at == 150.0
    assert not fleet.handle(ev.TimeCame(), 100.0)


def test_a_renewal_that_cannot_be_written_down_leaves_the_lease_as_it_was() -> None:
    fleet, _ = ready_fleet()
    lease = held(fleet, ttl=100.0)
    fleet.handle(ev.Renew(lease.token, 500.0, request(7, at=50.0)), 0.0)
    (refuse,) = fleet.handle(ev.LeaseNotRecorded("blog", 7, ServerUnavailableError("x")), 0.0)
    assert isinstance(refuse, Refuse)
    assert fleet.lease(lease.token).expires_at == 100.0


def test_a_renewal_of_a_lease_that_ended_meanwhile_is_refused() -> None:
    fleet, _ = ready_fleet()
    lease = held(fleet, ttl=100.0)
    fleet.handle(ev.Renew(lease.token, 500.0, request(7, at=50.0)), 0.0)
    fleet.handle(ev.Release(lease.token), 0.0)
    (refuse,) = fleet.handle(ev.LeaseRecorded("blog", 7), 51.0)
    assert isinstance(refuse, Refuse)
    assert isinstance(refuse.error, NotYourLeaseError)
    assert not fleet.leases()


def test_a_renewal_that_a_reset_overtook_does_not_bring_the_old_clone_back() -> None:
    fleet, _ = ready_fleet()
    lease = held(fleet, ttl=100.0)
    fleet.handle(ev.Renew(lease.token, 500.0, request(7, at=50.0)), 0.0)
    (record,) = (
        d for d in fleet.handle(ev.Reset(lease.token, request(8)), 50.0) if isinstance(d, Record)
    )
    assert record.lease.clone != lease.clone
    assert [type(d) for d in fleet.handle(ev.LeaseRecorded("blog", 7), 51.0)] == [Refuse]
    assert fleet.lease(lease.token).clone == record.lease.clone
    (grant,) = fleet.handle(ev.LeaseRecorded("blog", 8), 52.0)
    assert isinstance(grant, Grant)


def test_a_lease_that_ends_while_it_is_written_down_has_its_end_written_too() -> None:
    fleet, _ = ready_fleet()
    lease = held(fleet)
    fleet.handle(ev.Renew(lease.token, 60.0, request(7, at=1.0)), 0.0)
    (recycle,) = fleet.handle(ev.Release(lease.token), 0.0)
    assert isinstance(recycle, Recycle)
    assert recycle.written_down


def test_a_bound_lease_can_be_given_a_life_of_its_own() -> None:
    fleet, _ = ready_fleet()
    lease = held(fleet)
    assert fleet.held_by(1) == 1
    (same,) = fleet.handle(ev.Renew(lease.token, None, request(6, at=1.0)), 0.0)
    assert same == Renewed(6, lease)
    fleet.handle(ev.Renew(lease.token, 60.0, request(7, at=1.0)), 0.0)
    fleet.handle(ev.LeaseRecorded("blog", 7), 1.0)
    assert fleet.held_by(1) == 0
    assert not fleet.handle(ev.HolderGone(1, ()), 0.0)
    assert len(fleet.leases()) == 1


def test_no_lease_lasts_longer_than_the_ceiling() -> None:
    fleet, _ = ready_fleet(max_lease=100.0)
    bound = held(fleet, waiter=1)
    long = held(fleet, ttl=1000.0, waiter=2)
    assert bound.expires_at == long.expires_at == 100.0
    fleet.handle(ev.Renew(long.token, 1000.0, request(7, at=50.0)), 0.0)
    (renewed,) = fleet.handle(ev.LeaseRecorded("blog", 7), 50.0)
    assert isinstance(renewed, Renewed)
    assert renewed.lease.expires_at == 100.0
    ended = [d for d in fleet.handle(ev.TimeCame(), 100.0) if isinstance(d, Recycle)]
    assert {d.clone for d in ended} == {bound.clone, long.clone}


def test_a_lease_found_after_a_restart_is_known_by_its_token_and_by_nothing_else() -> None:
    fleet, _ = ready_fleet()
    digest = token_digest("secret")
    fleet.handle(
        ev.FoundLeased(Lease(digest, "blog", "g", "found", 0, "x", -10.0, 60.0, 50.0)), 0.0
    )
    for wrong in (digest, "", "secret2"):
        with pytest.raises(NotYourLeaseError):
            fleet.lease(wrong)
    assert fleet.lease("secret").clone == "found"
    assert fleet.lease("secret").token == "secret"
    assert fleet.next_timer() == 38.0
    fleet.handle(ev.Release("secret"), 0.0)
    assert not fleet.leases()


def test_reset_gives_another_clone_under_the_same_token_before_any_waiter() -> None:
    fleet, first = make_fleet(blog=(1, 1))
    finish_creates(fleet, first)
    lease = held(fleet)
    fleet.acquire("blog", request(2), 0.0)
    (recycle,) = (
        d for d in fleet.handle(ev.Reset(lease.token, request(3)), 1.0) if isinstance(d, Recycle)
    )
    (drop, *_) = drops(fleet.handle(ev.CloneUnusable("blog", recycle.clone), 1.0))
    (create,) = creates(fleet.handle(ev.CloneDropped("blog", drop.clone), 1.0))
    (grant,) = grants(fleet.handle(ev.CloneCreated("blog", create.clone), 2.0))
    assert (grant.waiter, grant.lease.token, grant.lease.clone) == (3, lease.token, create.clone)
    assert grant.lease.granted_at == lease.granted_at


def test_a_reset_waits_for_its_own_clone_where_that_is_rewound() -> None:
    fleet, pool = ready_fleet(min_ready=2, max_clones=4, rewinds=True)
    lease = held(fleet)
    (recycle,) = fleet.handle(ev.Reset(lease.token, request(3)), 1.0)
    assert isinstance(recycle, Recycle)
    (grant,) = fleet.handle(ev.CloneRewound("blog", recycle.clone), 2.0)
    assert isinstance(grant, Grant)
    assert grant.lease == msgspec.structs.replace(lease, resets=1)
    assert grant.waiter == 3
    assert pool.snapshot().leased == 1
    assert not fleet.handle(ev.Release(lease.token), 0.0)[1:]


def test_a_reset_whose_clone_is_not_to_be_had_gets_another() -> None:
    fleet, _ = ready_fleet(min_ready=2, max_clones=4, rewinds=True)
    lease = held(fleet)
    (recycle,) = fleet.handle(ev.Reset(lease.token, request(3)), 1.0)
    assert isinstance(recycle, Recycle)
    (grant,) = grants(fleet.handle(ev.CloneUnusable("blog", recycle.clone), 2.0))
    assert (grant.waiter, grant.lease.token) == (3, lease.token)
    assert grant.lease.clone != lease.clone


@pytest.mark.parametrize("end", ["late", "gone", "released", "stopped"])
def test_a_reset_does_not_revive_a_lease_that_has_ended_since(end: str) -> None:
    fleet, _ = ready_fleet(min_ready=1, max_clones=1, rewinds=True)
    lease = held(fleet)
    (recycle,) = fleet.handle(ev.Reset(lease.token, request(3, timeout=1.0)), 0.0)
    assert isinstance(recycle, Recycle)
    assert fleet.next_timer() == 1.0
    endings: dict[str, Callable[[], list[Decision]]] = {
        "late": lambda: fleet.handle(ev.TimeCame(), 1.0),
        "gone": lambda: fleet.handle(ev.HolderGone(1, (3,)), 0.5),
        "released": lambda: fleet.handle(ev.Release(lease.token), 0.0),
        "stopped": lambda: [*fleet.handle(ev.Stop(), 0.0), *fleet.handle(ev.EndLeases(), 0.0)],
    }
    ended = endings[end]()
    (refusal,) = refusals(ended)
    assert refusal.waiter == 3
    assert not isinstance(refusal.error, ShuttingDownError)
    assert not recycles(ended)
    assert not grants(fleet.handle(ev.CloneRewound("blog", recycle.clone), 2.0))
    with pytest.raises(NotYourLeaseError):
        fleet.lease(lease.token)


def being_reset(
    *, ttl: float | None = None, rewinds: bool = True, by: int = 2
) -> tuple[Fleet, Pool, Lease, Recycle]:
    """Return the lease of connection 1 that connection `by` has begun to reset, as waiter 3."""
    fleet, pool = ready_fleet(min_ready=1, max_clones=1, rewinds=rewinds)
    lease = held(fleet, ttl=ttl)
    begun = fleet.handle(ev.Reset(lease.token, request(3, holder=by, timeout=5.0)), 0.0)
    (recycle,) = recycles(begun)
    return fleet, pool, lease, recycle


@pytest.mark.parametrize("rewinds", [True, False])
def test_a_lease_ends_with_its_connection_while_another_resets_it(rewinds: bool) -> None:
    fleet, _, lease, recycle = being_reset(rewinds=rewinds)
    (refusal,) = refusals(fleet.handle(ev.HolderGone(1, ()), 0.5))
    assert (refusal.waiter, type(refusal.error)) == (3, NotYourLeaseError)
    after = (
        fleet.handle(ev.CloneRewound("blog", recycle.clone), 1.0)
        if rewinds
        else fleet.handle(ev.CloneUnusable("blog", recycle.clone), 1.0)
    )
    assert not grants(after)
    assert not fleet.leases()
    with pytest.raises(NotYourLeaseError):
        fleet.handle(ev.Release(lease.token), 0.0)


@pytest.mark.parametrize("rewinds", [True, False])
@pytest.mark.parametrize("ttl", [None, 60.0])
def test_a_lease_goes_on_when_only_the_connection_that_resets_it_ends(
    rewinds: bool, ttl: float | None
) -> None:
    fleet, _, lease, recycle = being_reset(rewinds=rewinds, ttl=ttl)
    assert not refusals(fleet.handle(ev.HolderGone(2, (3,)), 0.5))
    if rewinds:
        given = fleet.handle(ev.CloneRewound("blog", recycle.clone), 1.0)
    else:
        (drop,) = drops(fleet.handle(ev.CloneUnusable("blog", recycle.clone), 1.0))
        (create,) = creates(fleet.handle(ev.CloneDropped("blog", drop.clone), 1.0))
        given = fleet.handle(ev.CloneCreated("blog", create.clone), 1.0)
    assert not drops(given)
    if ttl is not None:
        assert not fleet.handle(ev.HolderGone(2, (3,)), 1.1)
        assert not refusals(fleet.handle(ev.LeaseRecorded("blog", 3), 1.2))
    (again,) = fleet.leases()
    assert (again.token, again.holder, again.resets) == (lease.token, 1, 1)
    assert recycles(fleet.handle(ev.Release(lease.token), 0.0))


def test_a_lease_runs_out_while_it_is_reset() -> None:
    fleet, _, lease, recycle = being_reset(ttl=3.0)
    ended = fleet.handle(ev.TimeCame(), 3.0)
    expired = [d for d in ended if isinstance(d, Notice) and d.news is News.EXPIRED]
    assert [d.lease for d in expired] == [lease]
    (refusal,) = refusals(ended)
    assert isinstance(refusal.error, NotYourLeaseError)
    assert not grants(fleet.handle(ev.CloneRewound("blog", recycle.clone), 4.0))
    assert not fleet.leases()


def test_a_lease_that_is_being_reset_can_be_released_and_nothing_else() -> None:
    fleet, _, lease, _ = being_reset()
    assert fleet.leases() == [lease]
    assert fleet.held_by(1) == fleet.leased("blog") == fleet.connection_bound_leases == 1
    attempts: list[Callable[[], object]] = [
        lambda: fleet.handle(ev.Renew(lease.token, 5.0, request(8)), 0.0),
        lambda: fleet.handle(ev.Keep(lease.token, 5.0), 0.0),
        lambda: fleet.handle(ev.Reset(lease.token, request(8)), 0.0),
        lambda: fleet.lease(lease.token),
    ]
    for attempt in attempts:
        with pytest.raises(LeaseBusyError):
            attempt()
    fleet.handle(ev.Release(lease.token), 0.0)


def test_a_renewal_that_was_under_way_survives_the_reset() -> None:
    fleet, _ = ready_fleet(min_ready=1, max_clones=1, rewinds=True)
    lease = held(fleet, ttl=100.0)
    fleet.handle(ev.Renew(lease.token, 500.0, request(7, at=50.0)), 0.0)
    (recycle,) = recycles(fleet.handle(ev.Reset(lease.token, request(8, at=50.0)), 50.0))
    assert [type(d) for d in fleet.handle(ev.LeaseRecorded("blog", 7), 51.0)] == [Renewed]
    (record,) = fleet.handle(ev.CloneRewound("blog", recycle.clone), 52.0)
    assert isinstance(record, Record)
    assert record.lease.expires_at == 550.0


def test_a_drain_and_a_stop_leave_a_reset_alone_that_waits_for_its_own_clone() -> None:
    fleet, _, lease, recycle = being_reset(ttl=60.0)
    assert not refusals(fleet.handle(ev.Drain("blog", True), 0.5))
    assert not refusals(fleet.handle(ev.Stop(), 0.0))
    assert fleet.unsettled == 1
    (record,) = fleet.handle(ev.CloneRewound("blog", recycle.clone), 1.0)
    assert isinstance(record, Record)
    (grant,) = grants(fleet.handle(ev.LeaseRecorded("blog", 3), 1.1))
    assert grant.lease.token == lease.token
    assert fleet.unsettled == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stop_says_that_the_lease_is_over_for_which_there_is_no_other_clone(when: str) -> None:
    fleet, _, _, recycle = being_reset()
    ended = fleet.handle(ev.Stop(), 0.0) if when == "before" else []
    ended += fleet.handle(ev.CloneUnusable("blog", recycle.clone), 1.0)
    ended += fleet.handle(ev.Stop(), 0.0) if when == "after" else []
    (refusal,) = refusals(ended)
    assert isinstance(refusal.error, AcquireTimeoutError)
    assert "has ended" in str(refusal.error)
    assert not fleet.leases()


def test_a_failed_build_of_the_next_generation_leaves_a_reset_alone() -> None:
    fleet, _, lease, recycle = being_reset()
    assert not refusals(fleet.handle(ev.TemplateFailed("blog", TemplateFailedError("x")), 0.0))
    (grant,) = grants(fleet.handle(ev.CloneRewound("blog", recycle.clone), 1.0))
    assert grant.lease.token == lease.token


def test_the_holder_hears_that_its_lease_is_over_when_anothers_reset_fails() -> None:
    fleet, _, lease, _ = being_reset()
    over = fleet.handle(ev.TimeCame(), 5.0)
    assert [(d.news, d.lease) for d in over if isinstance(d, Notice)] == [(News.EXPIRED, lease)]


def test_a_reset_that_finds_nothing_in_time_ends_the_lease() -> None:
    fleet, first = make_fleet(blog=(1, 1))
    finish_creates(fleet, first)
    lease = held(fleet)
    fleet.handle(ev.Reset(lease.token, request(3, timeout=1.0)), 0.0)
    assert len(refusals(fleet.handle(ev.TimeCame(), 1.0))) == 1
    with pytest.raises(NotYourLeaseError):
        fleet.handle(ev.Release(lease.token), 0.0)


def test_a_kept_clone_stays_until_its_time_and_the_oldest_goes_first() -> None:
    fleet, pool = ready_fleet(min_ready=3, max_clones=9, max_kept=2)
    leases = [held(fleet, waiter=waiter) for waiter in (1, 2, 3)]
    for number, lease in enumerate(leases):
        keep, *others = fleet.handle(ev.Keep(lease.token, 100.0), float(number))
        assert keep == Keep("blog", "abcdefgh", lease.clone, "client 1", 100.0)
    (drop,) = drops(others)
    assert drop.clone == leases[0].clone
    assert pool.snapshot().kept == 2
    (drop,) = drops(fleet.handle(ev.TimeCame(), 101.0))
    assert drop.clone == leases[1].clone


def test_a_clone_that_was_rewound_wrongly_is_kept_for_inspection() -> None:
    fleet, first = make_fleet(blog=(1, 2))
    finish_creates(fleet, first)
    (recycle,) = fleet.handle(ev.Release(held(fleet).token), 0.0)
    assert isinstance(recycle, Recycle)
    pool = fleet.pools["blog"]
    fleet.handle(ev.CloneSuspect("blog", recycle.clone, 60.0), 1.0)
    assert (pool.snapshot().kept, pool.ready) == (1, 0)
    assert [d.clone for d in drops(fleet.handle(ev.TimeCame(), 61.0))] == [recycle.clone]


def test_a_request_for_a_fresh_clone_waits_for_one_and_a_used_one_makes_room() -> None:
    fleet, first = make_fleet(blog=(1, 1))
    finish_creates(fleet, first)
    (recycle,) = fleet.handle(ev.Release(held(fleet).token), 0.0)
    assert isinstance(recycle, Recycle)
    fleet.handle(ev.CloneRewound("blog", recycle.clone), 1.0)
    asked = msgspec.structs.replace(request(2, at=2.0), fresh=True)
    (drop,) = drops(fleet.acquire("blog", asked, 2.0))
    assert drop.clone == recycle.clone
    (create,) = creates(fleet.handle(ev.CloneDropped("blog", drop.clone), 3.0))
    (grant,) = grants(fleet.handle(ev.CloneCreated("blog", create.clone), 4.0))
    assert (grant.waiter, grant.lease.clone) == (2, create.clone)


def test_a_line_that_is_full_refuses_at_once_and_says_so() -> None:
    fleet, _ = ready_fleet(min_ready=0, max_clones=1, max_waiting=2)
    for waiter in (1, 2):
        fleet.acquire("blog", request(waiter), 0.0)
    (refusal,) = refusals(fleet.acquire("blog", request(3), 0.0))
    assert isinstance(refusal.error, QueueFullError)
    assert "max_waiting" in refusal.error.remedy


def test_a_drained_template_refuses_until_that_is_ended_and_leaves_leases_alone() -> None:
    fleet, _ = ready_fleet(min_ready=1, max_clones=1)
    lease = held(fleet)
    fleet.acquire("blog", request(2), 0.0)
    assert [r.waiter for r in refusals(fleet.handle(ev.Drain("blog", True), 0.0))] == [2]
    (refusal,) = refusals(fleet.acquire("blog", request(3), 0.0))
    assert isinstance(refusal.error, DrainingError)
    assert fleet.lease(lease.token) == lease
    fleet.handle(ev.Drain(None, False), 0.0)
    assert not refusals(fleet.acquire("blog", request(4), 0.0))


def test_a_stop_parks_what_is_ready_ends_bound_leases_and_leaves_the_others() -> None:
    fleet, _ = ready_fleet(min_ready=3, max_clones=9)
    bound, lasting = held(fleet, waiter=1), held(fleet, ttl=60.0, waiter=2)
    parks = [d for d in fleet.handle(ev.Stop(), 0.0) if isinstance(d, Park)]
    for park in parks:
        fleet.handle(ev.CloneParked("blog", park.clone), 0.0)
    with pytest.raises(ShuttingDownError):
        fleet.handle(ev.Reset(bound.token, request(9)), 0.0)
    assert fleet.connection_bound_leases == 1
    (recycle,) = fleet.handle(ev.EndLeases(), 0.0)
    assert isinstance(recycle, Recycle)
    assert recycle.clone == bound.clone
    assert fleet.lease(lasting.token) == lasting


def test_parked_clones_of_the_same_generation_are_adopted_and_others_dropped() -> None:
    fleet, pool = make_fleet(blog=(2, 3), ready_templates=False)[0], None
    pool = fleet.pools["blog"]
    for name, generation in (("old", "zzzzzzzz"), ("a", "abcdefgh"), ("b", "abcdefgh")):
        fleet.handle(ev.FoundParked("blog", name, generation), 0.0)
    assert fleet.unsettled == 0
    decisions = fleet.handle(ev.TemplateReady("blog", "abcdefgh"), 0.0)
    assert {d.clone for d in decisions if isinstance(d, Adopt)} == {"a", "b"}
    assert [d.clone for d in drops(decisions)] == ["old"]
    assert not creates(decisions)
    fleet.handle(ev.CloneAdopted("blog", "a"), 1.0)
    assert pool.ready == 1
    (drop, *_) = drops(fleet.handle(ev.CloneUnusable("blog", "b"), 1.0))
    assert drop.clone == "b"


def test_a_clone_that_somebody_had_is_not_fresh_after_a_restart_either() -> None:
    fleet, first = make_fleet(blog=(1, 2))
    finish_creates(fleet, first)
    (recycle,) = fleet.handle(ev.Release(held(fleet).token), 0.0)
    assert isinstance(recycle, Recycle)
    pool = fleet.pools["blog"]
    fleet.handle(ev.CloneRewound("blog", recycle.clone), 1.0)
    parks = {d.clone: d.used for d in fleet.handle(ev.Stop(), 0.0) if isinstance(d, Park)}
    assert parks[recycle.clone]
    later, _ = make_fleet(blog=(1, 1), ready_templates=False)
    pool = later.pools["blog"]
    later.handle(ev.FoundParked("blog", recycle.clone, "abcdefgh", used=parks[recycle.clone]), 0.0)
    later.handle(ev.TemplateReady("blog", "abcdefgh"), 0.0)
    later.handle(ev.CloneAdopted("blog", recycle.clone), 0.0)
    assert (pool.ready, pool.inventory.fresh) == (1, 0)


def test_clones_of_an_earlier_generation_are_never_granted() -> None:
    fleet, pool = ready_fleet(min_ready=2)
    lease = held(fleet)
    stale = drops(fleet.handle(ev.TemplateReady("blog", "bcdefghi"), 2.0))
    assert len(stale) == 1
    assert pool.ready == 0
    (recycle,) = fleet.handle(ev.Release(lease.token), 0.0)
    assert isinstance(recycle, Recycle)
    assert [d.clone for d in drops(fleet.handle(ev.CloneRewound("blog", recycle.clone), 3.0))] == [
        lease.clone
    ]


def test_what_somebody_else_dropped_is_replaced_and_a_leased_clone_is_its_holders() -> None:
    fleet, pool = ready_fleet(min_ready=2)
    lease = held(fleet)
    gone = {*pool.inventory._clones}
    decisions = fleet.handle(ev.ClonesLost("blog", tuple(sorted(gone))), 1.0)
    assert len(creates(decisions)) >= 1
    assert not drops(decisions)
    assert fleet.lease(lease.token) == lease


def test_renewals_without_end_leave_no_trail() -> None:
    book = LeaseBook()
    lease = Lease("t", "blog", "g", "c", 1, "l", 0.0, 60.0, 60.0)
    for second in range(5_000):
        book.enter(msgspec.structs.replace(lease, expires_at=60.0 + second))
    assert len(book._times._heap) < 200


def test_a_lease_that_ends_while_it_is_written_down_is_answered_by_its_deadline() -> None:
    fleet, decisions = make_fleet(blog=(1, 4))
    finish_creates(fleet, decisions)
    asked = msgspec.structs.replace(request(1, at=1.0, timeout=5.0), ttl=1.0)
    assert any(isinstance(each, Record) for each in fleet.acquire("blog", asked, 1.0))
    fleet.handle(ev.TimeCame(), 2.1)
    timer = fleet.next_timer()
    assert timer is not None
    assert timer <= asked.deadline
