"""One template's pool: events in, decisions out.

Every method takes what happened and when, changes the pool, and returns what is to be done. On
one event loop that makes each of them atomic, so there is no lock. Whatever decides who gets a
clone must live here; whatever touches a database must not.
"""

from __future__ import annotations

from collections import Counter, deque
from enum import StrEnum

import msgspec

from clonepool.core.clone import Clone, Event, State
from clonepool.core.decisions import (
    CreateClone,
    Decision,
    Drop,
    Grant,
    Lease,
    PoolSnapshot,
    Recycle,
    Refuse,
    Request,
    Source,
)
from clonepool.core.naming import Identity, Kind, Namer, Serials
from clonepool.core.sizing import clones_to_create
from clonepool.errors import (
    AcquireTimeoutError,
    ClonepoolError,
    PoolFullError,
    ServerUnavailableError,
    TemplateFailedError,
)

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 2.0


class Phase(StrEnum):
    """What is known of the template itself."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"
    STOPPING = "stopping"


class Limits(msgspec.Struct, frozen=True):
    """How many clones one template may hold: ready when idle, and in all."""

    min_ready: int
    max_clones: int


class Budget:
    """The number of clones that all pools together may hold."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.paused = False

    @property
    def room(self) -> int:
        """How many more may be made now; negative when an earlier run left too many."""
        return 0 if self.paused else self.limit - self.used


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
        self.generation = ""
        self.failure: ClonepoolError | None = None
        self.leases: dict[str, Lease] = {}
        self._budget = budget
        self._namer = namer
        self._serials = serials
        self._clones: dict[str, Clone] = {}
        self._count: Counter[State] = Counter()
        self._ready: deque[Clone] = deque()
        self._waiters: dict[int, Request] = {}
        self._last_error: ClonepoolError | None = None
        self._backoff = 0.0
        self._retry_at = 0.0

    # Clients ------------------------------------------------------------------------------

    def acquire(self, request: Request, now: float) -> list[Decision]:
        """Grant a ready clone, queue the request, or refuse it."""
        if self.phase is Phase.FAILED:
            return [Refuse(request.waiter, self.template, self._template_failure())]
        if self._ready and not self._waiters and not self._budget.paused:
            return [self._grant(request, Source.READY, now), *self.plan(now)]
        if request.deadline <= now:
            return [Refuse(request.waiter, self.template, self._timeout_error(request, now))]
        self._waiters[request.waiter] = request
        return self.plan(now)

    def forget(self, waiter: int) -> None:
        """Take a request out of the queue: whoever asked has gone away."""
        self._waiters.pop(waiter, None)

    def release(self, token: str) -> list[Decision]:
        """End the lease of that token, which must be one of `leases`."""
        lease = self.leases.pop(token)
        clone = self._clones[lease.clone]
        self._move(clone, Event.RETURN)
        self._move(clone, Event.RECYCLE)
        return [Recycle(self.template, lease.generation, clone.name)]

    def refuse_all(self, error: ClonepoolError) -> list[Decision]:
        """Empty the queue, each request answered with `error`."""
        waiters, self._waiters = self._waiters, {}
        return [Refuse(waiter, self.template, error) for waiter in waiters]

    def expire(self, now: float) -> list[Decision]:
        """Refuse every request whose deadline has come."""
        late = [request for request in self._waiters.values() if request.deadline <= now]
        for request in late:
            del self._waiters[request.waiter]
        return [Refuse(r.waiter, self.template, self._timeout_error(r, now)) for r in late]

    # The template --------------------------------------------------------------------------

    def template_ready(self, generation: str, now: float) -> list[Decision]:
        """Begin to make clones of this generation."""
        if self.phase is Phase.STOPPING:
            return []
        self.phase, self.generation, self.failure = Phase.READY, generation, None
        return self.plan(now)

    def template_failed(self, error: ClonepoolError) -> list[Decision]:
        """Refuse everybody who waits and will ask, with the cause."""
        if self.phase is Phase.STOPPING:
            return []
        self.phase, self.failure = Phase.FAILED, error
        return self.refuse_all(self._template_failure())

    # What became of decisions --------------------------------------------------------------

    def created(self, name: str, now: float) -> list[Decision]:
        """The clone exists, was checked, and is warm."""
        self._backoff, self._last_error = 0.0, None
        return self._became_ready(name, Event.CREATE, now)

    def rewound(self, name: str, now: float) -> list[Decision]:
        """The clone is provably in its generation's state again."""
        return self._became_ready(name, Event.REWIND, now)

    def create_failed(self, name: str, error: ClonepoolError, now: float) -> list[Decision]:
        """The copy failed: remove what may be there, and try again after a pause."""
        self._last_error = error
        self._backoff = min(max(self._backoff * 2, FIRST_BACKOFF_SECONDS), LONGEST_BACKOFF_SECONDS)
        self._retry_at = now + self._backoff
        return self._drop(name)

    def not_rewindable(self, name: str, now: float) -> list[Decision]:
        """The returned clone cannot be made good in place: drop it and make another."""
        return [*self._drop(name), *self.plan(now)]

    def dropped(self, name: str) -> None:
        """The database is gone: its place under the limits is whoever's the fleet finds."""
        self._move(self._clones.pop(name), Event.VANISH)
        self._budget.used -= 1

    def found(self, name: str) -> list[Decision]:
        """A database of ours from an earlier run, in an unknown state: drop it."""
        self._enter(name)
        return self._drop(name)

    # Upkeep -------------------------------------------------------------------------------

    def plan(self, now: float, *, refill: bool = True) -> list[Decision]:
        """Serve who waits, then start the clones that are missing: without `refill`, for them."""
        if self.phase is not Phase.READY or self._budget.paused:
            return []
        decisions: list[Decision] = []
        while self._waiters and self._ready:
            request = self._waiters.pop(next(iter(self._waiters)))
            if request.deadline <= now:
                error = self._timeout_error(request, now)
                decisions.append(Refuse(request.waiter, self.template, error))
            else:
                decisions.append(self._grant(request, Source.WAITED, now))
        if not self.is_pausing(now):
            decisions += [self._create() for _ in range(self._missing(refill=refill))]
        return decisions

    def give_up_ready(self) -> list[Decision]:
        """Drop one ready clone, so that another pool may make one."""
        return self._drop(self._ready[-1].name) if self._ready else []

    def clear(self) -> list[Decision]:
        """Drop everything that is ready and make no more: the daemon stops."""
        self.phase = Phase.STOPPING
        return [d for clone in list(self._ready) for d in self._drop(clone.name)]

    # Questions ----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many requests are in the queue."""
        return len(self._waiters)

    @property
    def ready(self) -> int:
        """How many clones could be granted now."""
        return len(self._ready)

    @property
    def creating(self) -> int:
        """How many clones are being made."""
        return self._count[State.CREATING]

    @property
    def leaving(self) -> int:
        """How many clones are on their way out, or may be: each will make room."""
        return self._count[State.DROPPING] + self._count[State.RECYCLING]

    @property
    def can_create(self) -> bool:
        """Whether there is a generation to clone."""
        return self.phase is Phase.READY

    def is_pausing(self, now: float) -> bool:
        """Say whether nothing is tried because the last try failed a moment ago."""
        return now < self._retry_at

    @property
    def databases(self) -> int:
        """How many databases of this pool exist or may exist."""
        return len(self._clones)

    def next_timer(self) -> float | None:
        """When `expire` or `plan` has something to do next, in monotonic seconds."""
        times = [request.deadline for request in self._waiters.values()]
        if self._backoff and self.can_create and self._missing(refill=True) > 0:
            times.append(self._retry_at)
        return min(times, default=None)

    def snapshot(self) -> PoolSnapshot:
        """Return counts and texts for status and metrics."""
        states = self._count
        return PoolSnapshot(
            template=self.template,
            phase=self.phase,
            generation=self.generation,
            failure=self.failure.sentence() if self.failure else "",
            min_ready=self.limits.min_ready,
            max_clones=self.limits.max_clones,
            creating=states[State.CREATING],
            ready=states[State.READY],
            leased=states[State.LEASED],
            returned=states[State.RETURNED],
            recycling=states[State.RECYCLING],
            kept=states[State.KEPT],
            dropping=states[State.DROPPING],
            waiting=len(self._waiters),
            last_error=self._last_error.sentence() if self._last_error else "",
            limited_by=self._limited_by(),
        )

    # Inside -------------------------------------------------------------------------------

    def _grant(self, request: Request, source: Source, now: float) -> Grant:
        clone = self._ready.popleft()
        self._move(clone, Event.GRANT)
        lease = Lease(
            token=request.token,
            template=self.template,
            generation=self.generation,
            clone=clone.name,
            holder=request.holder,
            label=request.label,
            granted_at=now,
        )
        self.leases[lease.token] = lease
        return Grant(request.waiter, lease, source, now - request.asked_at)

    def _became_ready(self, name: str, event: Event, now: float) -> list[Decision]:
        clone = self._clones[name]
        self._move(clone, event)
        self._ready.append(clone)
        return self.clear() if self.phase is Phase.STOPPING else self.plan(now)

    def _create(self) -> CreateClone:
        identity = Identity(Kind.CLONE, self.template, self.generation, self._serials.next())
        name = self._namer.name(identity)
        self._enter(name)
        return CreateClone(self.template, self.generation, name)

    def _enter(self, name: str) -> None:
        clone = self._clones[name] = Clone(name)
        self._count[clone.state] += 1
        self._budget.used += 1

    def _move(self, clone: Clone, event: Event) -> None:
        """Apply the event and keep the counts, so that no acquire has to count clones."""
        before = clone.state
        self._count[clone.apply(event)] += 1
        self._count[before] -= 1

    def _drop(self, name: str) -> list[Decision]:
        clone = self._clones[name]
        if clone.state is State.READY:
            self._ready.remove(clone)
        self._move(clone, Event.DROP)
        return [Drop(self.template, name)]

    def _wants(self) -> int:
        """Clones missing if the limits were no matter."""
        everything = self.limits.min_ready + len(self._waiters)
        return self._to_create(self.limits.min_ready, room=everything)

    def _missing(self, *, refill: bool) -> int:
        room = min(self.limits.max_clones - len(self._clones), self._budget.room)
        return self._to_create(self.limits.min_ready if refill else 0, room)

    def _to_create(self, min_ready: int, room: int) -> int:
        return clones_to_create(
            min_ready=min_ready,
            waiting=len(self._waiters),
            ready=len(self._ready),
            coming=self.creating,
            room=room,
        )

    def _limited_by(self) -> str:
        if self.phase is not Phase.READY or self._wants() == 0:
            return ""
        if len(self._clones) >= self.limits.max_clones:
            return f"templates.{self.template}.max_clones"
        if self._budget.paused:
            return "server"
        return "pool.max_clones" if self._budget.room <= 0 else ""

    def _template_failure(self) -> TemplateFailedError:
        cause = self.failure.sentence() if self.failure else "unknown"
        return TemplateFailedError(
            f"template {self.template} could not be built: {cause}",
            remedy="correct the template's files and start the daemon again",
        )

    def _timeout_error(self, request: Request, now: float) -> ClonepoolError:
        waited = f"waited {now - request.asked_at:.3f} s for a clone of {self.template}"
        if self.phase is Phase.BUILDING:
            return AcquireTimeoutError(
                f"{waited}: the template is still being built", remedy="raise the timeout"
            )
        if self._budget.paused:
            return ServerUnavailableError(
                f"{waited}: PostgreSQL cannot be reached", remedy="see `clonepool status`"
            )
        if self._last_error is not None:
            return AcquireTimeoutError(
                f"{waited}: {self._last_error}", remedy="see `clonepool status`"
            )
        limit = self._limited_by()
        if limit and self.leases:
            oldest = min(self.leases.values(), key=lambda lease: lease.granted_at)
            return PoolFullError(
                f"{waited}: {len(self.leases)} of {self.limits.max_clones} are leased, the oldest"
                f" for {now - oldest.granted_at:.1f} s by {oldest.label or 'a client'}",
                remedy=f"raise {limit}, or release leases sooner",
            )
        return AcquireTimeoutError(
            f"{waited}: none became ready in time", remedy="raise min_ready or the timeout"
        )
