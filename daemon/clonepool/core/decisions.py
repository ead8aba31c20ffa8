"""What passes between the pure core and the shell: requests and leases in, decisions out."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

import msgspec

from clonepool.errors import ClonepoolError  # noqa: TC001 - msgspec reads the annotation


class Source(StrEnum):
    """Where a granted clone came from."""

    READY = "ready"
    WAITED = "waited"


class Request(msgspec.Struct, frozen=True):
    """One acquire, reset or renewal.

    Attributes:
        waiter: number that names the request, unique among those that wait.
        token: the unguessable name that the lease will have.
        holder: number of the connection that the lease will belong to.
        label: what the client calls it, for people.
        asked_at: monotonic seconds.
        deadline: monotonic seconds; by then the request is answered.
        ttl: seconds that the lease is to last whatever becomes of its connection; None binds it to
            the connection.
        fresh: whether the clone must never have been leased before.
        stale_ok: whether a clone of a generation will do whose successor is being built.
        continues: the lease that is to get another clone; it goes before requests without a lease.
    """

    waiter: int
    token: str
    holder: int
    label: str
    asked_at: float
    deadline: float
    ttl: float | None = None
    continues: Lease | None = None
    fresh: bool = False
    stale_ok: bool = False


class Lease(msgspec.Struct, frozen=True):
    """The exclusive right to one clone.

    Attributes:
        granted_at: monotonic seconds.
        ttl: seconds that each renewal gives it; None when it ends with its connection.
        expires_at: monotonic seconds; None when time does not end it.
        resets: how many times it has been given a clean clone.
    """

    token: str
    template: str
    generation: str
    clone: str
    holder: int
    label: str
    granted_at: float
    ttl: float | None = None
    expires_at: float | None = None
    resets: int = 0

    @property
    def outlives_connection(self) -> bool:
        """Whether the lease is written down, and found again by the next daemon."""
        return self.ttl is not None


class Grant(msgspec.Struct, frozen=True, tag=True):
    """Hand the lease to the waiter; `asked_at` is when it asked, in monotonic seconds."""

    waiter: int
    lease: Lease
    source: Source
    waited_seconds: float
    asked_at: float


class Refuse(msgspec.Struct, frozen=True, tag=True):
    """Tell the waiter why it gets no lease."""

    waiter: int
    template: str
    error: ClonepoolError


class Record(msgspec.Struct, frozen=True, tag=True):
    """Record the lease, then tell the pool; only after that is the client told of the lease."""

    log_event: ClassVar[str] = "lease.record_decided"

    waiter: int
    lease: Lease

    @property
    def clone(self) -> str:
        """The clone that is leased."""
        return self.lease.clone


class Renewed(msgspec.Struct, frozen=True, tag=True):
    """Tell the waiter until when its lease lasts now."""

    waiter: int
    lease: Lease


class News(StrEnum):
    """What the holder of a lease is told without having asked."""

    EXPIRING = "lease.expiring"
    EXPIRED = "lease.expired"


class Notice(msgspec.Struct, frozen=True, tag=True):
    """Tell the holder, if it is still connected; `seconds` are left of the lease."""

    news: News
    lease: Lease
    seconds: float


class CreateClone(msgspec.Struct, frozen=True, tag=True):
    """Copy the generation into a new database of this name."""

    log_event: ClassVar[str] = "clone.create_decided"

    template: str
    generation: str
    clone: str


class Recycle(msgspec.Struct, frozen=True, tag=True):
    """End what is left of the lease and make the clone good again, or say that it cannot be.

    When the lease was `written_down`, its end is written down before anything else. Where it is
    reset and is to have the clone again, `same_holder`, its holder is not locked out.
    """

    log_event: ClassVar[str] = "clone.recycle_decided"

    template: str
    generation: str
    clone: str
    written_down: bool = False
    same_holder: bool = False


class Keep(msgspec.Struct, frozen=True, tag=True):
    """End what is left of the lease and record that the clone is kept, and for how many seconds."""

    log_event: ClassVar[str] = "clone.keep_decided"

    template: str
    generation: str
    clone: str
    label: str
    seconds: float


class Park(msgspec.Struct, frozen=True, tag=True):
    """Seal a ready clone, `used` or not, and leave it for the next start."""

    log_event: ClassVar[str] = "clone.park_decided"

    template: str
    clone: str
    used: bool


class Adopt(msgspec.Struct, frozen=True, tag=True):
    """Check a clone that an earlier daemon parked, `used` or not, and open it."""

    log_event: ClassVar[str] = "clone.adopt_decided"

    template: str
    generation: str
    clone: str
    used: bool = False


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Remove the database."""

    log_event: ClassVar[str] = "clone.drop_decided"

    template: str
    clone: str


Decision = (
    Grant | Refuse | Record | Renewed | Notice
    | CreateClone | Recycle | Keep | Park | Adopt | Drop
)  # fmt: skip


class PoolSnapshot(msgspec.Struct, frozen=True):
    """One template's pool at one moment; counts of clones.

    Attributes:
        returned: always 0: a returned clone is recycling at once. Clients may still read it.
        parked: sealed between two daemons, or being parked or adopted.
        target: how many are to be ready, between `min_ready` and `max_clones`.
    """

    template: str
    phase: str
    generation: str
    failure: str
    draining: bool
    min_ready: int
    target: int
    max_clones: int
    creating: int
    ready: int
    leased: int
    returned: int
    recycling: int
    kept: int
    parked: int
    dropping: int
    waiting: int
    last_error: str
    limited_by: str
