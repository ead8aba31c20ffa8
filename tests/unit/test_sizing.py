from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from clonepool.core import events as ev
from clonepool.core.limits import Limits
from clonepool.core.sizing import DROP_AT_A_TIME, Demand, clones_to_create
from clonepool.errors import ResourceError
from support import arrivals
from support.pools import (
    creates,
    drops,
    finish_creates,
    make_fleet,
    request,
)
from support.simulation import PoolSimulation, Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.arrivals import Worker

SHRINK_AFTER = 60.0
DAYS = {
    "steady": arrivals.steady(),
    "bursts": arrivals.bursts(),
    "xdist": [*arrivals.xdist(), *arrivals.xdist(begins=60.0)],
    "nightly": arrivals.nightly(),
}
SERVERS = {"recreating": Server(), "rewinding": Server(rewind=0.01)}


@pytest.mark.parametrize(
    ("min_ready", "waiting", "ready", "coming", "room", "expected"),
    [
        (4, 0, 0, 0, 10, 4),
        (4, 0, 4, 0, 10, 0),
        (4, 0, 1, 2, 10, 1),
        (4, 3, 0, 4, 10, 3),
        (4, 3, 0, 4, 1, 1),
        (4, 0, 9, 0, 10, 0),
        (0, 1, 0, 0, 10, 1),
        (4, 5, 0, 0, -2, 0),
    ],
)
def test_what_is_missing_is_made_as_far_as_there_is_room(
    min_ready: int, waiting: int, ready: int, coming: int, room: int, expected: int
) -> None:
    got = clones_to_create(
        min_ready=min_ready, waiting=waiting, ready=ready, coming=coming, room=room
    )
    assert got == expected


# Simulated days -------------------------------------------------------------------------------


class Constant(Demand):
    """What it is compared with: min_ready and nothing else, and no clone is ever given up."""

    def _aim(self) -> None:
        self.target = self._stock = self._limits.min_ready

    def review(self, now: float) -> int:  # noqa: ARG002 - what it stands for takes the time
        return 0

    def next_time(self) -> None:
        return None


def world(
    server: Server = SERVERS["recreating"],
    *,
    min_ready: int = 2,
    max_clones: int = 64,
    constant: bool = False,
) -> PoolSimulation:
    limits = Limits(
        min_ready, max_clones, shrink_after=SHRINK_AFTER, rewinds=server.rewind is not None
    )
    return PoolSimulation(limits, server, Constant if constant else Demand)


@cache
def simulated(day: str, server: str = "recreating", *, constant: bool = False) -> PoolSimulation:
    """Return that day on that server, run until nothing is to come; not to be changed."""
    return world(SERVERS[server], constant=constant).schedule_workers(DAYS[day]).run()


def last_of(day: list[Worker]) -> float:
    return max(worker.begins for worker in day)


@pytest.mark.parametrize(
    ("day", "hits", "constant_hits"),
    [("steady", 0.99, 0.7), ("bursts", 0.8, 0.1), ("xdist", 0.99, 0.7), ("nightly", 0.99, 0.4)],
)
def test_more_acquires_find_a_clone_ready_than_with_a_constant_number(
    day: str, hits: float, constant_hits: float
) -> None:
    assert simulated(day).hits > hits
    assert simulated(day, constant=True).hits < constant_hits


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("day", DAYS)
def test_waits_are_no_longer_than_with_a_constant_number(day: str, server: str) -> None:
    followed = simulated(day, server).waits
    constant = simulated(day, server, constant=True).waits
    assert max(followed) <= max(constant) + 0.001
    assert sum(followed) <= sum(constant) + 0.001


def test_of_bursts_only_the_first_waits() -> None:
    crowd = 24
    waits = world().schedule_workers(arrivals.bursts(size=crowd)).run().waits
    assert max(waits[:crowd]) > 0.2
    assert max(waits[crowd:]) == 0.0


