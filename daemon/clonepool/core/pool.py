"""One template's pool: events in, decisions out.

What must hold, after every event:

- A clone is leased to one holder at a time, and only from `ready`, where it is proven to be as its
  generation. A clone of another generation than the template's current one is granted to nobody.
- Each request is answered once: granted, or refused with the reason, at the latest at its deadline.
- First come, first served. A request that continues a lease goes before those that begin one. A
  request that wants a fresh clone lets others pass that do not, but is not passed over for good.
- No more clones exist than the template's limit and the common one allow. A place that comes free
  goes to the request, of whatever template, that has waited for longest (see `budget`).
- Clones are made for waiters first, then up to what `sizing` wants ready.
- Where the table of a clone or of a template has no step, nothing has changed.

All decisions about which request gets a clone must be here; access to databases, clocks or sockets
must not. Every method takes what happened and when, changes the pool, and returns what is to be
done. It runs to its end without waiting, so on one event loop it needs no lock.

What a pool consists of is in `pool_state`. Of its parts `inventory` has the clones, `queue` the
requests that wait, `leases` and `leasing` the leases, `template` the condition of the template,
`sizing` how many clones are to be ready, `shortage` how many are missing, `backoff` when to try
again, `refusals` what a client is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import msgspec

from clonepool.core import events as ev
from clonepool.core import refusals
from clonepool.core.clone import CloneEvent, State
from clonepool.core.decisions import Decision, Lease, Request, Source
from clonepool.core.pool_state import PoolState
from clonepool.core.template import Condition, TemplateEvent

if TYPE_CHECKING:
    from clonepool.errors import ClonepoolError


class Pool(PoolState):
    """The clones of one template and the requests for them."""

    def handle(self, event: ev.PoolEvent, now: float) -> list[Decision]:  # noqa: C901, PLR0911, PLR0912 - one case an event
        """Apply an event of this pool and return the decisions.

        Args:
            event: what happened.
            now: monotonic seconds.
        """
        match event:
            case ev.CloneCreated(_, clone):
                return self._created(clone, now)
            case ev.CloneRewound(_, clone, locked_out):
                return self._rewound(clone, now, locked_out=locked_out)
            case ev.CloneUnusable(_, clone):
                return self._unusable(clone, now)
            case ev.CloneAdopted(_, clone):
                return self._became_ready(clone, CloneEvent.OPEN, now)
            case ev.CloneParked(_, clone):
                return self.inventory.end_parking(clone)
            case ev.CloneSuspect(_, clone, seconds):
                return self._suspect(clone, seconds, now)
            case ev.CreateFailed(_, clone, error):
                return self._create_failed(clone, error, now)
            case ev.LeaseRecorded(_, waiter):
                return self.leasing.recorded(waiter, now)
            case ev.LeaseNotRecorded(_, waiter, error):
                return self.leasing.not_recorded(waiter, error)
            case ev.TemplateReady(_, generation):
                return self._template_ready(generation, now)
            case ev.TemplateFailed(_, error):
                return self._template_failed(error)
            case ev.TemplateStale():
                return self._apply(TemplateEvent.CHANGE)
            case ev.TemplateLost():
                return self._apply(TemplateEvent.LOSE)
            case ev.BuildPostponed(_, obstacle):
                self.lifecycle.postpone(obstacle)
                return []
            case ev.ReadyDistrusted():
                return [*self.inventory.drop_ready(), *self.plan(now)]
            case ev.Retire():
                return self._retire()
            case ev.FoundUnknown(_, clone):
                self.inventory.enter(clone)
                return [self.inventory.drop(clone)]
            case ev.FoundParked(_, clone, generation, used):
                self.inventory.enter(clone, State.PARKED, generation=generation, used=used)
                return []
            case ev.FoundLeased(lease):
                self.inventory.enter(lease.clone, State.LEASED, generation=lease.generation)
                self.leases.enter(lease)
                return []
            case ev.FoundKept(_, clone, until):
                self.inventory.enter(clone, State.KEPT)
                self.inventory.kept_until.set(clone, until)
                return []
            case _:
                assert_never(event)

    # Clients ------------------------------------------------------------------------------

    def acquire(self, request: Request, now: float) -> list[Decision]:
        """Grant a ready clone, queue the request, or refuse it."""
        granted = self.grant_at_once(request, now)
        if granted is not None:
            return [granted, *self.plan(now)]
        if refusal := self._refusal(request):
            return self.leasing.refuse(request, refusal)
        if request.deadline <= now:
            return self._refuse_late(request, now)
        self.queue.add(request)
        if self.can_create and not self.budget.paused:
            self.demand.asked(now)
        return self.plan(now)

    def grant_at_once(self, request: Request, now: float) -> Decision | None:
        """Grant a ready clone to a request that has to wait for nothing; else change nothing.

        What follows from it, `plan` decides: it must be asked before anything else happens.
        """
        suitable = self.inventory.fresh if request.fresh else self.inventory.ready
        first = request.stale_ok if self.lifecycle.is_stale else not self.queue
        if suitable and first and self.budget.grants and not self._refusal(request):
            return self._grant(request, Source.READY, now)
        return None

    def reserve(self, holder: int, tests: int, parallelism: int, now: float) -> list[Decision]:
        """Hold clones ready for tests that were announced; 0 tests take that back.

        Raises:
            TemplateFailedError, DrainingError: no lease is available; nothing changed.
        """
        if tests and (closed := self._closed()):
            raise closed
        self.demand.reserve(holder, tests, parallelism, now)
        return self.plan(now)

    def reset(self, lease: Lease, request: Request, now: float) -> list[Decision]:
        """Give a lease its clone cleaned, or another one, before any other request.

        The clone is recycled. The lease waits for it if a rewind is expected, and otherwise gets
        another at once. The lease continues in the meantime, and may end as usual. If there is
        no clone by the deadline, the request is refused and the lease is over.
        """
        continued = msgspec.structs.replace(request, continues=lease)
        recycle = self.leasing.reset(lease, continued)
        return [recycle] if self.limits.rewinds else [recycle, *self.acquire(continued, now)]

    def expire(self, now: float) -> list[Decision]:
        """Do what is due: refuse late requests, end or announce the end of leases, drop clones.

        Clones that were kept long enough are dropped, and so are some that are no longer needed. A
        lease that is not recorded by the deadline of its request is taken back.
        """
        late = [*self.resets.pop_overdue(now), *self.queue.pop_overdue(now)]
        decisions = [decision for request in late for decision in self._refuse_late(request, now)]
        for request in self.leasing.pop_overdue(now):
            error = self.timed_out(request, now)
            decisions += self.leasing.not_recorded(request.waiter, error)
        decisions += self.leasing.expire(now)
        decisions += self.inventory.drop_overdue(now)
        if not self.lifecycle.is_over and not self.budget.paused:
            surplus = self.demand.review(now)
            decisions += [drop for _ in range(surplus) for drop in self.inventory.drop_idlest()]
        return decisions

    # The template --------------------------------------------------------------------------

    def _template_ready(self, generation: str, now: float) -> list[Decision]:
        """Begin to make clones of this generation; parked ones of it are taken over first.

        Clones of an earlier generation are no longer granted.
        """
        if self.lifecycle.is_over:
            return []
        stale = self.inventory.drop_ready() if generation != self.generation else []
        self.lifecycle.apply(TemplateEvent.BUILT, generation=generation)
        adopted = self.inventory.adopt_parked(generation, self.limits.max_clones)
        return [*stale, *adopted, *self.plan(now)]

    def _template_failed(self, error: ClonepoolError) -> list[Decision]:
        """Refuse all waiters and all that will ask, with the cause."""
        if self.lifecycle.is_over:
            return []
        self.lifecycle.apply(TemplateEvent.FAIL, failure=error)
        return self.leasing.refuse_all(refusals.template_failed(self.template, error))

    def drain(self, *, on: bool) -> list[Decision]:
        """Grant no new leases, or do so again; those that are held, or reset, go on."""
        self._apply(TemplateEvent.DRAIN if on else TemplateEvent.LIFT)
        return self.leasing.refuse_new(refusals.draining(self.template)) if on else []

    def stop(self) -> list[Decision]:
        """Refuse the waiters, park the ready clones, and make no more; leases continue.

        So does a reset that waits for its own clone.
        """
        if not self.lifecycle.takes(TemplateEvent.STOP):
            return []
        self.lifecycle.apply(TemplateEvent.STOP)
        new = self.leasing.refuse_new(refusals.shutting_down())
        reset = self.leasing.refuse_all(refusals.stopped_while_reset())
        return [*new, *reset, *self.inventory.park_ready()]

    def _retire(self) -> list[Decision]:
        """Refuse the waiters, drop what is ready, and make no more: the template is given up."""
        self._apply(TemplateEvent.RETIRE)
        refused = self.leasing.refuse_all(refusals.retired(self.template))
        return [*refused, *self.inventory.drop_ready(), *self.inventory.drop_parked()]

    # What became of decisions --------------------------------------------------------------

    def _created(self, name: str, now: float) -> list[Decision]:
        """The clone exists, was checked, and is warm."""
        self.retries.succeeded()
        return self._became_ready(name, CloneEvent.CREATE, now)

    def _rewound(self, name: str, now: float, *, locked_out: bool = True) -> list[Decision]:
        """The clone is proven to be in its generation's state again.

        Unless its former holder is `locked_out`, it can be granted to that holder only.
        """
        self.demand.recycled(rewound=True)
        request = self.resets.take(name)
        late: list[Decision] = []
        if request is not None and request.deadline <= now:
            late = self._refuse_late(request, now)
            request = None
        if request is None and not locked_out:
            return [*late, self.inventory.drop(name), *self.plan(now)]
        if request is None:
            return [*late, *self._became_ready(name, CloneEvent.REWIND, now)]
        if not self.inventory.is_of(name, self.generation):
            waits = self._wait_for_another(request)
            return [*waits, self.inventory.drop(name), *self.plan(now)]
        self.inventory.move(name, CloneEvent.REWIND, CloneEvent.GRANT)
        return [self.leasing.begin(request, Source.READY, name, self.generation, now)]

    def _create_failed(self, name: str, error: ClonepoolError, now: float) -> list[Decision]:
        """The copy failed: remove what may be there, and try again after a pause."""
        self.retries.failed(error, now)
        return [self.inventory.drop(name)]

    def _unusable(self, name: str, now: float) -> list[Decision]:
        """A clone cannot be recycled, adopted or parked: drop it, make another."""
        if self.inventory.state(name) is State.RECYCLING:
            self.demand.recycled(rewound=False)
        waits = self._give_up_reset(name)
        return [*waits, self.inventory.drop(name), *self.plan(now)]

    def _suspect(self, name: str, seconds: float, now: float) -> list[Decision]:
        """A rewound clone differs from its generation: keep it for inspection, make another."""
        waits = self._give_up_reset(name)
        if self.lifecycle.condition is Condition.RETIRED:
            return [*waits, self.inventory.drop(name)]
        self.inventory.keep(name, now + seconds)
        return [*waits, *self.plan(now)]

    # Grants and plans ---------------------------------------------------------------------

    def plan(self, now: float, *, refill: bool = True) -> list[Decision]:
        """Serve the waiters, then start the clones that are missing: without `refill`, for them."""
        decisions = self.serve(now)
        if self.can_create and not self.budget.paused and not self.retries.is_pausing(now):
            too_many = self.shortage.used_in_the_way_of_fresh
            decisions += [drop for _ in range(too_many) for drop in self.inventory.drop_idlest()]
            decisions += [self.start_one() for _ in range(self.missing(refill=refill))]
        return decisions

    def serve(self, now: float) -> list[Decision]:
        """Grant the ready clones to the waiters, unless another pool's have waited for longer."""
        decisions: list[Decision] = []
        if not self.queue or not self.lifecycle.is_granting or not self.budget.grants:
            return decisions
        while self.inventory.ready and (
            request := self.queue.first(fresh=self.inventory.fresh > 0)
        ):
            if request.deadline <= now:
                self.queue.remove(request.waiter)
                decisions += self._refuse_late(request, now)
            elif self.budget.is_overtaken(self, request, now) or self.shortage.owes_fresh(request):
                decisions += self.inventory.drop_idlest()
            else:
                self.queue.remove(request.waiter)
                decisions.append(self._grant(request, Source.WAITED, now))
        return decisions

    def start_one(self) -> Decision:
        """Start a clone."""
        return self.inventory.create(self.generation)

    def _grant(self, request: Request, source: Source, now: float) -> Decision:
        clone = self.inventory.take(CloneEvent.GRANT, fresh=request.fresh)
        self.demand.took(request.holder, now)
        return self.leasing.begin(request, source, clone, self.generation, now)

    def _became_ready(self, name: str, event: CloneEvent, now: float) -> list[Decision]:
        condition = self.lifecycle.condition
        if condition is Condition.RETIRED or not self.inventory.is_of(name, self.generation):
            return [self.inventory.drop(name), *self.plan(now)]
        self.inventory.add_ready(name, event)
        self.demand.replaced()
        return [*self.inventory.park_ready()] if condition is Condition.STOPPING else self.plan(now)

    # Refusals and resets ------------------------------------------------------------------

    def _refusal(self, request: Request) -> ClonepoolError | None:
        """Say why the request cannot even wait, if so."""
        continues = request.continues is not None
        closed = self._closed(continues=continues)
        if closed or continues or len(self.queue) < self.limits.max_waiting:
            return closed
        return refusals.queue_full(self.template, len(self.queue))

    def _closed(self, *, continues: bool = False) -> ClonepoolError | None:
        """Say why no lease of the template is available, if none is."""
        if self.lifecycle.condition is Condition.READY:
            return None  # the usual case, on the way of every acquire
        return self.lifecycle.refusal(continues=continues)

    def _refuse_late(self, request: Request, now: float) -> list[Decision]:
        return self.leasing.refuse(request, self.timed_out(request, now))

    def _give_up_reset(self, name: str) -> list[Decision]:
        """Let a lease whose clone is no longer available wait for another one."""
        request = self.resets.take(name)
        return [] if request is None else self._wait_for_another(request)

    def _wait_for_another(self, request: Request) -> list[Decision]:
        """Make a lease that is being reset wait for another clone, if there will be any."""
        if self.lifecycle.condition is Condition.STOPPING:
            return self.leasing.refuse(request, refusals.stopped_while_reset())
        if closed := self._closed(continues=True):
            return self.leasing.refuse(request, closed)
        self.queue.add(request)
        return []

    def _apply(self, event: TemplateEvent) -> list[Decision]:
        """Change the template's condition, unless it is past such events."""
        if self.lifecycle.takes(event):
            self.lifecycle.apply(event)
        return []
