"""What each method of the protocol does, between a connection and the dispatcher."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from clonepool.core.decisions import Grant, Renewed
from clonepool.errors import BadRequestError, ClientLimitError, ClonepoolError
from clonepool.protocol.messages import (
    PROTOCOL_VERSION,
    Acquire,
    AcquireResult,
    Build,
    Cancel,
    CancelResult,
    Drain,
    Explain,
    Hello,
    HelloResult,
    Leaked,
    LeaseLeaks,
    LeaseNews,
    Release,
    ReleaseResult,
    Renew,
    RenewResult,
    Reserve,
    ReserveResult,
    Reset,
)
from clonepool.service.api.progress import AcquireProgress, DrainWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.config import Config
    from clonepool.core.decisions import Notice
    from clonepool.postgres.endpoint import Endpoint
    from clonepool.protocol.server import Call, RequestId
    from clonepool.service.api.builds import Builds
    from clonepool.service.api.status import StatusBoard
    from clonepool.service.api.templates import TemplateMethods
    from clonepool.service.credentials import Credentials
    from clonepool.service.dispatcher import Answer, Dispatcher

log = structlog.get_logger()

DAEMON = f"clonepool {version('clonepool')}"

_MAY_WAIT = frozenset(
    ("acquire", "reset", "renew", "drain", "build", "explain", "snapshot", "define", "finalize")
)
"""Methods whose answer may take a while: what they ask for is held until then."""


class Connection(Protocol):
    """What a method needs of the connection that called it.

    Attributes:
        waiters: numbers of the acquires that it waits for.
        pending: how to take back its requests that can be, and answer them so; by their id. An
            entry goes when its request is answered.
        unanswered: how many of its requests are not answered yet.
        gone: whether it has ended.
    """

    number: int
    client: str
    waiters: set[int]
    pending: dict[RequestId, Callable[[], None]]
    unanswered: int
    gone: bool

    def reply(self, request: RequestId, result: object) -> None:
        """Send a result."""

    def reply_error(self, request: RequestId, error: ClonepoolError) -> None:
        """Send an error."""

    def notify(self, method: str, params: object) -> None:
        """Send what was not asked for."""


class Methods:
    """The dispatch table and its functions."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        endpoint: Endpoint,
        credentials: Credentials,
        config: Config,
        board: StatusBoard,
        builds: Builds,
        making: TemplateMethods,
        programs: str = "",
    ) -> None:
        self._dispatcher = dispatcher
        self._builds = builds
        self._making = making
        self._programs = programs
        self._endpoint = endpoint
        self._credentials = credentials
        self._instance = config.instance
        self._max_leases = config.access.max_leases_per_client
        self._max_pending = config.access.max_pending_per_client
        self._configured = frozenset(config.templates)
        self._table: dict[str, Callable[[Connection, RequestId, Any], None]] = {
            "hello": self._hello,
            "acquire": self._acquire,
            "release": self._release,
            "renew": self._renew,
            "reset": self._reset,
            "reserve": self._reserve,
            "drain": self._drain,
            "status": lambda peer, request, _: peer.reply(request, board.status()),
            "leases": lambda peer, request, _: peer.reply(request, board.leases()),
            "templates": lambda peer, request, _: peer.reply(request, board.templates()),
            "build": self._build,
            "explain": self._explain,
            "snapshot": making.snapshot,
            "define": making.define,
            "finalize": making.finalize,
            "cancel": self._cancel,
            "ping": lambda peer, request, _: peer.reply(request, {}),
        }

    def call(self, peer: Connection, call: Call) -> None:
        """Answer now or later.

        Raises:
            ClonepoolError: to be sent as the answer.
        """
        if call.method in _MAY_WAIT and peer.unanswered > self._max_pending:
            raise ClientLimitError(
                f"this connection waits for {peer.unanswered - 1} replies",
                remedy="read replies before you ask for more, or raise"
                " access.max_pending_per_client",
            )
        self._table[call.method](peer, call.id, call.params)

    def stop(self) -> None:
        """Refuse who waits for a template; the pools refuse for themselves."""
        self._making.stop()

    def disconnect(self, peer: Connection) -> None:
        """End what the connection held and waited for."""
        self._making.disconnect(peer)
        self._dispatcher.disconnect(peer.number, peer.waiters)

    def _hello(self, peer: Connection, request: RequestId, params: Hello) -> None:
        if params.protocol != PROTOCOL_VERSION:
            raise BadRequestError(
                f"protocol {params.protocol} is not spoken here",
                remedy=f"this daemon speaks protocol {PROTOCOL_VERSION}",
            )
        peer.client = params.client or peer.client
        peer.reply(request, HelloResult(PROTOCOL_VERSION, DAEMON, self._instance, self._programs))

    def _acquire(self, peer: Connection, request: RequestId, params: Acquire) -> None:
        self._check_leases(peer)
        waiter = self._ask(
            peer,
            request,
            lambda answer: self._dispatcher.acquire(
                params.template,
                peer.number,
                answer,
                timeout=params.timeout,
                ttl=params.ttl,
                label=params.label or peer.client,
                fresh=params.fresh,
                stale_ok=params.stale_ok,
            ),
        )
        self._let_cancel(peer, request, waiter)
        if params.progress:
            pool = self._dispatcher.fleet.pools[params.template]
            AcquireProgress(self._dispatcher, self._builds, peer, request, pool, waiter)

    def _reset(self, peer: Connection, request: RequestId, params: Reset) -> None:
        dispatcher, token = self._dispatcher, params.lease
        waiter = self._ask(
            peer,
            request,
            lambda answer: dispatcher.reset(token, peer.number, answer, timeout=params.timeout),
        )
        self._let_cancel(peer, request, waiter)

    def _renew(self, peer: Connection, request: RequestId, params: Renew) -> None:
        dispatcher, token = self._dispatcher, params.lease
        self._ask(
            peer,
            request,
            lambda answer: dispatcher.renew(token, peer.number, answer, ttl=params.ttl),
        )

    def _release(self, peer: Connection, request: RequestId, params: Release) -> None:
        if params.keep:
            self._keep(peer, request, params)
        elif params.report:
            self._dispatcher.release(
                params.lease,
                peer.number,
                lambda leaked: peer.reply(request, ReleaseResult(_leaked(leaked))),
            )
        else:
            self._dispatcher.release(params.lease, peer.number)
            peer.reply(request, ReleaseResult(leaked=None))

    def _keep(self, peer: Connection, request: RequestId, params: Release) -> None:
        lease = self._dispatcher.fleet.lease(params.lease)
        seconds = self._dispatcher.fleet.pools[lease.template].limits.keep_for

        def report(leaked: list[dict[str, Any]] | None, written_down: bool) -> None:
            kept_seconds = seconds if written_down else None
            peer.reply(request, ReleaseResult(_leaked(leaked), lease.clone, kept_seconds))

        self._dispatcher.keep(params.lease, seconds, report)

    def _reserve(self, peer: Connection, request: RequestId, params: Reserve) -> None:
        pool = self._dispatcher.reserve(
            params.template, peer.number, params.tests, params.parallelism
        )
        peer.reply(request, ReserveResult(pool.target, pool.ready))

    def _drain(self, peer: Connection, request: RequestId, params: Drain) -> None:
        self._dispatcher.drain(params.template, on=not params.off)
        timeout = 0.0 if params.off else params.timeout
        DrainWatch(
            self._dispatcher, peer, request, params.template, timeout, progress=params.progress
        )

    def _build(self, peer: Connection, request: RequestId, params: Build) -> None:
        self._check_configured(params.template)
        self._builds.build(peer, request, params)

    def _explain(self, peer: Connection, request: RequestId, params: Explain) -> None:
        self._check_configured(params.template)
        self._builds.explain(peer, request, params.template)

    def _ask(self, peer: Connection, request: RequestId, begin: Callable[[Answer], int]) -> int:
        """Begin what may have to wait; it is taken back when the connection ends before that."""
        waiter = 0

        def answer(outcome: Grant | Renewed | ClonepoolError) -> None:
            peer.waiters.discard(waiter)
            try:
                self._answer(peer, request, outcome)
            except Exception as error:  # who answers may be a worker: the mistake is this call's
                log.exception("request.failed", outcome=type(outcome).__name__)
                peer.reply_error(request, ClonepoolError(f"internal error: {error!r}"))

        waiter = begin(answer)
        if self._dispatcher.is_waiting(waiter):
            peer.waiters.add(waiter)
        return waiter

    def _let_cancel(self, peer: Connection, request: RequestId, waiter: int) -> None:
        if waiter in peer.waiters:
            peer.pending[request] = lambda: self._dispatcher.cancel(waiter)

    def _cancel(self, peer: Connection, request: RequestId, params: Cancel) -> None:
        """Take back a request of this connection, which is answered first."""
        take_back = peer.pending.pop(params.request, None)
        if take_back is not None:
            take_back()
        peer.reply(request, CancelResult(take_back is not None))

    def _answer(
        self, peer: Connection, request: RequestId, outcome: Grant | Renewed | ClonepoolError
    ) -> None:
        if isinstance(outcome, ClonepoolError):
            peer.reply_error(request, outcome)
        elif isinstance(outcome, Grant):
            peer.reply(request, self._lease(outcome))
        else:
            peer.reply(request, RenewResult(self._seconds_left(outcome.lease.expires_at)))

    def _check_configured(self, template: str) -> None:
        self._dispatcher.fleet.pool(template)
        if template not in self._configured:
            raise BadRequestError(
                f"the template {template} was made by a client", remedy="make it again"
            )

    def _check_leases(self, peer: Connection) -> None:
        held = self._dispatcher.fleet.held_by(peer.number)
        if held >= self._max_leases:
            raise ClientLimitError(
                f"this connection holds {held} leases",
                remedy="release some, or raise access.max_leases_per_client",
            )

    def _seconds_left(self, expires_at: float | None) -> float | None:
        return None if expires_at is None else round(expires_at - self._dispatcher.now(), 3)

    def _lease(self, grant: Grant) -> AcquireResult:
        lease, endpoint = grant.lease, self._endpoint
        login = self._credentials.of(lease)
        return AcquireResult(
            lease=lease.token,
            template=lease.template,
            generation=lease.generation,
            database=lease.clone,
            url=login.url,
            host=endpoint.host,
            port=endpoint.port,
            user=login.user,
            password=login.password,
            env=login.env,
            source=grant.source,
            waited_seconds=grant.waited_seconds,
            expires_in_seconds=self._seconds_left(lease.expires_at),
        )


def news_of(notice: Notice) -> LeaseNews:
    """Return what a holder is told."""
    lease = notice.lease
    return LeaseNews(
        lease.token, lease.template, lease.clone, lease.label, round(notice.seconds, 3)
    )


def leaks_of(template: str, clone: str, leaked: list[dict[str, Any]]) -> LeaseLeaks:
    """Return what is told of what a lease left."""
    return LeaseLeaks(template, clone, msgspec.convert(leaked, list[Leaked]))


def _leaked(leaked: list[dict[str, Any]] | None) -> list[Leaked] | None:
    return None if leaked is None else msgspec.convert(leaked, list[Leaked])
