"""Simulates a fleet of many pools: builds, copies and rewinds take random simulated times.

`simulation` has one pool and checks its size; this one checks which client gets a clone, and when.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from clonepool.core import events as ev
from clonepool.core.clone import State
from clonepool.core.decisions import CreateClone, Drop, Grant, Recycle, Refuse, Request
from clonepool.core.fleet import Fleet
from clonepool.core.limits import Limits
from clonepool.core.naming import Namer, Serials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from clonepool.core.events import Event

DROPPING, RECYCLING = State.DROPPING, State.RECYCLING


class Client(NamedTuple):
    """Leases one of the templates again and again.

    Attributes:
        templates: taken in turn.
        hold: seconds for which each lease is held, on average.
        gap: seconds between two, on average.
        timeout: seconds that it waits.
    """

    templates: tuple[str, ...]
    hold: float = 0.02
    gap: float = 0.0
    timeout: float = 60.0


class Pace(NamedTuple):
    """How long the server takes on average, in seconds.

    Attributes:
        rewound: the share of returned clones that can be rewound.
        places: how many databases are created and dropped at a time.
    """

    create: float = 0.03
    drop: float = 0.01
    rewind: float = 0.003
    build: float = 0.0
    rewound: float = 0.95
    places: int = 3


USUAL = Pace()


class FleetSimulation:
    """Pools, a server, and clients.

    Attributes:
        now: seconds since the start.
        granted: leases by template.
        longest: seconds that the longest wait took, by template.
        refused: errors, by template.
        late: acquires that were answered after their deadline.
        wasted: times at which a claim waited while a clone lay idle.
    """

    def __init__(
        self,
        limits: dict[str, Limits],
        max_clones: int,
        chance: Random,
        pace: Pace = USUAL,
    ) -> None:
        self.fleet = Fleet(limits, max_clones, Namer("test", 1), Serials(0))
        self.chance = chance
        self.now = 0.0
        self.granted: Counter[str] = Counter()
        self.longest: dict[str, float] = dict.fromkeys(limits, 0.0)
        self.refused: Counter[str] = Counter()
        self.late = 0
        self.wasted = 0
        self.events = 0
        self._pace = pace
        self._numbers = count(1)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._ddl: tuple[deque[Callable[[], None]], deque[Callable[[], None]]] = (deque(), deque())
        self._busy = 0
        self._asked: dict[int, tuple[Request, Callable[[Grant | None], None]]] = {}
        for template in limits:
            self.after(self.draw(pace.build), partial(self._built, template))

    def draw(self, mean: float) -> float:
        """Return a duration in seconds, that long on average."""
        return self.chance.expovariate(1 / mean) if mean > 0 else 0.0

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Schedule an action some seconds from now."""
        heapq.heappush(self._agenda, (self.now + seconds, next(self._numbers), what))

    def come(self, clients: Iterable[Client]) -> None:
        """Start clients now."""
        for number, client in enumerate(clients):
            self.after(0.0, partial(self._acquire, client, number, 0))

    def run(self, until: float) -> None:
        """Run the simulation until then."""
        while True:
            timer = self.fleet.next_timer()
            event = self._agenda[0][0] if self._agenda else None
            times = [time for time in (timer, event) if time is not None]
            if not times or min(times) > until:
                return
            self.now = max(self.now, min(times))
            self.events += 1
            if timer is not None and (event is None or timer <= event):
                self._happens(ev.TimeCame())
            else:
                heapq.heappop(self._agenda)[2]()
            self._check()

    def unserved(self) -> float:
        """Return the longest time that a present waiter has waited."""
        lines = (pool.queue for pool in self.fleet.pools.values())
        return max((self.now - waiter.asked_at for line in lines for waiter in line), default=0.0)

    # Inside -------------------------------------------------------------------------------

    def _built(self, template: str) -> None:
        self._happens(ev.TemplateReady(template, "abcdefgh"))

    def _acquire(self, client: Client, holder: int, turn: int) -> None:
        template = client.templates[turn % len(client.templates)]
        waiter = next(self._numbers)
        request = Request(
            waiter, f"token-{waiter}", holder, "", self.now, self.now + client.timeout
        )

        def answered(grant: Grant | None) -> None:
            following = partial(self._acquire, client, holder, turn + 1)
            if grant is None:
                self.refused[template] += 1
                self.after(self.draw(client.gap), following)
                return
            self.granted[template] += 1
            self.longest[template] = max(self.longest[template], grant.waited_seconds)
            ended = partial(self._release, grant.lease.token, client, following)
            self.after(self.draw(client.hold), ended)

        self._asked[waiter] = request, answered
        self._happens(ev.Acquire(template, request))

    def _release(self, token: str, client: Client, following: Callable[[], None]) -> None:
        self._happens(ev.Release(token))
        self.after(self.draw(client.gap), following)

    def _happens(self, event: Event) -> None:
        for decision in self.fleet.handle(event, self.now):
            match decision:
                case Grant() | Refuse():
                    request, answered = self._asked.pop(decision.waiter)
                    self.late += self.now > request.deadline + 1e-6
                    answered(decision if isinstance(decision, Grant) else None)
                case CreateClone(template=template, clone=name):
                    self._enqueue(0, self._pace.create, ev.CloneCreated(template, name))
                case Drop(template=template, clone=name):
                    self._enqueue(1, self._pace.drop, ev.CloneDropped(template, name))
                case Recycle(template=template, clone=name):
                    good = self.chance.random() < self._pace.rewound
                    became = ev.CloneRewound if good else ev.CloneUnusable
                    after = partial(self._happens, became(template, name))
                    self.after(self.draw(self._pace.rewind), after)

    def _enqueue(self, rank: int, mean: float, done: Event) -> None:
        def begin() -> None:
            self.after(self.draw(mean), end)

        def end() -> None:
            self._busy -= 1
            self._happens(done)
            self._fill_places()

        self._ddl[rank].append(begin)
        self._fill_places()

    def _fill_places(self) -> None:
        while self._busy < self._pace.places and any(self._ddl):
            self._busy += 1
            (self._ddl[0] or self._ddl[1]).popleft()()

    def _check(self) -> None:
        """Check that no request waits for a place that an idle clone takes."""
        pools = self.fleet.pools.values()
        idle = sum(pool.ready for pool in pools)
        if not idle:
            return
        waiting = leaving = 0
        for pool in pools:
            dropping, recycling = (pool.inventory.count[state] for state in (DROPPING, RECYCLING))
            back = recycling if pool.demand.rewinds_mostly else 0
            leaving += dropping + recycling - back
            room = pool.limits.max_clones - pool.databases
            if pool.can_create:
                waiting += max(0, min(pool.waiting - pool.coming - back, room))
        self.wasted += waiting > max(0, self.fleet.budget.room) + leaving


def limits_of(
    templates: Iterable[str], *, min_ready: int = 0, max_clones: int = 10
) -> dict[str, Limits]:
    """Return the same limits for each."""
    return dict.fromkeys(templates, Limits(min_ready, max_clones, rewinds=True))
