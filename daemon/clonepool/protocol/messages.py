"""The shape of requests, replies and notifications; the types here are the schema.

Except the results of `status`, `leases` and `templates`: these are dicts that `service/api/status`
builds, and docs/protocol.md lists their fields. Unknown fields of a request are errors, so that a
misspelt option is never ignored. Replies may grow.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

PROTOCOL_VERSION = 1
MAX_TIMEOUT_SECONDS = 86_400.0
MAX_TTL_SECONDS = 30 * 86_400.0
MAX_TESTS = 1_000_000_000

Text = Annotated[str, msgspec.Meta(max_length=200)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_TIMEOUT_SECONDS)]
Tests = Annotated[int, msgspec.Meta(ge=0, le=MAX_TESTS)]
Parallelism = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Lifetime = Annotated[float, msgspec.Meta(gt=0, le=MAX_TTL_SECONDS)]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the parameters of all requests."""


class Hello(Params, frozen=True):
    """Agree on the version and name the client."""

    protocol: int = PROTOCOL_VERSION
    client: Text = ""


class Acquire(Params, frozen=True):
    """Ask for a lease; `timeout` in seconds, the daemon's default when absent."""

    template: Text
    timeout: Seconds | None = None
    ttl: Lifetime | None = None
    label: Text = ""
    fresh: bool = False
    stale_ok: bool = False
    progress: bool = False


class Release(Params, frozen=True):
    """Give a lease back, by its token.

    Attributes:
        keep: set the clone aside for inspection; answered when that is recorded.
        report: answer only when it is known what the lease left.
    """

    lease: Text
    keep: bool = False
    report: bool = False


class Renew(Params, frozen=True):
    """Renew a lease for `ttl` seconds from now."""

    lease: Text
    ttl: Lifetime | None = None


class Reset(Params, frozen=True):
    """Make the clone of a lease clean again."""

    lease: Text
    timeout: Seconds | None = None


class Reserve(Params, frozen=True):
    """Announce tests, `parallelism` of them at a time; 0 `tests` takes that back."""

    template: Text
    tests: Tests
    parallelism: Parallelism = 1


class Drain(Params, frozen=True):
    """Grant no new leases of one template, or of any; `off` grants them again."""

    template: Text | None = None
    off: bool = False
    timeout: Seconds = 0.0
    progress: bool = False


class Status(Params, frozen=True):
    """Ask what the pools hold."""


class Leases(Params, frozen=True):
    """List the leases and their holders."""


class Templates(Params, frozen=True):
    """Ask which templates can be leased."""


class Build(Params, frozen=True):
    """Build a template if anything that goes into it has changed, or in any case with `anew`."""

    template: Text
    anew: bool = False
    progress: bool = False


class Explain(Params, frozen=True):
    """Ask what goes into a template."""

    template: Text


class Snapshot(Params, frozen=True):
    """Make a template of a leased clone as it is; `end_sessions` ends the sessions on it."""

    lease: Text
    template: Text
    end_sessions: bool = False


class Define(Params, frozen=True):
    """Ask for the template whose content `hash` stands for, or fill it; `name` begins its name."""

    hash: Text
    name: Text = "made"
    timeout: Seconds | None = None


class Finalize(Params, frozen=True):
    """Make a template of the database that was filled; `abandon` drops it instead."""

    definition: Text
    abandon: bool = False


class Cancel(Params, frozen=True):
    """Cancel an earlier request of the same connection, named by its id."""

    request: int | Text


class Ping(Params, frozen=True):
    """Ask whether the daemon answers."""


METHODS: dict[str, type[Params]] = {
    "hello": Hello,
    "acquire": Acquire,
    "release": Release,
    "renew": Renew,
    "reset": Reset,
    "reserve": Reserve,
    "drain": Drain,
    "status": Status,
    "leases": Leases,
    "templates": Templates,
    "build": Build,
    "explain": Explain,
    "snapshot": Snapshot,
    "define": Define,
    "finalize": Finalize,
    "cancel": Cancel,
    "ping": Ping,
}


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON-RPC request; `jsonrpc` may be left out, for requests typed by hand."""

    id: int | Annotated[str, msgspec.Meta(max_length=200)]
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")
    jsonrpc: Literal["2.0"] = "2.0"


class HelloResult(msgspec.Struct, frozen=True):
    """The daemon that answers, and the directory of an embedded server's programs."""

    protocol: int
    daemon: str
    instance: str
    programs: str = ""


