"""What happens to the pools, as data: everything that changes the fleet is one of these.

`Fleet.handle` takes an event and the time and returns decisions. Nothing else changes the fleet, so
a log of events with their times replays to the same decisions (see `recording`). What is asked of
the fleet without a change, such as a snapshot, is no event. What is to be done is in `decisions`.

Every struct is frozen and can be encoded as JSON; times are monotonic seconds. An event that names
a `template` must name one that the fleet has.
"""

from __future__ import annotations

import msgspec

from clonepool.core.decisions import Lease, Request  # noqa: TC001 - msgspec reads the annotation
from clonepool.core.limits import Limits  # noqa: TC001 - msgspec reads the annotation
from clonepool.errors import ClonepoolError  # noqa: TC001 - msgspec reads the annotation


class OfPool(msgspec.Struct, frozen=True):
    """What concerns the pool of its template alone."""

    template: str


# Clients ----------------------------------------------------------------------------------


class Acquire(msgspec.Struct, frozen=True, tag=True):
    """A client asks for a lease; the template may be unknown."""

    template: str
    request: Request


class Release(msgspec.Struct, frozen=True, tag=True):
    """A client ends a lease."""

    token: str


class Reset(msgspec.Struct, frozen=True, tag=True):
    """A client wants its lease to have a clean clone."""

    token: str
    request: Request


class Renew(msgspec.Struct, frozen=True, tag=True):
    """A client wants a lease to last `ttl` seconds from now; None for as long as before."""

    token: str
    ttl: float | None
    request: Request


class Keep(msgspec.Struct, frozen=True, tag=True):
    """A client ends a lease and wants its clone kept for some seconds, to be looked at."""

    token: str
    seconds: float


class Reserve(msgspec.Struct, frozen=True, tag=True):
    """A connection announces tests and how many run at a time; 0 tests withdraw that.

    The template may be unknown.
    """

    template: str
    holder: int
    tests: int
    parallelism: int


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """A connection takes one of its requests back."""

    waiter: int


class HolderGone(msgspec.Struct, frozen=True, tag=True):
    """A connection ended, with these requests unanswered."""

    holder: int
    waiters: tuple[int, ...]


class Drain(msgspec.Struct, frozen=True, tag=True):
    """A drain of one template, or of all (None), begins or ends.

    The template may be unknown.
    """

    template: str | None
    on: bool


# Time and the server -----------------------------------------------------------------------


class TimeCame(msgspec.Struct, frozen=True, tag=True):
    """The time has come that `Fleet.next_timer` named."""


class ServerLost(msgspec.Struct, frozen=True, tag=True):
    """The server is away, `problem` says how.

    May be repeated with another problem while it is away.
    """

    problem: str = ""


class ServerFound(msgspec.Struct, frozen=True, tag=True):
    """The server is back."""


class GrantsHeld(msgspec.Struct, frozen=True, tag=True):
    """Nothing is to be granted until a matching `GrantsResumed`: a lease changed the server."""


class GrantsResumed(msgspec.Struct, frozen=True, tag=True):
    """One reason to hold grants is over."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """The daemon stops: it grants nothing more. Leases continue."""


class EndLeases(msgspec.Struct, frozen=True, tag=True):
    """The grace of a stop is over: leases end that do not outlive the daemon."""


# Leases that are written down --------------------------------------------------------------


class LeaseRecorded(OfPool, frozen=True, tag=True):
    """What `Record` asked for is written down."""

    waiter: int


class LeaseNotRecorded(OfPool, frozen=True, tag=True):
    """What `Record` asked for could not be written down."""

    waiter: int
    error: ClonepoolError


# Templates ---------------------------------------------------------------------------------


class TemplateEntered(msgspec.Struct, frozen=True, tag=True):
    """There is a template of that name; nothing changes when the fleet has it already."""

    template: str
    limits: Limits


class TemplateRemoved(msgspec.Struct, frozen=True, tag=True):
    """A template is forgotten whose pool is empty."""

    template: str


class TemplateReady(OfPool, frozen=True, tag=True):
    """The generation is built, or was found to be still the right one."""

    generation: str


class TemplateFailed(OfPool, frozen=True, tag=True):
    """The template could not be built."""

    error: ClonepoolError


class TemplateStale(OfPool, frozen=True, tag=True):
    """What the generation was made from has changed; another one is to be built."""


class TemplateLost(OfPool, frozen=True, tag=True):
    """The generation is no longer on the server."""


class BuildPostponed(OfPool, frozen=True, tag=True):
    """The build cannot continue because of the obstacle, and is tried again; None: it continues."""

    obstacle: ClonepoolError | None


class ReadyDistrusted(OfPool, frozen=True, tag=True):
    """Something may have changed the template's ready clones: they are not to be granted."""


