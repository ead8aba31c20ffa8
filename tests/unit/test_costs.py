"""The cost of a decision does not depend on the numbers of clones, templates and leases."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from clonepool.core import events as ev
from clonepool.core.decisions import CreateClone, Grant
from clonepool.core.fleet import Fleet
from clonepool.core.limits import Limits
from clonepool.core.naming import Namer, Serials
from support.pools import request

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.decisions import Request

ROUNDS = 300


def full_fleet(templates: int, ready: int, *, rewinds: bool) -> Fleet:
    """Return a fleet with that many ready clones in all, and a lasting lease of each template."""
    each = ready // templates
    limits = {f"t{n}": Limits(each, 2 * each + 2, rewinds=rewinds) for n in range(templates)}
    fleet = Fleet(limits, 3 * ready, Namer("test", 1), Serials(0))
    for number, template in enumerate(limits):
        settle(fleet, ev.TemplateReady(template, "abcdefgh"))
        lasting = msgspec.structs.replace(request(1000 + number, holder=number), ttl=1e6)
        settle(fleet, ev.Acquire(template, lasting))
        settle(fleet, ev.LeaseRecorded(template, lasting.waiter))
    assert sum(pool.ready for pool in fleet.pools.values()) == ready
    return fleet


def settle(fleet: Fleet, event: ev.Event) -> list[Grant]:
    """Let something happen, and every clone be made that follows; return who was granted."""
    decisions = fleet.handle(event, 0.0)
    for decision in decisions:
        if isinstance(decision, CreateClone):
            fleet.handle(ev.CloneCreated(decision.template, decision.clone), 0.0)
    fleet.next_timer()
    return [decision for decision in decisions if isinstance(decision, Grant)]


def lease_once(fleet: Fleet, asked: Request) -> list[ev.Event]:
    """Lease a clone and give it back, as it happens in a daemon; return what happens later."""
    template = list(fleet.pools)[-1]
    (grant,) = settle(fleet, ev.Acquire(template, asked))
    clone = grant.lease.clone
    settle(fleet, ev.Release(grant.lease.token))
    if fleet.pools[template].limits.rewinds:
        settle(fleet, ev.CloneRewound(template, clone))
        return []
    settle(fleet, ev.CloneUnusable(template, clone))
    # The place is offered to the templates in turn, behind all clients.
    return [ev.CloneDropped(template, clone)]


def calls(action: Callable[[], object]) -> int:
    """Return how many functions are called, those in C counted."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def quickest(fleet: Fleet, asked: Request) -> float:
    """Return the seconds that the quickest of many leases takes."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time()
        later = lease_once(fleet, asked)
        best = min(best, time.thread_time() - began)
        for event in later:
            settle(fleet, event)
    return best


def fresh(waiter: int) -> Request:
    return msgspec.structs.replace(request(waiter), fresh=True)


@pytest.mark.parametrize("ask", [request, fresh])
def test_a_lease_costs_the_same_however_many_clones_and_templates_there_are(
    ask: Callable[[int], Request],
) -> None:
    few, many = (full_fleet(*size, rewinds=ask is request) for size in ((2, 10), (200, 5000)))
    seconds = [quickest(fleet, ask(1)) for fleet in (few, many)]
    assert seconds[1] < 4 * seconds[0]
    counts = [calls(lambda: lease_once(fleet, ask(2))) for fleet in (few, many)]  # noqa: B023 - called at once
    assert counts[1] <= 1.1 * counts[0]


def test_a_waiter_behind_a_thousand_that_want_fresh_clones_costs_no_more_than_behind_a_few() -> (
    None
):
    def crowd(waiters: int) -> Fleet:
        fleet = Fleet({"t": Limits(0, 2, 10**6, rewinds=True)}, 2, Namer("test", 1), Serials(0))
        fleet.handle(ev.TemplateReady("t", "abcdefgh"), 0.0)
        for waiter in range(waiters):
            fleet.handle(ev.Acquire("t", fresh(waiter)), 0.0)
        fleet.handle(ev.Acquire("t", request(waiters)), 0.0)
        return fleet

    def looks(fleet: Fleet) -> int:
        line = fleet.pools["t"].queue
        first = line.first(fresh=False)
        assert first is not None
        assert line.fresh_before(first) == len(line) - 1
        return calls(lambda: line.fresh_before(first))

    assert looks(crowd(1000)) == looks(crowd(5))
