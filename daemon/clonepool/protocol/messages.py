"""The shape of every request and reply; the types here are the schema.

Unknown fields of a request are errors, so that a misspelt option is never ignored. Replies may
grow.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

PROTOCOL_VERSION = 1
MAX_TIMEOUT_SECONDS = 86_400.0

Text = Annotated[str, msgspec.Meta(max_length=200)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_TIMEOUT_SECONDS)]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a request may carry."""


class Hello(Params, frozen=True):
    """Agree on the version and name the client."""

    protocol: int = PROTOCOL_VERSION
    client: Text = ""


class Acquire(Params, frozen=True):
    """Ask for a lease; `timeout` in seconds, the daemon's default when absent."""

    template: Text
    timeout: Seconds | None = None
    label: Text = ""
    fresh: bool = False


class Release(Params, frozen=True):
    """Give a lease back, by its token."""

    lease: Text


class Status(Params, frozen=True):
    """What the pools hold."""


class Leases(Params, frozen=True):
    """Who holds what."""


class Templates(Params, frozen=True):
    """What can be leased."""


class Ping(Params, frozen=True):
    """Liveness."""


METHODS: dict[str, type[Params]] = {
    "hello": Hello,
    "acquire": Acquire,
    "release": Release,
    "status": Status,
    "leases": Leases,
    "templates": Templates,
    "ping": Ping,
}


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON-RPC request; `jsonrpc` may be left out by those who type by hand."""

    id: int | Annotated[str, msgspec.Meta(max_length=200)]
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")
    jsonrpc: Literal["2.0"] = "2.0"


class HelloResult(msgspec.Struct, frozen=True):
    """Who answers."""

    protocol: int
    daemon: str
    instance: str


class AcquireResult(msgspec.Struct, frozen=True):
    """A lease and all that is needed to connect."""

    lease: str
    template: str
    generation: str
    database: str
    url: str
    host: str
    port: int
    user: str
    password: str
    env: dict[str, str]
    source: str
    waited_seconds: float


class LeakedSession(msgspec.Struct, frozen=True):
    """A session that was still open on a clone when its lease ended."""

    pid: int
    application_name: str
    state: str
    query: str


class ReleaseResult(msgspec.Struct, frozen=True):
    """The sessions that had to be ended; None when the server could not be asked."""

    leaked: list[LeakedSession] | None


class ErrorData(msgspec.Struct, frozen=True):
    """The stable part of an error."""

    code: str
    remedy: str


class ErrorObject(msgspec.Struct, frozen=True):
    """JSON-RPC's error member."""

    code: int
    message: str
    data: ErrorData