class Retire(OfPool, frozen=True, tag=True):
    """The template is given up."""


# Clones: what became of decisions ----------------------------------------------------------


class CloneCreated(OfPool, frozen=True, tag=True):
    """The clone exists, was checked, and is warm."""

    clone: str


class CreateFailed(OfPool, frozen=True, tag=True):
    """The copy failed; something of it may be there."""

    clone: str
    error: ClonepoolError


class CreateDeclined(msgspec.Struct, frozen=True, tag=True):
    """The copy was not even begun; nothing of it is there."""

    template: str
    clone: str
    error: ClonepoolError


class CloneAdopted(OfPool, frozen=True, tag=True):
    """The parked clone was checked and is open."""

    clone: str


class CloneRewound(OfPool, frozen=True, tag=True):
    """The clone is proven to be in its generation's state again.

    Unless its former holder is `locked_out`, it can be granted to that holder only.
    """

    clone: str
    locked_out: bool = True


class CloneUnusable(OfPool, frozen=True, tag=True):
    """A clone that was to be recycled, adopted or parked cannot be."""

    clone: str


class CloneSuspect(OfPool, frozen=True, tag=True):
    """A rewound clone differs from its generation: it is kept for some seconds, to be looked at."""

    clone: str
    seconds: float


class CloneParked(OfPool, frozen=True, tag=True):
    """The clone is sealed for the next daemon."""

    clone: str


class CloneDropped(msgspec.Struct, frozen=True, tag=True):
    """The database is gone, as was decided."""

    template: str
    clone: str


class ClonesLost(msgspec.Struct, frozen=True, tag=True):
    """Clones were dropped or renamed by others."""

    template: str
    clones: tuple[str, ...]


# Clones that an earlier daemon left --------------------------------------------------------


class FoundUnknown(OfPool, frozen=True, tag=True):
    """A clone was found of which nothing is known."""

    clone: str


class FoundParked(OfPool, frozen=True, tag=True):
    """A clone of that generation was found parked; `used` if it was leased before."""

    clone: str
    generation: str
    used: bool = False


class FoundLeased(msgspec.Struct, frozen=True, tag=True):
    """A clone with a living lease was found; the lease's token is the digest of the real one."""

    lease: Lease

    @property
    def template(self) -> str:
        """The template of the lease, to whose pool the clone belongs."""
        return self.lease.template


class FoundKept(OfPool, frozen=True, tag=True):
    """A clone was found that is kept until then, in monotonic seconds."""

    clone: str
    until: float


FleetEvent = (
    Acquire | Release | Reset | Renew | Keep | Reserve | Cancel | HolderGone | Drain
    | TimeCame | ServerLost | ServerFound | GrantsHeld | GrantsResumed | Stop | EndLeases
    | TemplateEntered | TemplateRemoved | CreateDeclined | CloneDropped | ClonesLost
)  # fmt: skip
"""What concerns more than one pool, if only because a place has become free for another."""

PoolEvent = (
    LeaseRecorded | LeaseNotRecorded
    | TemplateReady | TemplateFailed | TemplateStale | TemplateLost | BuildPostponed
    | ReadyDistrusted | Retire
    | CloneCreated | CreateFailed | CloneAdopted | CloneRewound | CloneUnusable | CloneSuspect
    | CloneParked
    | FoundUnknown | FoundParked | FoundLeased | FoundKept
)  # fmt: skip
"""What concerns the pool of its template alone."""

Event = FleetEvent | PoolEvent