def test_a_steady_demand_is_met_by_few_clones() -> None:
    """Thirty a second that take 40 ms each to replace: 1.2 are out on average."""
    day = DAYS["steady"]
    run = world(min_ready=1).schedule_workers(day).run()
    assert run.hits > 0.99
    assert max(run.waits) < 0.1
    assert run.mean_ready(10.0, last_of(day)) < 12


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("day", DAYS)
def test_few_clones_are_made_beyond_those_that_are_needed(day: str, server: str) -> None:
    run = simulated(day, server)
    needed = simulated(day, server, constant=True).created
    stock = run.most_needed if server == "recreating" else 0
    assert run.created <= needed + stock + 2 * DROP_AT_A_TIME


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("day", DAYS)
def test_unneeded_clones_are_dropped_and_then_no_timer_runs(day: str, server: str) -> None:
    run = simulated(day, server)
    ended = run.last_test_ended
    assert run.ready_at(ended + SHRINK_AFTER - 1) > 2, "too early: the next run may begin"
    assert run.ready_at(ended + 2 * SHRINK_AFTER + 15) == run.pool.ready == 2
    assert run.pool.demand.target == 2
    assert run.now < ended + 3 * SHRINK_AFTER


def test_hours_of_nothing_set_no_timer() -> None:
    run = simulated("nightly")
    begins = min(worker.begins for worker in DAYS["nightly"])
    assert not [at for at in run.wakes if 300 < at < begins]
    assert len(run.wakes) < 100


@pytest.mark.parametrize("server", SERVERS)
def test_the_limit_holds_whatever_is_asked(server: str) -> None:
    run = world(SERVERS[server], max_clones=10)
    run.at(0.5, lambda: run.reserve(1000, 50))
    run.schedule_workers(arrivals.xdist(workers=32, tests=20)).run()
    assert max(moment.databases for moment in run.history) == 10
    assert max(moment.target for moment in run.history) == 10


def test_leases_that_come_and_go_slowly_make_no_clones_come_and_go() -> None:
    """Ten are leased one after another, and returned, every twenty seconds for an hour."""
    tide = [
        arrivals.Worker(20.0 * wave + number, [(10.0, 0.0)])
        for wave in range(180)
        for number in range(10)
    ]
    run = world(SERVERS["rewinding"]).schedule_workers(tide).run(until=3600.0)
    assert run.created <= 2 + 10 + DROP_AT_A_TIME


def test_a_tide_of_slow_leases_is_no_burst() -> None:
    slow = [arrivals.Worker(5.0 * number, [(600.0, 0.0)]) for number in range(1, 40)]
    run = world().schedule_workers(slow).run()
    assert run.most_ready == 2
    assert run.hits == 1.0


def test_a_demand_beyond_what_the_server_can_make_is_no_reason_to_make_more_while_tests_wait() -> (
    None
):
    slow = Server(create=0.5)
    run = world(slow).schedule_workers(arrivals.xdist(tests=20)).run(until=20.0)
    assert run.pool.waiting
    assert run.most_ready <= 2


@pytest.mark.parametrize("expected", [True, False])
def test_whether_clones_come_back_by_rewind_is_learned_from_those_that_did_or_not(
    expected: bool,
) -> None:
    """A burst of twelve is remembered; then five of them are in use."""
    targets = {}
    for server in SERVERS.values():
        run = PoolSimulation(Limits(1, 64, rewinds=expected), server)
        run.schedule_workers([arrivals.Worker(1.0, [(1.0, 0.0)]) for _ in range(12)]).run(
            until=30.0
        )
        run.schedule_workers([arrivals.Worker(30.0, [(9.0, 0.0)]) for _ in range(5)]).run(
            until=31.0
        )
        targets[server] = run.pool.demand.target
    assert targets[SERVERS["recreating"]] >= 14
    assert targets[SERVERS["rewinding"]] <= 12


# Reservations ---------------------------------------------------------------------------------


def test_what_is_announced_is_ready_when_the_tests_begin() -> None:
    day = arrivals.xdist(begins=2.0)
    run = world().schedule_workers(day, holder=7)
    run.at(1.0, lambda: run.reserve(16 * 60, 16, holder=7))
    run.run()
    assert run.hits == 1.0
    assert run.ready_at(1.99) == 16


