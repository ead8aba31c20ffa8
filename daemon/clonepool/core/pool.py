"""One template's pool: events in, decisions out.

Every method takes what happened and when, changes the pool, and returns what is to be done. On
one event loop that makes each of them atomic, so there is no lock. Whatever decides who gets a
clone must live here; whatever touches a database must not. Which clones there are is in
`inventory`, which requests wait in `queue`, who holds what and until when in `tenancy`, how many
are to be ready in `sizing` and what is missing in `shortage`, when to try again in `backoff`, what
a refusal says in `refusals`.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import islice, takewhile
from typing import TYPE_CHECKING, assert_never

import msgspec

from clonepool.core import events as ev
from clonepool.core import refusals
from clonepool.core.backoff import Backoff
from clonepool.core.budget import rank
from clonepool.core.clone import Event, State
from clonepool.core.decisions import (
    Adopt,
    CreateClone,
    Decision,
    Drop,
    Keep,
    Lease,
    News,
    Notice,
    Park,
    PoolSnapshot,
    Recycle,
    Refuse,
    Request,
    Source,
)
from clonepool.core.inventory import Inventory
from clonepool.core.limits import Limit, Limits, limit_of
from clonepool.core.naming import Identity, Kind, Namer, Serials
from clonepool.core.queue import WaitQueue
from clonepool.core.resets import Resets
from clonepool.core.shortage import Shortage
from clonepool.core.sizing import Demand
from clonepool.core.tenancy import Tenancy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clonepool.core.budget import Budget
    from clonepool.errors import ClonepoolError


class Phase(StrEnum):
    """What is known of the template itself."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"
    STOPPING = "stopping"
    RETIRED = "retired"


