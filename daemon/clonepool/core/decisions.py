"""What passes between the pure core and the shell: requests and leases in, decisions out."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from clonepool.errors import ClonepoolError  # noqa: TC001 - msgspec reads the annotation


class Source(StrEnum):
    """Where a granted clone came from."""

    READY = "ready"
    WAITED = "waited"


class Request(msgspec.Struct, frozen=True):
    """One acquire.

    Attributes:
        waiter: number that names the request, unique among those that wait.
        token: the unguessable name that the lease will have.
        holder: number of the connection that the lease will belong to.
        label: what the client calls it, for people.
        asked_at: monotonic seconds.
        deadline: monotonic seconds; by then the request is answered.
    """

    waiter: int
    token: str
    holder: int
    label: str
    asked_at: float
    deadline: float


class Lease(msgspec.Struct, frozen=True):
    """The exclusive right to one clone; `granted_at` in monotonic seconds."""

    token: str
    template: str
    generation: str
    clone: str
    holder: int
    label: str
    granted_at: float


class Grant(msgspec.Struct, frozen=True):
    """Hand the lease to the waiter."""

    waiter: int
    lease: Lease
    source: Source
    waited_seconds: float


class Refuse(msgspec.Struct, frozen=True):
    """Tell the waiter why it gets none."""

    waiter: int
    template: str
    error: ClonepoolError


class CreateClone(msgspec.Struct, frozen=True):
    """Copy the generation into a new database of this name."""

    template: str
    generation: str
    clone: str


class Recycle(msgspec.Struct, frozen=True):
    """End what is left of the lease and make the clone good again, or say that it cannot be."""

    template: str
    generation: str
    clone: str


class Drop(msgspec.Struct, frozen=True):
    """Remove the database."""

    template: str
    clone: str


Decision = Grant | Refuse | CreateClone | Recycle | Drop


class PoolSnapshot(msgspec.Struct, frozen=True):
    """One template's pool at one moment; counts of clones, seconds for times."""

    template: str
    phase: str
    generation: str
    failure: str
    min_ready: int
    max_clones: int
    creating: int
    ready: int
    leased: int
    returned: int
    recycling: int
    kept: int
    dropping: int
    waiting: int
    last_error: str
    limited_by: str