def test_a_reservation_makes_no_clone_that_its_tests_do_not_take() -> None:
    run = world(min_ready=0)
    run.reserve(tests=5, parallelism=16)
    run.schedule_workers([arrivals.Worker(5.0 + number, [(0.1, 0.0)]) for number in range(5)]).run()
    assert (run.created, run.hits) == (5, 1.0)


def test_a_reservation_raises_the_target_at_once_and_a_second_one_replaces_it() -> None:
    fleet, first = make_fleet(blog=(2, 20))
    finish_creates(fleet, first)
    pool = fleet.pools["blog"]
    assert len(creates(fleet.handle(ev.Reserve("blog", 1, 100, 8), 1.0))) == 6
    assert pool.snapshot().target == 8
    assert len(creates(fleet.handle(ev.Reserve("blog", 1, 100, 10), 1.0))) == 2
    assert pool.snapshot().target == 10
    assert not fleet.handle(ev.Reserve("blog", 1, 0, 10), 1.0)
    assert pool.snapshot().target == 2


def test_reservations_of_two_connections_add_up_and_the_limit_holds() -> None:
    fleet, _ = make_fleet(blog=(2, 20))
    fleet.handle(ev.Reserve("blog", 1, 100, 8), 0.0)
    fleet.handle(ev.Reserve("blog", 2, 5, 8), 0.0)
    assert fleet.pools["blog"].snapshot().target == 13
    fleet.handle(ev.Reserve("blog", 3, 100, 64), 0.0)
    assert fleet.pools["blog"].snapshot().target == 20


def test_a_reservation_ends_with_its_connection_and_its_clones_later() -> None:
    run = world()
    run.at(1.0, lambda: run.reserve(100, 10, holder=5))
    run.at(30.0, lambda: run.hang_up(holder=5))
    run.run(until=31.0)
    assert (run.pool.ready, run.pool.demand.target) == (10, 2)
    run.run()
    assert run.pool.ready == 2
    assert run.now < 30.0 + 3 * SHRINK_AFTER


def test_a_reservation_ends_when_so_many_acquires_were_served_of_any_connection() -> None:
    fleet, first = make_fleet(blog=(0, 20))
    finish_creates(fleet, [*first, *fleet.handle(ev.Reserve("blog", 1, 3, 3), 0.0)])
    pool = fleet.pools["blog"]
    left = []
    for waiter, holder in enumerate((8, 1, 9)):
        fleet.acquire("blog", request(waiter, holder=holder, at=1.0), 1.0)
        left.append(pool.demand.reservations.ready)
    assert left == [2, 1, 0]


def test_acquires_count_on_their_own_connections_reservation_first() -> None:
    fleet, first = make_fleet(blog=(0, 20))
    first += fleet.handle(ev.Reserve("blog", 1, 4, 4), 0.0)
    finish_creates(fleet, [*first, *fleet.handle(ev.Reserve("blog", 2, 1, 1), 0.0)])
    fleet.acquire("blog", request(1, holder=2, at=1.0), 1.0)
    fleet.handle(ev.HolderGone(1, ()), 2.0)
    assert fleet.pools["blog"].demand.reservations.ready == 0


def test_an_unused_reservation_ends_by_itself() -> None:
    run = world()
    run.at(1.0, lambda: run.reserve(100, 10))
    run.schedule_workers([arrivals.Worker(500.0, [(0.1, 0.0)])])
    run.run(until=1099.0)
    assert run.pool.demand.target == 10
    run.run()
    assert (run.pool.ready, run.pool.demand.target) == (2, 2)


def test_what_is_in_use_does_not_stand_in_for_what_was_announced() -> None:
    run = world(SERVERS["rewinding"])
    run.schedule_workers([arrivals.Worker(1.0, [(300.0, 0.0)]) for _ in range(12)], holder=1)
    run.at(50.0, lambda: run.reserve(100, 9, holder=2))
    run.run(until=60.0)
    assert run.pool.ready >= 9


