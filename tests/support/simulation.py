"""Simulates one real pool: making clones and running tests take simulated time.

A small discrete-event simulator with the properties of the daemon that matter here: databases are
created and dropped a few at a time, drops last, and one timer is set to what the pool asks for.
"""

from __future__ import annotations

import heapq
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from clonepool.core import events as ev
from clonepool.core.decisions import (
    CreateClone,
    Drop,
    Grant,
    Recycle,
    Refuse,
    Request,
    Source,
)
from clonepool.core.fleet import Fleet
from clonepool.core.naming import Namer, Serials
from clonepool.core.sizing import Demand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from clonepool.core.events import Event
    from clonepool.core.limits import Limits
    from support.arrivals import Worker

CREATE, DROP = 0, 1
MOST_WAKES = 2000
PATIENCE = 600.0
"""Seconds after which a simulated test would give up: none does."""


class Server(NamedTuple):
    """How long the server takes, in seconds; clones are recreated when `rewind` is None."""

    create: float = 0.04
    drop: float = 0.01
    rewind: float | None = None
    places: int = 3


class Job(NamedTuple):
    """A job that waits for one of the places for DDL; the lowest rank is first, then the oldest."""

    rank: int
    number: int
    seconds: float
    done: Event


class Moment(msgspec.Struct, frozen=True):
    """What the pool held after something happened."""

    at: float
    ready: int
    target: int
    databases: int


class PoolSimulation:
    """One pool, its server, and the test workers.

    Attributes:
        now: seconds since the start.
        waits: seconds that each acquire waited, 0 for a hit, in the order of the grants.
        created: how many clones were begun.
        history: the pool after each event.
        last_test_ended: when a clone was last returned.
        wakes: when the timer went off.
    """

    def __init__(self, limits: Limits, server: Server, demand: type[Demand] = Demand) -> None:
        self.fleet = Fleet({"blog": limits}, 10_000, Namer("test", 1), Serials(0))
        self.pool = self.fleet.pools["blog"]
        self.pool.demand = demand(limits, self.pool.inventory, self.pool.queue)
        self.pool.shortage._demand = self.pool.demand
        self.server = server
        self.now = 0.0
        self.waits: list[float] = []
        self.created = 0
        self.history: list[Moment] = []
        self.wakes: list[float] = []
        self.last_test_ended = 0.0
        self._numbers = count(1)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._queue: list[Job] = []
        self._busy = 0
        self._granted: dict[int, Callable[[Grant], None]] = {}
        self._happens(ev.TemplateReady("blog", "abcdefgh"))

    # Arrivals -----------------------------------------------------------------------------

    def schedule_workers(self, workers: Iterable[Worker], holder: int = 1) -> PoolSimulation:
        """Schedule these workers, over one connection."""
        for worker in workers:
            self.at(worker.begins, partial(self._work, iter(worker.tests), holder))
        return self

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Schedule an action at that time."""
        heapq.heappush(self._agenda, (when, next(self._numbers), what))

    def reserve(self, tests: int, parallelism: int, holder: int = 1) -> None:
        """Announce tests, now."""
        self._happens(ev.Reserve("blog", holder, tests, parallelism))

    def hang_up(self, holder: int = 1) -> None:
        """End the connection, now."""
        self._happens(ev.HolderGone(holder, ()))

    def run(self, until: float = float("inf")) -> PoolSimulation:
        """Run until then, or until no action and no timer is left."""
        while True:
            timer = self.fleet.next_timer()
            event = self._agenda[0][0] if self._agenda else None
            times = [time for time in (timer, event) if time is not None]
            if not times or min(times) > until:
                return self
            self.now = max(self.now, min(times))
            if timer is not None and (event is None or timer <= event):
                self.wakes.append(self.now)
                assert len(self.wakes) < MOST_WAKES, "the timer never rests"
                self._happens(ev.TimeCame())
            else:
                heapq.heappop(self._agenda)[2]()

    # What became of it ----------------------------------------------------------------------

    @property
    def hits(self) -> float:
        """The share of acquires that found a clone ready."""
        return self.waits.count(0.0) / len(self.waits)

    @property
    def most_ready(self) -> int:
        """The greatest number of ready clones."""
        return max(moment.ready for moment in self.history)

    @property
    def most_needed(self) -> int:
        """The greatest target of ready clones."""
        return max(moment.target for moment in self.history)

    def mean_ready(self, begin: float, end: float) -> float:
        """Return how many clones were ready on average over that time."""
        total, before, ready = 0.0, begin, self.ready_at(begin)
        for moment in self.history:
            if begin < moment.at <= end:
                total += ready * (moment.at - before)
                before, ready = moment.at, moment.ready
        return (total + ready * (end - before)) / (end - begin)

    def ready_at(self, when: float) -> int:
        """Return how many clones were ready at that time."""
        return [moment.ready for moment in self.history if moment.at <= when][-1]

    # Inside -------------------------------------------------------------------------------

    def _work(self, tests: Iterator[tuple[float, float]], holder: int) -> None:
        """Begin the next test of a worker, and the one after it when that is over."""
        test = next(tests, None)
        if test is None:
            return
        hold, gap = test

        def granted(grant: Grant) -> None:
            self.waits.append(0.0 if grant.source is Source.READY else grant.waited_seconds)
            end = partial(self._finish, grant.lease.token, tests, gap, holder)
            self.at(self.now + hold, end)

        waiter = next(self._numbers)
        self._granted[waiter] = granted
        request = Request(waiter, f"token-{waiter}", holder, "", self.now, self.now + PATIENCE)
        self._happens(ev.Acquire("blog", request))

    def _finish(
        self, token: str, tests: Iterator[tuple[float, float]], gap: float, holder: int
    ) -> None:
        self.last_test_ended = self.now
        self._happens(ev.Release(token))
        self.at(self.now + gap, partial(self._work, tests, holder))

    def _happens(self, event: Event) -> None:
        for decision in self.fleet.handle(event, self.now):
            match decision:
                case Grant():
                    self._granted.pop(decision.waiter)(decision)
                case CreateClone(clone=name):
                    self.created += 1
                    self._enqueue(self.server.create, CREATE, ev.CloneCreated("blog", name))
                case Recycle(clone=name):
                    self._recycle(name)
                case Drop(clone=name):
                    self._enqueue(self.server.drop, DROP, ev.CloneDropped("blog", name))
                case Refuse():
                    raise AssertionError(decision.error)
        self._note()

    def _recycle(self, name: str) -> None:
        seconds = self.server.rewind
        became = ev.CloneUnusable if seconds is None else ev.CloneRewound
        self.at(self.now + (seconds or 0.0), partial(self._happens, became("blog", name)))

    def _enqueue(self, seconds: float, rank: int, done: Event) -> None:
        heapq.heappush(self._queue, Job(rank, next(self._numbers), seconds, done))
        self._fill_places()

    def _fill_places(self) -> None:
        while self._queue and self._busy < self.server.places:
            job = heapq.heappop(self._queue)
            self._busy += 1
            self.at(self.now + job.seconds, partial(self._end, job))

    def _end(self, job: Job) -> None:
        self._busy -= 1
        self._happens(job.done)
        self._fill_places()

    def _note(self) -> None:
        pool = self.pool
        self.history.append(Moment(self.now, pool.ready, pool.demand.target, pool.databases))