class AcquireResult(msgspec.Struct, frozen=True):
    """A lease, and everything that is needed to connect to its clone."""

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
    expires_in_seconds: float | None


class Leaked(msgspec.Struct, frozen=True):
    """What a lease left: a session on its clone, or a change of the server as a whole.

    Attributes:
        pid: of the session's backend; 0 for a change of the server.
        state: the session's.
        query: the session's last one.
        what: the change of the server and whether it was undone, in words; empty for a session.
    """

    pid: int = 0
    application_name: str = ""
    state: str = ""
    query: str = ""
    what: str = ""


class ReleaseResult(msgspec.Struct, frozen=True):
    """How the lease ended.

    Attributes:
        leaked: what the lease left; None when that is not known, because the server has not been
            asked yet or did not answer.
        kept: the database that is kept; None when none is.
        kept_seconds: for how long; None also when that could not be written down, so that the
            next daemon will drop it.
    """

    leaked: list[Leaked] | None
    kept: str | None = None
    kept_seconds: float | None = None


class RenewResult(msgspec.Struct, frozen=True):
    """How long the lease lasts from now on; None when time does not end it."""

    expires_in_seconds: float | None


class ReserveResult(msgspec.Struct, frozen=True):
    """How many clones are to be ready from now on, and how many are."""

    target: int
    ready: int


class DrainResult(msgspec.Struct, frozen=True):
    """How many leases are still held."""

    leases: int


class BuildResult(msgspec.Struct, frozen=True):
    """The generation that a build found or made, whether it was reused, and the seconds."""

    template: str
    generation: str
    database: str
    reused: bool
    seconds: float


class ExplainResult(msgspec.Struct, frozen=True):
    """What goes into a template now, by kind and name, and why a build is due, if it is.

    Attributes:
        warnings: what its scripts do that may leave a part of them out.
    """

    template: str
    generation: str
    inputs: dict[str, dict[str, str]]
    due: list[str]
    warnings: list[str] = []


class SnapshotResult(msgspec.Struct, frozen=True):
    """The template that was made, and the seconds it took."""

    template: str
    generation: str
    database: str
    seconds: float


class DefineResult(msgspec.Struct, frozen=True):
    """A template that can be leased when it is `filled`, else a database to fill.

    Attributes:
        template: its name.
        filled: whether it is there; then the rest is empty.
        definition: token for `finalize`.
        expires_in_seconds: how long the client may take to fill it.
    """

    template: str
    filled: bool
    definition: str = ""
    database: str = ""
    url: str = ""
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = ""
    env: dict[str, str] = {}
    expires_in_seconds: float = 0.0


class FinalizeResult(msgspec.Struct, frozen=True):
    """The template that can be leased from now on; empty when it was abandoned."""

    template: str = ""
    generation: str = ""


class CancelResult(msgspec.Struct, frozen=True):
    """Whether the request was taken back; if not, it has its own answer, now or later."""

    cancelled: bool


class BuildProgress(msgspec.Struct, frozen=True):
    """How far a build is: `step` of `steps`, and what is done in it."""

    request: int | str | None
    what: str
    step: int
    steps: int
    seconds: float


class Progress(msgspec.Struct, frozen=True):
    """How far a waiting acquire is; `ahead` waiters are served before it.

    The last four fields are those of `BuildProgress` while the template is built, and empty
    otherwise.
    """

    request: int | str | None
    waited_seconds: float
    ahead: int
    phase: str
    limited_by: str
    what: str = ""
    step: int = 0
    steps: int = 0
    seconds: float = 0.0


class DrainProgress(msgspec.Struct, frozen=True):
    """How many leases a waiting drain waits for."""

    request: int | str | None
    leases: int


class LeaseNews(msgspec.Struct, frozen=True):
    """Something that time has done to a lease: it is about to expire, or has expired."""

    lease: str
    template: str
    database: str
    label: str
    seconds_left: float


class LeaseLeaks(msgspec.Struct, frozen=True):
    """What was left by a lease that expired, or was released without asking for a report."""

    template: str
    database: str
    leaked: list[Leaked]


NOTIFICATIONS: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "progress": (Progress, DrainProgress, BuildProgress),
    "lease.expiring": (LeaseNews,),
    "lease.expired": (LeaseNews,),
    "lease.leaked": (LeaseLeaks,),
}


class ErrorData(msgspec.Struct, frozen=True):
    """The part of an error that programs may rely on."""

    code: str
    remedy: str


class ErrorObject(msgspec.Struct, frozen=True):
    """JSON-RPC's error member."""

    code: int
    message: str
    data: ErrorData