class Pool:
    """The clones of one template and the requests for them.

    Args:
        template: its name.
        limits: how many clones.
        budget: shared by all pools; this one takes for each clone that exists or may exist.
        namer: makes the clones' names.
        serials: shared by all pools.
    """

    def __init__(
        self, template: str, limits: Limits, budget: Budget, namer: Namer, serials: Serials
    ) -> None:
        self.template = template
        self.limits = limits
        self.phase = Phase.BUILDING
        self.is_over = False  # stopping or retired: nothing more will be granted
        self.draining = False
        self.stale = False
        self.generation = ""
        self.failure: ClonepoolError | None = None
        self.obstacle: ClonepoolError | None = None
        self.tenancy = Tenancy(template, limits.max_lease)
        self.leases = self.tenancy.book
        self.line = WaitQueue(budget)
        self.resets = Resets()
        self.inventory = Inventory(budget)
        self.demand = Demand(limits, self.inventory, self.line)
        self.shortage = Shortage(limits, budget, self.inventory, self.line, self.demand)
        self.retries = Backoff()
        self._budget = budget
        self._namer = namer
        self._serials = serials

    # Events -------------------------------------------------------------------------------

    def handle(self, event: ev.PoolEvent, now: float) -> list[Decision]:  # noqa: C901, PLR0911, PLR0912 - one case an event
        """Take what happened to this pool and return what is to be done."""
        match event:
            case ev.CloneCreated(_, clone):
                return self.created(clone, now)
            case ev.CloneRewound(_, clone, locked_out):
                return self.rewound(clone, now, locked_out=locked_out)
            case ev.CloneUnusable(_, clone):
                return self.unusable(clone, now)
            case ev.CloneAdopted(_, clone):
                return self.adopted(clone, now)
            case ev.CloneParked(_, clone):
                return self.parked(clone)
            case ev.CloneSuspect(_, clone, seconds):
                return self.suspect(clone, seconds, now)
            case ev.CreateFailed(_, clone, error):
                return self.create_failed(clone, error, now)
            case ev.LeaseRecorded(_, waiter):
                return self.recorded(waiter, now)
            case ev.LeaseNotRecorded(_, waiter, error):
                return self.not_recorded(waiter, error)
            case ev.TemplateReady(_, generation):
                return self.template_ready(generation, now)
            case ev.TemplateFailed(_, error):
                return self.template_failed(error)
            case ev.TemplateStale():
                return self.template_stale()
            case ev.TemplateLost():
                return self.template_lost()
            case ev.BuildPostponed(_, obstacle):
                return self.build_postponed(obstacle)
            case ev.ReadyDistrusted():
                return self.distrust()
            case ev.Retire():
                return self.retire()
            case ev.FoundUnknown(_, clone):
                return self.found(clone)
            case ev.FoundParked(_, clone, generation, used):
                return self.found_parked(clone, generation, used=used)
            case ev.FoundLeased(lease):
                return self.found_leased(lease)
            case ev.FoundKept(_, clone, until):
                return self.found_kept(clone, until)
            case _:
                assert_never(event)

    # Clients ------------------------------------------------------------------------------

    def acquire(self, request: Request, now: float) -> list[Decision]:
        """Grant a ready clone, queue the request, or refuse it."""
        if refusal := self._refusal(request):
            return self._refuse(request, refusal)
        suitable = self.inventory.fresh if request.fresh else self.inventory.ready
        first = request.stale_ok if self.stale else not self.line
        if suitable and first and self._budget.grants:
            return [self._grant(request, Source.READY, now), *self.plan(now)]
        if request.deadline <= now:
            return self._refuse_late(request, now)
        self.line.add(request)
        if self.can_create and not self._budget.paused:
            self.demand.asked(now)
        return self.plan(now)

    def reserve(self, holder: int, tests: int, parallelism: int, now: float) -> list[Decision]:
        """Hold clones ready for tests that were announced; 0 tests take that back.

        Raises:
            TemplateFailedError, DrainingError: no lease is to be had; nothing changed.
        """
        if tests and (closed := self._closed()):
            raise closed
        self.demand.reserve(holder, tests, parallelism, now)
        return self.plan(now)

    def forget(self, waiter: int) -> list[Decision]:
        """Take a request back: its client has gone away.

        A reset goes on, to be answered to nobody: the lease is its holder's, or time's, still.
        """
        if self.line.withdraw(waiter) is not None:
            return []
        unwritten = self.tenancy.withdraw(waiter)
        if unwritten is not None and self.tenancy.is_new(unwritten):
            return self.release(unwritten.lease)
        return []

    def cancel(self, waiter: int) -> list[Decision]:
        """Take a request back that its client does not want any more.

        A lease that it resets is over: the client may not know where its clone is by now.
        """
        continued = self.resets.lease_of(waiter) or self.tenancy.continued_by(waiter)
        lease = None if continued is None else self.leases.current(continued)
        return self.forget(waiter) if lease is None else self.release(lease)

    def release(self, lease: Lease) -> list[Decision]:
        """End a lease, which must be one of `leases`; a reset of it is refused."""
        request = self.resets.end(lease)
        if request is None:
            return [self._recycle(lease, self.tenancy.end(lease))]
        self.line.remove(request.waiter)
        self.tenancy.end(lease)  # its clone is being recycled already
        return [Refuse(request.waiter, self.template, refusals.ended_while_reset())]

    def keep(self, lease: Lease, seconds: float, now: float) -> list[Decision]:
        """End a lease and set its clone aside for a person; the oldest kept one may have to go."""
        self.tenancy.end(lease)
        self.inventory.move(lease.clone, Event.KEEP)
        self.inventory.kept[lease.clone] = now + seconds
        kept = Keep(self.template, lease.generation, lease.clone, lease.label, seconds)
        too_many = max(0, len(self.inventory.kept) - self.limits.max_kept)
        surplus = list(self.inventory.kept)[:too_many]
        return [kept, *(drop for name in surplus for drop in self._drop(name))]

    def renew(self, lease: Lease, ttl: float | None, request: Request) -> list[Decision]:
        """Let a lease last longer; see `Tenancy.renew`."""
        return [self.tenancy.renew(lease, ttl, request)]

    def reset(self, lease: Lease, request: Request, now: float) -> list[Decision]:
        """Give a lease its clone as it was, or another one, before anybody else.

        The clone is recycled; where that is expected to rewind it, the lease waits for it, and
        otherwise gets another at once. The lease goes on meanwhile, and ends as ever. When there is
        no clone by the deadline, the request is refused and the lease is over.
        """
        continued = msgspec.structs.replace(request, continues=lease)
        own_clone = self.limits.rewinds
        self.resets.begin(lease, continued, own_clone=own_clone)
        recycle = self._recycle(lease, self.tenancy.part(lease), same_holder=own_clone)
        return [recycle] if own_clone else [recycle, *self.acquire(continued, now)]

    def refuse_all(self, error: ClonepoolError) -> list[Decision]:
        """Refuse all that wait in the line; a reset that waits for its own clone goes on."""
        return [d for request in self.line.pop_all() for d in self._refuse(request, error)]

    def drain(self, *, on: bool) -> list[Decision]:
        """Grant no new leases, or do so again; those that are held, or reset, are left alone."""
        self.draining = on
        refusal = refusals.draining(self.template)
        new = self.line.pop_new() if on else []
        return [Refuse(request.waiter, self.template, refusal) for request in new]

    def expire(self, now: float) -> list[Decision]:
        """Do what is due: refuse late requests, end or announce the end of leases, drop clones.

        Those go that were kept long enough, and some that nobody needs any more. A lease that is
        being written down past the deadline of its request is taken back.
        """
        decisions: list[Decision] = [
            decision
            for request in [*self.resets.pop_overdue(now), *self.line.pop_overdue(now)]
            for decision in self._refuse_late(request, now)
        ]
        for waiter, unwritten in list(self.tenancy.unwritten()):
            if unwritten.request.deadline <= now:
                error = self._timeout_error(unwritten.request, now)
                decisions += self.not_recorded(waiter, error)
        for news, lease in self.leases.pop_due(now):
            decisions.append(Notice(news, lease, max(0.0, (lease.expires_at or now) - now)))
            if news is News.EXPIRED:
                decisions += self.release(lease)
        for name in [name for name, until in self.inventory.kept.items() if until <= now]:
            decisions += self._drop(name)
        return [*decisions, *self._drop_surplus(now)]

    # What became of leases that were to be written down ----------------------------------------

    def recorded(self, waiter: int, now: float) -> list[Decision]:
        """The lease is written down: it can be told."""
        told = self.tenancy.recorded(waiter, now)
        return [told] if told is not None else self.not_recorded(waiter, refusals.not_your_lease())

    def not_recorded(self, waiter: int, error: ClonepoolError) -> list[Decision]:
        """The lease could not be written down: a new one is taken back, an old one stays."""
        unwritten = self.tenancy.take_back(waiter)
        if unwritten is None:
            return []
        back = self.release(unwritten.lease) if self.tenancy.is_new(unwritten) else []
        return [Refuse(waiter, self.template, error), *back]

    # The template --------------------------------------------------------------------------

    def template_ready(self, generation: str, now: float) -> list[Decision]:
        """Begin to make clones of this generation; parked ones of it are taken over first.

        Clones of an earlier one are granted to nobody any more.
        """
        if self.is_over:
            return []
        stale = self.distrust() if generation != self.generation else []
        self.phase, self.generation, self.failure = Phase.READY, generation, None
        self.stale, self.obstacle = False, None
        return [*stale, *self._adopt_parked(), *self.plan(now)]

    def template_failed(self, error: ClonepoolError) -> list[Decision]:
        """Refuse all waiters and all that will ask, with the cause."""
        if self.is_over:
            return []
        self.phase, self.failure, self.obstacle = Phase.FAILED, error, None
        return self.refuse_all(self._template_failure())

    def build_postponed(self, obstacle: ClonepoolError | None) -> list[Decision]:
        """The build can't go on for that reason, and is tried again; None when it goes on."""
        self.obstacle = obstacle if self.phase is Phase.BUILDING else None
        return []

    def template_stale(self) -> list[Decision]:
        """Grant nothing of the generation but to who says that this will do; leases go on.

        What it was made from has changed, and acquires wait for the next one. Ready clones stay
        until that is there: it may be the same after all.
        """
        if not self.is_over:
            self.phase, self.stale, self.failure = Phase.BUILDING, True, None
        return []

    def template_lost(self) -> list[Decision]:
        """The generation is not on the server any more; its clones are as good as before."""
        if self.phase is Phase.READY:
            self.phase = Phase.BUILDING
        return []

    # What became of decisions --------------------------------------------------------------

    def created(self, name: str, now: float) -> list[Decision]:
        """The clone exists, was checked, and is warm."""
        self.retries.succeeded()
        return self._became_ready(name, Event.CREATE, now)

    def rewound(self, name: str, now: float, *, locked_out: bool = True) -> list[Decision]:
        """The clone is provably in its generation's state again.

        Unless its former holder is `locked_out`, nobody but that one can have it.
        """
        self.demand.recycled(rewound=True)
        request = self.resets.take(name)
        late: list[Decision] = []
        if request is not None and request.deadline <= now:
            late = self._refuse_late(request, now)
            request = None
        if request is None and not locked_out:
            return [*late, *self._drop(name), *self.plan(now)]
        if request is None:
            return [*late, *self._became_ready(name, Event.REWIND, now)]
        if not self._is_current(name):
            return [*self._wait_for_another(request), *self._drop(name), *self.plan(now)]
        self.inventory.move(name, Event.REWIND, Event.GRANT)
        return [self._begin(request, Source.READY, name, now)]

    def adopted(self, name: str, now: float) -> list[Decision]:
        """The parked clone was checked and is open."""
        return self._became_ready(name, Event.ADOPT, now)

    def create_failed(self, name: str, error: ClonepoolError, now: float) -> list[Decision]:
        """The copy failed: remove what may be there, and try again after a pause."""
        self.retries.failed(error, now)
        return self._drop(name)

    def create_declined(self, name: str, error: ClonepoolError, now: float) -> None:
        """The copy was not even begun: there is nothing to remove."""
        self.retries.failed(error, now)
        self.inventory.discard(name)
        self.inventory.forget(name)

    def unusable(self, name: str, now: float) -> list[Decision]:
        """A returned or parked clone cannot be made good in place: drop it, make another."""
        if self.inventory.state(name) is State.RECYCLING:
            self.demand.recycled(rewound=False)
        return [*self._give_up_reset(name), *self._drop(name), *self.plan(now)]

    def suspect(self, name: str, seconds: float, now: float) -> list[Decision]:
        """A rewound clone is not what it should be: keep it for a person, make another."""
        given_up = self._give_up_reset(name)
        if self.phase is Phase.RETIRED:
            return [*given_up, *self._drop(name)]
        self.inventory.move(name, Event.KEEP)
        self.inventory.kept[name] = now + seconds
        return [*given_up, *self.plan(now)]

    def parked(self, name: str) -> list[Decision]:
        """The clone lies sealed: it is the next daemon's now."""
        self.inventory.forget(name)
        return []

    def dropped(self, name: str) -> None:
        """The database is gone: its place under the limits is whoever's the fleet finds."""
        self.inventory.forget(name)

    def lost(self, names: Iterable[str]) -> None:
        """Ready or kept clones were dropped or renamed by somebody else."""
        for name in self.inventory.names(State.READY, State.KEPT).intersection(names):
            self.inventory.discard(name)
            self.inventory.forget(name)

    # What an earlier daemon left -------------------------------------------------------------

    def found(self, name: str) -> list[Decision]:
        """A clone in an unknown state: drop it."""
        self.inventory.enter(name)
        return self._drop(name)

    def found_parked(self, name: str, generation: str, *, used: bool = False) -> list[Decision]:
        """A clone that was sealed when it was ready: to be adopted when its generation is known."""
        self.inventory.enter(name, State.PARKED, used=used)
        self.inventory.parked[name] = generation
        return []

    def found_leased(self, lease: Lease) -> list[Decision]:
        """A clone whose lease was written down and goes on."""
        self.inventory.enter(lease.clone, State.LEASED)
        self.leases.enter(lease)
        return []

    def found_kept(self, name: str, until: float) -> list[Decision]:
        """A clone that is kept until then, in monotonic seconds."""
        self.inventory.enter(name, State.KEPT)
        self.inventory.kept[name] = until
        return []

    # Upkeep -------------------------------------------------------------------------------

    def plan(self, now: float, *, refill: bool = True) -> list[Decision]:
        """Serve the waiters, then start the clones that are missing: without `refill`, for them."""
        decisions = self.serve(now)
        if self.can_create and not self._budget.paused and not self.retries.is_pausing(now):
            decisions += self._make_room_for_fresh()
            decisions += [self._create() for _ in range(self._missing(refill=refill))]
        return decisions

    def serve(self, now: float) -> list[Decision]:
        """Grant the ready clones to the waiters, unless another pool's have waited for longer."""
        decisions: list[Decision] = []
        if self.is_over or self.stale or not self._budget.grants:
            return decisions
        while self.inventory.ready and (request := self.line.first(fresh=self.inventory.fresh > 0)):
            if request.deadline <= now:
                self.line.remove(request.waiter)
                decisions += self._refuse_late(request, now)
            elif self._budget.is_overtaken(self, request, now) or self._owes_fresh(request):
                decisions += self.give_up_ready()
            else:
                self.line.remove(request.waiter)
                decisions.append(self._grant(request, Source.WAITED, now))
        return decisions

    def _owes_fresh(self, request: Request) -> bool:
        """Say whether waiters before this one want fresh clones, for which used ones must go."""
        if request.fresh or not self.line.fresh:
            return False
        before = takewhile(lambda each: each is not request, self.line)
        coming = (
            self.inventory.coming
            + max(0, self.shortage.room)
            + self.inventory.count[State.DROPPING]
        )
        return sum(each.fresh for each in before) > coming

    def start_one(self) -> Decision:
        """Start a clone for a waiter, whom the common limit has a place for."""
        return self._create()

    def distrust(self) -> list[Decision]:
        """Drop what is ready: something befell the server that may have changed it."""
        return [drop for _ in range(self.inventory.ready) for drop in self.give_up_ready()]

    def give_up_ready(self) -> list[Decision]:
        """Drop the ready clone that nobody has used for longest."""
        return self._drop(self.inventory.idlest()) if self.inventory.ready else []

    def stop(self) -> list[Decision]:
        """Refuse the waiters, park what is ready, and make no more; leases go on.

        So does a reset that waits for its own clone.
        """
        if self.phase is Phase.RETIRED:
            return []
        self.phase, self.is_over = Phase.STOPPING, True
        new = [
            Refuse(request.waiter, self.template, refusals.shutting_down())
            for request in self.line.pop_new()
        ]
        return [*new, *self.refuse_all(refusals.stopped_while_reset()), *self._park_ready()]

    def retire(self) -> list[Decision]:
        """Refuse the waiters, drop what is ready, and make no more: the template is given up."""
        self.phase, self.is_over = Phase.RETIRED, True
        parked = [drop for name in list(self.inventory.parked) for drop in self._drop(name)]
        return [*self.refuse_all(refusals.retired(self.template)), *self.distrust(), *parked]

    def end_leases(self) -> list[Decision]:
        """End every lease that does not outlive the daemon."""
        mortal = [lease for lease in self.leases.values() if not lease.outlives_connection]
        return [decision for lease in mortal for decision in self.release(lease)]

    # Questions ----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many requests are in the queue."""
        return len(self.line)

    @property
    def ready(self) -> int:
        """How many clones could be granted now."""
        return self.inventory.ready

    @property
    def coming(self) -> int:
        """How many clones are being made or adopted."""
        return self.inventory.coming

    @property
    def leaving(self) -> int:
        """How many clones are on their way out: each will make room."""
        recycling = self.inventory.count[State.RECYCLING] - self.resets.waiting
        return self.inventory.count[State.DROPPING] + recycling - self.returning

    @property
    def returning(self) -> int:
        """How many clones are being recycled, and are expected to be good again for anybody.

        Those that are being reset go back to their own leases.
        """
        recycling = self.inventory.count[State.RECYCLING] - self.resets.waiting
        return recycling if self.demand.rewinds_mostly else 0

    def claims(self, now: float) -> Iterator[float]:
        """Yield the ranks of the waiters for whom no clone is on its way, though one could be.

        In order; see `budget.rank`.
        """
        if not self.line or not self.can_create or self.retries.is_pausing(now):
            return iter(())
        served = self.inventory.coming + min(self.returning, len(self.line) - self.line.fresh)
        possible = max(0, self.limits.max_clones - len(self.inventory))
        return (rank(request) for request in islice(self.line, served, served + possible))

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds, waits for or has announced anything."""
        announced = self.demand.reservations.ready
        return not (len(self.leases) or self.line or announced or self.inventory.kept)

    @property
    def can_create(self) -> bool:
        """Whether there is a generation to clone."""
        return self.phase is Phase.READY

    @property
    def databases(self) -> int:
        """How many databases of this pool exist or may exist."""
        return len(self.inventory)

    @property
    def unsettled(self) -> int:
        """How many databases an orderly stop still has to wait for.

        What is parked when the daemon was never able to adopt it stays, and so do kept clones and
        those of leases that go on.
        """
        lasting = sum(
            lease.outlives_connection and lease not in self.resets for lease in self.leases.values()
        )
        return len(self.inventory) - len(self.inventory.kept) - len(self.inventory.parked) - lasting

    def next_timer(self) -> float | None:
        """When `expire` or `plan` has something to do next, in monotonic seconds.

        It is asked of every pool after every event, and most pools have nothing to do.
        """
        times = [self.demand.next_time() if not self.is_over and not self._budget.paused else None]
        if len(self.leases):
            times += [self.tenancy.next_time(), self.resets.first_deadline()]
        if self.line:
            times.append(self.line.first_deadline())
        if self.inventory.kept:
            times.append(min(self.inventory.kept.values()))
        if self.retries.at is not None and self.can_create and self._missing(refill=True) > 0:
            times.append(self.retries.at)
        return min((time for time in times if time is not None), default=None)

    def snapshot(self) -> PoolSnapshot:
        """Return counts and texts for status and metrics."""
        states = self.inventory.count
        return PoolSnapshot(
            template=self.template,
            phase=self.phase,
            generation=self.generation,
            failure=self.failure.sentence() if self.failure else "",
            draining=self.draining,
            min_ready=self.limits.min_ready,
            target=self.demand.target,
            max_clones=self.limits.max_clones,
            creating=states[State.CREATING],
            ready=states[State.READY],
            leased=states[State.LEASED],
            returned=states[State.RETURNED],
            recycling=states[State.RECYCLING],
            kept=states[State.KEPT],
            parked=states[State.PARKED],
            dropping=states[State.DROPPING],
            waiting=len(self.line),
            last_error=error.sentence() if (error := self._last_error) else "",
            limited_by=self._limited_by() or "",
        )

    # Inside -------------------------------------------------------------------------------

    def _refusal(self, request: Request) -> ClonepoolError | None:
        """Say why the request cannot even wait, if so."""
        continues = request.continues is not None
        if closed := self._closed(continues):
            return closed
        if continues:
            return None
        if len(self.line) >= self.limits.max_waiting:
            return refusals.queue_full(self.template, len(self.line))
        return None

    def _closed(self, continues: bool = False) -> ClonepoolError | None:
        """Say why there is nothing to be had, if so."""
        if self.phase is Phase.STOPPING:
            return refusals.shutting_down()
        if self.phase is Phase.RETIRED:
            return refusals.retired(self.template)
        if self.phase is Phase.FAILED:
            return self._template_failure()
        return refusals.draining(self.template) if self.draining and not continues else None

    def _grant(self, request: Request, source: Source, now: float) -> Decision:
        clone = self.inventory.take(Event.GRANT, fresh=request.fresh)
        self.demand.took(request.holder, now)
        return self._begin(request, source, clone, now)

    def _begin(self, request: Request, source: Source, clone: str, now: float) -> Decision:
        """Begin the lease of a clone that was taken, or let one go on that was reset."""
        if request.continues is not None:
            self.resets.end(request.continues)
        return self.tenancy.begin(request, source, clone, self.generation, now)

    def _recycle(self, lease: Lease, written_down: bool, *, same_holder: bool = False) -> Recycle:
        self.inventory.move(lease.clone, Event.RETURN, Event.RECYCLE)
        return Recycle(self.template, lease.generation, lease.clone, written_down, same_holder)

    def _refuse_late(self, request: Request, now: float) -> list[Decision]:
        return self._refuse(request, self._timeout_error(request, now))

    def _refuse(self, request: Request, error: ClonepoolError) -> list[Decision]:
        """Answer with an error; if that was a reset, its lease is over, and the holder is told."""
        refused: list[Decision] = [Refuse(request.waiter, self.template, error)]
        lease = None if request.continues is None else self.leases.current(request.continues)
        if lease is not None:
            self.resets.end(lease)
            self.tenancy.end(lease)
            told = lease.holder == request.holder
            refused += [] if told else [Notice(News.EXPIRED, lease, 0.0)]
        return refused

    def _is_current(self, name: str) -> bool:
        """Say whether it is a clone of today's generation: the template may be another by now."""
        identity = self._namer.parse(name)
        return identity is None or identity.generation == self.generation

    def _give_up_reset(self, name: str) -> list[Decision]:
        """Let a lease whose clone is not to be had any more wait for another one."""
        request = self.resets.take(name)
        return [] if request is None else self._wait_for_another(request)

    def _wait_for_another(self, request: Request) -> list[Decision]:
        """Let a lease that is being reset wait for another clone, if there will be any."""
        if self.phase is Phase.STOPPING:
            return self._refuse(request, refusals.stopped_while_reset())
        if closed := self._closed(continues=True):
            return self._refuse(request, closed)
        self.line.add(request)
        return []

    def _became_ready(self, name: str, event: Event, now: float) -> list[Decision]:
        if not self._is_current(name) or self.phase is Phase.RETIRED:
            return [*self._drop(name), *self.plan(now)]
        self.inventory.shelve(name, event)
        self.demand.replaced()
        return self._park_ready() if self.phase is Phase.STOPPING else self.plan(now)

    def _park_ready(self) -> list[Decision]:
        names = [self.inventory.take(Event.PARK) for _ in range(self.inventory.ready)]
        return [Park(self.template, name, self.inventory.is_used(name)) for name in names]

    def _adopt_parked(self) -> list[Decision]:
        """Take over the parked clones of this generation, as many as there may be."""
        decisions: list[Decision] = []
        room = self.limits.max_clones - len(self.inventory) + len(self.inventory.parked)
        for name, generation in list(self.inventory.parked.items()):
            if generation == self.generation and room > 0:
                room -= 1
                del self.inventory.parked[name]
                decisions.append(
                    Adopt(self.template, generation, name, self.inventory.is_used(name))
                )
            else:
                decisions += self._drop(name)
        return decisions

    def _create(self) -> CreateClone:
        identity = Identity(Kind.CLONE, self.template, self.generation, self._serials.next())
        name = self._namer.name(identity)
        self.inventory.enter(name)
        return CreateClone(self.template, self.generation, name)

    def _drop(self, name: str) -> list[Decision]:
        self.inventory.discard(name)
        return [Drop(self.template, name)]

    def _missing(self, *, refill: bool) -> int:
        return self.shortage.to_create(refill=refill, shelf=refill and not self.draining)

    def _drop_surplus(self, now: float) -> list[Decision]:
        if self.is_over or self._budget.paused:
            return []
        return [drop for _ in range(self.demand.review(now)) for drop in self.give_up_ready()]

    def _make_room_for_fresh(self) -> list[Decision]:
        """Let used clones go, where the limits leave no room for the fresh ones that are wanted."""
        recycling = self.inventory.count[State.RECYCLING]
        leaving = self.inventory.count[State.DROPPING] + recycling
        wanted = self.shortage.fresh - max(0, self.shortage.room) - leaving
        return [drop for _ in range(wanted) for drop in self.give_up_ready()]

    def _limited_by(self, asking: int = 0) -> Limit | None:
        """Name what keeps the clones away that are wanted, `asking` beyond those who wait."""
        if self.phase is not Phase.READY:
            return limit_of(self.obstacle)
        return self.shortage.limited_by(self.retries.last_error, asking)

    @property
    def _last_error(self) -> ClonepoolError | None:
        return self.obstacle or self.retries.last_error

    def _template_failure(self) -> ClonepoolError:
        return refusals.template_failed(self.template, self.failure)

    def _timeout_error(self, request: Request, now: float) -> ClonepoolError:
        waited = f"waited {now - request.asked_at:.3f} s for a clone of {self.template}"
        if self.phase is Phase.BUILDING:
            return refusals.still_building(waited, self.obstacle)
        if self._budget.paused:
            return refusals.server_away(
                waited, self._budget.server_problem or self._budget.problem()
            )
        limit = self._limited_by(asking=1)
        if limit is Limit.TEMPLATE and len(self.leases):
            held, most = list(self.leases.values()), self.limits.max_clones
            return refusals.pool_full(waited, self.template, held, limit, most, now)
        if limit is Limit.POOL and (held := self._budget.leases()):
            return refusals.pool_full(waited, self.template, held, limit, self._budget.limit, now)
        if self.retries.last_error is not None:
            return refusals.creating_fails(waited, self.retries.last_error)
        return refusals.too_slow(waited)