# The pool -------------------------------------------------------------------------------------


def swollen(ready: int = 12) -> PoolSimulation:
    """Return a pool that has more ready clones than it needs, some minutes later."""
    run = world()
    run.at(1.0, lambda: run.reserve(100, ready))
    run.at(2.0, run.hang_up)
    return run.run(until=2.0)


def test_a_surplus_goes_a_few_at_a_time_the_longest_unused_first() -> None:
    run = swollen()
    pool = run.pool
    order = list(pool.inventory._ready)
    gone = []
    for _ in range(10):
        due = run.fleet.next_timer() or run.now
        dropped = [drop.clone for drop in drops(run.fleet.handle(ev.TimeCame(), due))]
        assert len(dropped) <= 4
        gone += dropped
    assert gone == order[:10]
    assert run.fleet.next_timer() is None


def test_nothing_is_dropped_while_a_request_waits() -> None:
    run = swollen()
    demand, line = run.pool.demand, run.pool.queue
    for now in (100.0, 200.0):
        demand.review(now)
    waits = request(1, at=250.0)
    line.add(waits)
    assert demand.review(250.0) == 0
    line.remove(waits.waiter)
    assert demand.review(250.0) == DROP_AT_A_TIME


def test_a_stock_beyond_min_ready_takes_nothing_that_another_templates_min_ready_needs() -> None:
    fleet, first = make_fleet(10, blog=(1, 10), shop=(4, 10))
    blog = fleet.pools["blog"]
    finish_creates(fleet, [d for d in first if getattr(d, "template", "") == "blog"])
    for create in creates(first):
        if create.template == "shop":
            fleet.handle(
                ev.CreateDeclined("shop", create.clone, ResourceError("full", limit="storage")), 0.0
            )
    assert len(creates(fleet.handle(ev.Reserve("blog", 1, 100, 10), 0.0))) == 5
    assert blog.snapshot().target == 10


def test_while_a_template_is_drained_no_stock_is_filled_and_afterwards_it_is() -> None:
    fleet, first = make_fleet(blog=(2, 20))
    finish_creates(fleet, [*first, *fleet.handle(ev.Reserve("blog", 1, 100, 8), 0.0)])
    fleet.handle(ev.Drain("blog", True), 1.0)
    names = sorted(fleet.pools["blog"].inventory._clones)
    assert not creates(fleet.handle(ev.ClonesLost("blog", tuple(sorted(names[:5]))), 2.0))
    assert len(creates(fleet.handle(ev.Drain("blog", False), 3.0))) == 5


def test_a_client_that_goes_away_leaves_the_stock_to_be_filled() -> None:
    fleet, first = make_fleet(4, blog=(0, 4))
    finish_creates(fleet, first)
    fleet.acquire("blog", request(1, holder=1), 0.0)
    fleet.handle(ev.Reserve("blog", 2, 3, 3), 0.0)
    assert len(creates(fleet.handle(ev.HolderGone(1, (1,)), 1.0))) == 2


def test_the_timer_is_not_moved_by_each_acquire() -> None:
    run = swollen()
    before = run.fleet.next_timer()
    times: set[float | None] = set()
    see: Callable[[], None] = lambda: times.add(run.fleet.next_timer())  # noqa: E731
    for number in range(20):
        run.at(3.0 + number, see)
    run.schedule_workers([arrivals.Worker(3.0 + number, [(0.5, 0.1)] * 3) for number in range(20)])
    run.run(until=25.0)
    assert times == {before}


def test_while_the_server_is_away_no_surplus_is_dropped_and_no_timer_is_set() -> None:
    run = swollen()
    run.fleet.handle(ev.ServerLost(), 0.0)
    assert run.fleet.next_timer() is None
    for now in (1000.0, 1100.0, 1200.0):
        assert not run.fleet.handle(ev.TimeCame(), now)
    run.fleet.handle(ev.ServerFound(), 1300.0)
    assert drops([d for now in (1300.0, 1400.0) for d in run.fleet.handle(ev.TimeCame(), now)])
