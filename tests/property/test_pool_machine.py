"""The pool in any order of events: its invariants hold after each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple, assert_never

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from clonepool.core import events as ev
from clonepool.core import recording
from clonepool.core.clone import State
from clonepool.core.decisions import (
    Adopt,
    CreateClone,
    Drop,
    Grant,
    Keep,
    News,
    Notice,
    Park,
    Record,
    Recycle,
    Refuse,
    Renewed,
)
from clonepool.core.limits import Limits
from clonepool.core.naming import Identity, Kind, Namer, Serials
from clonepool.core.reservations import LASTS_SECONDS
from clonepool.errors import (
    DrainingError,
    LeaseBusyError,
    ResourceError,
    ServerUnavailableError,
    TemplateFailedError,
)
from support.pools import request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.core.decisions import Decision, Lease, Request
    from clonepool.core.events import Event
    from clonepool.core.fleet import Fleet
    from clonepool.core.pool import Pool

TEMPLATES = ("blog", "shop")
MAX_CLONES = {"blog": 3, "shop": 4}
MAX_ALL = 5
PLACES = (1, 2, 3)
"""Number of clients; one that connects after another has left has a new connection number."""
GENERATIONS = ("abcdefgh", "abcdefgh", "bcdefghi")
NAMER = Namer("test", 1)
PICK = st.integers(min_value=0, max_value=1_000)


class Announced(msgspec.Struct):
    """A reservation: tests still to come, how many at a time, and until when it lasts unused."""

    tests: int
    parallelism: int
    until: float


class Held(NamedTuple):
    """A lease that its holder knows of."""

    template: str
    holder: int
    clone: str
    lasting: bool


class PoolMachine(RuleBasedStateMachine):
    """A fleet, clients and hands that do things in any order, or fail."""

    fleet: Fleet

    @initialize(building=st.booleans(), parked=st.integers(0, 2), rewinds=st.booleans())
    def start(self, building: bool, parked: int, rewinds: bool) -> None:
        self.now = 0.0
        self.last_waiter = 0
        self.queued: dict[str, list[int]] = {template: [] for template in TEMPLATES}
        self.resetting: dict[str, int] = {}
        self.being_reset: dict[str, Held] = {}
        self.reset_by: dict[int, str] = {}
        self.orphaned: set[int] = set()
        self.connections = dict.fromkeys(PLACES, 0)
        self.last_connection = 0
        for place in PLACES:
            self.connect(place)
        self.asked: set[int] = set()
        self.answered: set[int] = set()
        self.deadlines: dict[int, float] = {}
        self.holder_of: dict[int, int] = {}
        self.held: dict[str, Held] = {}
        self.writing: dict[int, Record] = {}
        self.fresh: set[int] = set()
        self.creating: list[CreateClone] = []
        self.adopting: list[Adopt] = []
        self.recycling: list[Recycle] = []
        self.dropping: list[Drop] = []
        self.parking: list[Park] = []
        self.held_grants = 0
        self.kept: set[str] = set()
        self.picky: set[int] = set()
        self.used: set[str] = set()
        self.ever_named: set[str] = set()
        self.announced: dict[str, dict[int, Announced]] = {template: {} for template in TEMPLATES}
        limits = {
            template: Limits(min_ready, most, shrink_after=2.0, rewinds=rewinds)
            for template, min_ready, most in (("blog", 2, 3), ("shop", 1, 4))
        }
        beginning = recording.Beginning("", NAMER.instance, 1, MAX_ALL, limits)
        self.serials = Serials(0)
        self.fleet = beginning.fleet(self.serials)
        self.log = [recording.encode(beginning)]
        for number in range(parked):
            name = NAMER.name(Identity(Kind.CLONE, "blog", GENERATIONS[0], 1_000_000 + number))
            self.happens(ev.FoundParked("blog", name, GENERATIONS[0]))
        if not building:
            for template in TEMPLATES:
                self.happens(ev.TemplateReady(template, "abcdefgh"))

    def decide(self, event: Event) -> list[Decision]:
        """Return what is decided, and note it for the replay."""
        decisions = self.fleet.handle(event, self.now)
        step = recording.recorded_event(self.now, event, decisions, self.serials)
        self.log.append(recording.encode(step))
        return decisions

    def happens(self, event: Event) -> None:
        """Let something happen, and what is decided then."""
        self.apply(self.decide(event))

    def connect(self, place: int) -> None:
        self.last_connection += 1
        self.connections[place] = self.last_connection

    def apply(self, decisions: Iterable[Decision]) -> None:  # noqa: C901, PLR0912 - one case a decision
        for decision in decisions:
            match decision:
                case Grant():
                    self.note_grant(decision)
                case Record():
                    self.note_record(decision)
                case Refuse():
                    self.note_refusal(decision.waiter)
                case Renewed():
                    self.note_renewal(decision)
                case Notice():
                    self.note_notice(decision)
                case CreateClone():
                    assert decision.clone not in self.ever_named, "a name was used twice"
                    self.ever_named.add(decision.clone)
                    self.creating.append(decision)
                case Adopt():
                    self.adopting.append(decision)
                case Recycle():
                    assert decision.clone not in {held.clone for held in self.held.values()}
                    self.recycling.append(decision)
                case Keep():
                    self.kept.add(decision.clone)
                case Drop():
                    assert decision.clone not in self.occupied(), "a leased clone is dropped"
                    self.kept.discard(decision.clone)
                    self.dropping.append(decision)
                case Park():
                    self.parking.append(decision)
                case _:
                    assert_never(decision)

    def occupied(self) -> set[str]:
        """Return the clones that are somebody's, or will be once that is written down."""
        written = {held.clone for held in self.held.values()}
        return written | {r.lease.clone for r in self.writing.values() if self.is_new(r)}

    def is_new(self, record: Record) -> bool:
        return record.waiter in self.fresh and self.fleet_knows(record.lease)

    def fleet_knows(self, lease: Lease) -> bool:
        return self.fleet.pools[lease.template].leases.current(lease) is lease

    def take(self, waiter: int, lease: Lease) -> None:
        """Check that the clone is free and the waiter the first in its line."""
        identity = NAMER.parse(lease.clone)
        assert identity is not None
        assert identity.generation == lease.generation, "a clone of another generation"
        assert lease.clone not in self.occupied(), "leased twice"
        assert lease.clone not in self.kept
        assert lease.clone not in {d.clone for d in self.dropping}
        assert lease.clone not in {d.clone for d in self.recycling}
        if waiter in self.picky:
            assert lease.clone not in self.used, "not fresh"
        assert self.deadlines[waiter] > self.now, "granted after its deadline"
        if self.resetting.get(lease.clone) == waiter:
            del self.resetting[lease.clone]
            return
        line = self.queued[lease.template]
        before = line[: line.index(waiter)]
        assert set(before) <= self.picky, "out of order"
        assert not before or lease.clone in self.used, "a fresh clone was wasted"
        self.queued[lease.template].remove(waiter)
        self.note_served(lease.template, self.holder_of[waiter])

    def note_served(self, template: str, holder: int) -> None:
        """Count a granted acquire: on its connection's reservation, else on the oldest."""
        announced = self.announced[template]
        if announced:
            drawn_on = holder if holder in announced else next(iter(announced))
            announced[drawn_on].tests -= 1
            announced[drawn_on].until = self.now + LASTS_SECONDS
            if not announced[drawn_on].tests:
                del announced[drawn_on]

    def note_record(self, record: Record) -> None:
        resetting = self.resetting.get(record.lease.clone) == record.waiter
        if resetting or record.waiter in self.queued[record.lease.template]:
            self.take(record.waiter, record.lease)
            self.fresh.add(record.waiter)
        self.writing[record.waiter] = record

    def note_grant(self, grant: Grant) -> None:
        lease = grant.lease
        if self.writing.pop(grant.waiter, None) is None:
            assert not lease.outlives_connection, "told before it was written down"
            self.take(grant.waiter, lease)
        self.note_answer(grant.waiter)
        self.being_reset.pop(lease.token, None)
        self.held[lease.token] = Held(
            lease.template, lease.holder, lease.clone, lease.outlives_connection
        )

    def note_renewal(self, renewed: Renewed) -> None:
        self.note_answer(renewed.waiter)
        lease = renewed.lease
        leases = self.held if lease.token in self.held else self.being_reset
        leases[lease.token] = leases[lease.token]._replace(
            lasting=lease.outlives_connection, holder=lease.holder
        )

    def note_notice(self, notice: Notice) -> None:
        lease = notice.lease
        if notice.news is News.EXPIRED:
            over_in_time = lease.expires_at is not None and lease.expires_at <= self.now
            assert over_in_time or lease.token in self.being_reset or notice.seconds == 0
            self.held.pop(lease.token, None)
            self.being_reset.pop(lease.token, None)

    def note_refusal(self, waiter: int) -> None:
        """Count an answer; a lease whose reset is refused is over."""
        self.note_answer(waiter)
        self.being_reset.pop(self.reset_by.get(waiter, ""), None)

    def note_answer(self, waiter: int) -> None:
        assert waiter not in self.answered, "answered twice"
        self.answered.add(waiter)
        self.orphaned.discard(waiter)
        self.writing.pop(waiter, None)
        for queue in self.queued.values():
            if waiter in queue:
                queue.remove(waiter)

    def ask(self, holder: int, timeout: float, ttl: float | None = None) -> Request:
        self.last_waiter += 1
        self.asked.add(self.last_waiter)
        # A hit is granted, however late.
        self.deadlines[self.last_waiter] = self.now + max(timeout, 1e-9)
        self.holder_of[self.last_waiter] = holder
        asked = request(self.last_waiter, holder=holder, at=self.now, timeout=timeout)
        return msgspec.structs.replace(asked, ttl=ttl)

    def pick_held(self, pick: int) -> str:
        return sorted(self.held)[pick % len(self.held)]

    # Clients ------------------------------------------------------------------------------

    @rule(
        template=st.sampled_from(TEMPLATES),
        place=st.sampled_from(PLACES),
        timeout=st.sampled_from([0.0, 1.0, 5.0]),
        ttl=st.sampled_from([None, None, 0.5, 3.0]),
        fresh=st.booleans(),
    )
    def acquire(
        self, template: str, place: int, timeout: float, ttl: float | None, fresh: bool
    ) -> None:
        asked = self.ask(self.connections[place], timeout, ttl)
        asked = msgspec.structs.replace(asked, fresh=fresh)
        self.picky |= {asked.waiter} if fresh else set()
        self.queued[template].append(asked.waiter)
        self.happens(ev.Acquire(template, asked))

    @precondition(lambda self: self.held)
    @rule(pick=PICK, keep=st.booleans())
    def release(self, pick: int, keep: bool) -> None:
        token = self.pick_held(pick)
        del self.held[token]
        if keep:
            self.happens(ev.Keep(token, 2.0))
        else:
            self.happens(ev.Release(token))

    @precondition(lambda self: self.being_reset)
    @rule(pick=PICK)
    def release_while_it_is_reset(self, pick: int) -> None:
        token = sorted(self.being_reset)[pick % len(self.being_reset)]
        attempts = (
            ev.Keep(token, 2.0),
            ev.Reset(token, request(10**9)),
            ev.Renew(token, 1.0, request(10**9)),
        )
        for attempt in attempts:
            if not self.is_written_for(token):
                with pytest.raises(LeaseBusyError):
                    self.fleet.handle(attempt, self.now)
        del self.being_reset[token]
        self.happens(ev.Release(token))

    def is_written_for(self, token: str) -> bool:
        """Say whether a reset lease has its clone already, and only that is not written down."""
        return any(record.lease.token == token for record in self.writing.values())

    @precondition(lambda self: self.held)
    @rule(pick=PICK, ttl=st.sampled_from([None, 0.5, 3.0]), place=st.sampled_from(PLACES))
    def renew(self, pick: int, ttl: float | None, place: int) -> None:
        token = self.pick_held(pick)
        asked = self.ask(self.connections[place], 5.0)
        self.happens(ev.Renew(token, ttl, asked))

    @precondition(lambda self: self.held)
    @rule(pick=PICK, timeout=st.sampled_from([0.0, 1.0, 5.0]), place=st.sampled_from(PLACES))
    def reset(self, pick: int, timeout: float, place: int) -> None:
        token = self.pick_held(pick)
        held = self.being_reset[token] = self.held.pop(token)
        asked = self.ask(self.connections[place], timeout)
        self.reset_by[asked.waiter] = token
        pool = self.fleet.pools[held.template]
        if pool.limits.rewinds:
            self.resetting[held.clone] = asked.waiter
        else:
            self.queue_reset(held.template, asked.waiter)
        self.happens(ev.Reset(token, asked))

    def queue_reset(self, template: str, waiter: int) -> None:
        """Let a lease wait for another clone, behind others that wait for one, before all else."""
        line = self.fleet.pools[template].queue
        self.queued[template].insert(len(line._continuing), waiter)

    @rule(place=st.sampled_from(PLACES))
    def disconnect(self, place: int) -> None:
        holder = self.connections[place]
        self.connect(place)
        for leases in (self.held, self.being_reset):
            for token, held in list(leases.items()):
                if held.holder == holder and not held.lasting:
                    del leases[token]
        gone = [waiter for waiter in self.asked - self.answered if self.holder_of[waiter] == holder]
        for waiter in gone:
            if waiter in self.reset_by:
                self.orphaned.add(waiter)  # the lease may be another's, and goes on then
            else:
                self.note_answer(waiter)
        for announced in self.announced.values():
            announced.pop(holder, None)
        self.happens(ev.HolderGone(holder, tuple(gone)))

    @precondition(lambda self: self.asked - self.answered - self.orphaned)
    @rule(choice=st.data())
    def cancel(self, choice: st.DataObject) -> None:
        waiting = self.asked - self.answered - self.orphaned
        waiter = choice.draw(st.sampled_from(sorted(waiting)))
        decisions = self.decide(ev.Cancel(waiter))
        if not any(isinstance(d, Refuse) and d.waiter == waiter for d in decisions):
            self.note_answer(waiter)
        self.being_reset.pop(self.reset_by.get(waiter, ""), None)  # it is over then
        self.apply(decisions)

    @rule(
        template=st.sampled_from(TEMPLATES),
        place=st.sampled_from(PLACES),
        tests=st.integers(0, 6),
        parallelism=st.integers(1, 6),
    )
    def reserve(self, template: str, place: int, tests: int, parallelism: int) -> None:
        holder = self.connections[place]
        pool = self.fleet.pools[template]
        announcement = ev.Reserve(template, holder, tests, parallelism)
        if tests and (pool.lifecycle.is_draining or pool.phase == "failed"):
            with pytest.raises((DrainingError, TemplateFailedError)):
                self.fleet.handle(announcement, self.now)
            return
        self.announced[template].pop(holder, None)
        if tests:
            until = self.now + LASTS_SECONDS
            self.announced[template][holder] = Announced(tests, parallelism, until)
        self.happens(announcement)

    @rule(template=st.sampled_from(TEMPLATES), on=st.booleans())
    def drain(self, template: str, on: bool) -> None:
        self.happens(ev.Drain(template, on))

    @precondition(lambda self: self.writing)
    @rule(pick=PICK, works=st.booleans())
    def finish_writing(self, pick: int, works: bool) -> None:
        waiter = sorted(self.writing)[pick % len(self.writing)]
        template = self.writing[waiter].lease.template
        if works:
            self.happens(ev.LeaseRecorded(template, waiter))
        else:
            self.happens(ev.LeaseNotRecorded(template, waiter, ServerUnavailableError("x")))

    # Hands --------------------------------------------------------------------------------

    @precondition(lambda self: self.creating)
    @rule(pick=PICK, works=st.booleans(), declined=st.booleans())
    def finish_create(self, pick: int, works: bool, declined: bool) -> None:
        create = self.creating.pop(pick % len(self.creating))
        template, clone = create.template, create.clone
        if works:
            self.happens(ev.CloneCreated(template, clone))
        elif declined:
            error = ResourceError("x", limit="storage")
            self.happens(ev.CreateDeclined(template, clone, error))
        else:
            self.happens(ev.CreateFailed(template, clone, ServerUnavailableError("x")))

    @precondition(lambda self: self.adopting)
    @rule(pick=PICK, works=st.booleans())
    def finish_adopt(self, pick: int, works: bool) -> None:
        adopt = self.adopting.pop(pick % len(self.adopting))
        became = ev.CloneAdopted if works else ev.CloneUnusable
        self.happens(became(adopt.template, adopt.clone))

    @precondition(lambda self: self.parking)
    @rule(pick=PICK, works=st.booleans())
    def finish_park(self, pick: int, works: bool) -> None:
        park = self.parking.pop(pick % len(self.parking))
        became = ev.CloneParked if works else ev.CloneUnusable
        self.happens(became(park.template, park.clone))

    @rule(template=st.sampled_from(TEMPLATES), pick=PICK)
    def somebody_drops_a_clone(self, template: str, pick: int) -> None:
        pool = self.fleet.pools[template]
        names = sorted(pool.inventory._clones)
        if names:
            gone = names[pick % len(names)]
            self.kept.discard(gone)
            self.happens(ev.ClonesLost(template, (gone,)))

    @precondition(lambda self: self.recycling)
    @rule(pick=PICK, rewound=st.booleans())
    def finish_recycle(self, pick: int, rewound: bool) -> None:
        recycle = self.recycling.pop(pick % len(self.recycling))
        pool = self.fleet.pools[recycle.template]
        became = ev.CloneRewound if rewound else ev.CloneUnusable
        self.used |= {recycle.clone} if rewound else set()
        waiter = self.resetting.get(recycle.clone)
        if waiter is not None and (waiter in self.answered or self.deadlines[waiter] <= self.now):
            del self.resetting[recycle.clone]
        elif waiter is not None and not (rewound and recycle.generation == pool.generation):
            del self.resetting[recycle.clone]
            self.queue_reset(recycle.template, waiter)
        self.happens(became(recycle.template, recycle.clone))

    @precondition(lambda self: self.dropping)
    @rule(pick=PICK)
    def finish_drop(self, pick: int) -> None:
        drop = self.dropping.pop(pick % len(self.dropping))
        self.happens(ev.CloneDropped(drop.template, drop.clone))

    # The world ----------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.05, 0.5, 2.0, 2.0, LASTS_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.let_pass(seconds)

    @precondition(lambda self: self.fleet.next_timer() is not None)
    @rule()
    def the_timer_goes_off(self) -> None:
        due = self.fleet.next_timer()
        assert due is not None
        self.let_pass(max(0.0, due - self.now))

    def let_pass(self, seconds: float) -> None:
        self.now += seconds
        for announced in self.announced.values():
            for holder in [holder for holder, it in announced.items() if it.until <= self.now]:
                del announced[holder]
        before = {template: pool.ready for template, pool in self.fleet.pools.items()}
        no_request_waits = not any(pool.waiting for pool in self.fleet.pools.values())
        self.happens(ev.TimeCame())
        for template, pool in self.fleet.pools.items():
            if no_request_waits:
                assert pool.ready >= min(before[template], pool.demand.target), "shrunk too far"

    @rule(template=st.sampled_from(TEMPLATES), generation=st.sampled_from(GENERATIONS))
    def template_built(self, template: str, generation: str) -> None:
        self.happens(ev.TemplateReady(template, generation))

    @rule(template=st.sampled_from(TEMPLATES))
    def template_fails(self, template: str) -> None:
        self.happens(ev.TemplateFailed(template, TemplateFailedError("x")))

    @rule(template=st.sampled_from(TEMPLATES))
    def template_changes(self, template: str) -> None:
        self.happens(ev.TemplateStale(template))

    @rule(template=st.sampled_from(TEMPLATES))
    def template_is_lost(self, template: str) -> None:
        self.happens(ev.TemplateLost(template))

    @rule(away=st.booleans())
    def server_comes_and_goes(self, away: bool) -> None:
        self.happens(ev.ServerLost("gone") if away else ev.ServerFound())

    @rule()
    def grants_are_held(self) -> None:
        self.held_grants += 1
        self.happens(ev.GrantsHeld())

    @precondition(lambda self: self.held_grants)
    @rule()
    def grants_are_resumed(self) -> None:
        self.held_grants -= 1
        self.happens(ev.GrantsResumed())

    @rule(template=st.sampled_from(TEMPLATES))
    def ready_clones_are_distrusted(self, template: str) -> None:
        self.happens(ev.ReadyDistrusted(template))

    # Promises -----------------------------------------------------------------------------

    @invariant()
    def limits_hold(self) -> None:
        for template, pool in self.fleet.pools.items():
            assert pool.databases <= MAX_CLONES[template]
        assert self.fleet.databases == self.fleet.budget.used <= MAX_ALL

    @invariant()
    def no_request_waits_past_its_deadline(self) -> None:
        for queue in self.queued.values():
            assert all(self.deadlines[waiter] > self.now - 1e-6 for waiter in queue)

    @invariant()
    def no_request_waits_while_a_clone_is_ready(self) -> None:
        for pool in self.fleet.pools.values():
            if pool.lifecycle.is_granting and self.fleet.budget.grants:
                assert not (pool.ready and pool.waiting > pool.queue.fresh)
                assert not (pool.inventory.fresh and pool.waiting)

    @invariant()
    def the_target_lies_between_the_limits_and_above_what_was_announced(self) -> None:
        for template, pool in self.fleet.pools.items():
            announced = self.announced[template].values()
            reserved = sum(min(it.tests, it.parallelism) for it in announced)
            if self.is_overdue(pool):  # while the server is away nothing is reviewed
                continue
            assert pool.demand.reservations.ready == reserved
            assert pool.demand.target <= MAX_CLONES[template]
            assert pool.demand.target >= pool.limits.min_ready
            assert pool.demand.target >= min(reserved, MAX_CLONES[template])

    def is_overdue(self, pool: Pool) -> bool:
        """Say whether a reservation is over that is still counted, and will not be for long."""
        over = pool.demand.reservations.next_time
        if over is None or over > self.now:
            return False
        due = self.fleet.next_timer()
        assert self.fleet.budget.paused or (due is not None and due <= self.now)
        return True

    @invariant()
    def a_surplus_does_not_stay_for_ever(self) -> None:
        for pool in self.fleet.pools.values():
            if pool.ready > pool.demand.target and not self.fleet.budget.paused:
                assert pool.next_timer() is not None

    @invariant()
    def what_is_missing_is_tried_again(self) -> None:
        for pool in self.fleet.pools.values():
            missing = pool.shortage.to_create(refill=True, stock=False)
            if pool.phase == "ready" and missing > 0:
                assert pool.retries.is_pausing(self.now)
                assert pool.next_timer() is not None

    @invariant()
    def the_counts_agree_with_the_clones(self) -> None:
        for pool in self.fleet.pools.values():
            snapshot = pool.snapshot()
            states = [clone.state for clone in pool.inventory._clones.values()]
            for state in ("creating", "ready", "leased", "recycling", "kept", "dropping"):
                assert getattr(snapshot, state) == states.count(State(state))
            parked = (State.PARKING, State.PARKED, State.ADOPTING)
            assert snapshot.parked == sum(states.count(state) for state in parked)
            assert snapshot.returned == 0
            assert pool.coming == states.count(State.CREATING) + states.count(State.ADOPTING)

    @invariant()
    def what_is_kept_of_pools_is_what_they_say(self) -> None:
        pools, budget = self.fleet.pools.values(), self.fleet.budget
        assert budget.owed == sum(pool.shortage.owed for pool in pools)
        assert budget.coming_free == budget.room + sum(pool.leaving for pool in pools)
        times = [time for pool in pools if (time := pool.next_timer()) is not None]
        assert self.fleet.next_timer() == min(times, default=None)
        for pool in pools:
            assert pool.leases.connection_bound == sum(
                not lease.outlives_connection for lease in pool.leases.values()
            )
            first = pool.queue.first(fresh=False)
            if first is not None and not first.fresh:
                before = itertools.takewhile(lambda each: each is not first, pool.queue)  # noqa: B023 - used at once
                assert pool.queue.fresh_before(first) == sum(each.fresh for each in before)

    @invariant()
    def no_request_waits_for_the_place_of_an_idle_clone(self) -> None:
        assert self.fleet.budget.to_evict(self.now) == 0

    @invariant()
    def each_lease_has_a_living_holder_or_a_time(self) -> None:
        living = set(self.connections.values())
        for lease in self.fleet.leases():
            assert lease.holder in living or lease.expires_at is not None
            waits = lease in self.fleet.pools[lease.template].resets
            assert (
                waits or self.fleet.pools[lease.template].inventory.state(lease.clone) == "leased"
            )
        known = {lease.token for lease in self.fleet.leases()}
        unwritten = {record.lease.token for record in self.writing.values()}
        assert known - unwritten == (self.held.keys() | self.being_reset.keys()) - unwritten

    @invariant()
    def waiters_have_something_to_wait_for(self) -> None:
        for pool in self.fleet.pools.values():
            if pool.waiting and pool.phase == "ready":
                under_way = bool(self.creating or self.recycling or self.dropping)
                under_way = under_way or bool(self.occupied() or self.adopting or self.kept)
                assert under_way or self.fleet.next_timer() is not None

    def teardown(self) -> None:
        if not hasattr(self, "fleet"):
            return
        self.happens(ev.ServerFound())
        while self.held_grants:
            self.grants_are_resumed()
        self.happens(ev.Stop())
        self.finish_all()
        assert self.answered | self.orphaned == self.asked, "somebody was never answered"
        assert not self.being_reset, "a lease was never given its clone back"
        self.held = {token: held for token, held in self.held.items() if held.lasting}
        self.happens(ev.EndLeases())
        assert {lease.clone for lease in self.fleet.leases()} == self.occupied()
        self.finish_all()
        for pool in self.fleet.pools.values():
            states = pool.snapshot()
            assert not states.recycling
            assert states.leased == len(pool.leases)
        assert recording.replay(self.log).difference is None

    def finish_all(self) -> None:
        """Let all hands finish what they do."""
        while (
            self.recycling or self.writing or self.creating
            or self.adopting or self.parking or self.dropping
        ):  # fmt: skip
            if self.recycling:
                self.finish_recycle(0, rewound=True)
            if self.creating:
                self.finish_create(0, works=True, declined=False)
            if self.adopting:
                self.finish_adopt(0, works=True)
            if self.parking:
                self.finish_park(0, works=True)
            if self.dropping:
                self.finish_drop(0)
            for waiter, record in list(self.writing.items()):
                self.happens(ev.LeaseRecorded(record.lease.template, waiter))
                self.writing.pop(waiter, None)


PoolMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestPool = PoolMachine.TestCase
