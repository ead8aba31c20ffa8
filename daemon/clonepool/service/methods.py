"""What each method of the protocol does, between a connection and the broker."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from clonepool.core.decisions import Grant
from clonepool.errors import BadRequestError
from clonepool.protocol.messages import (
    PROTOCOL_VERSION,
    Acquire,
    AcquireResult,
    Hello,
    HelloResult,
    LeakedSession,
    Release,
    ReleaseResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.errors import ClonepoolError
    from clonepool.postgres.endpoint import Endpoint
    from clonepool.protocol.server import Call, RequestId
    from clonepool.service.broker import Broker
    from clonepool.service.status import StatusBoard

_PLACEHOLDER = "a-database"
DAEMON = f"clonepool {version('clonepool')}"


class Connection(Protocol):
    """What a method needs of the connection that called it."""

    number: int
    client: str
    waiters: set[int]

    def reply(self, request: RequestId, result: object) -> None:
        """Send a result."""

    def reply_error(self, request: RequestId, error: ClonepoolError) -> None:
        """Send an error."""


class Methods:
    """The dispatch table and its functions."""

    def __init__(
        self, broker: Broker, endpoint: Endpoint, instance: str, board: StatusBoard
    ) -> None:
        self._broker = broker
        self._endpoint = endpoint
        # Quoting a URL takes longer than all else in an acquire; clones' names need none.
        self._url_head, self._url_tail = endpoint.url(_PLACEHOLDER).split(_PLACEHOLDER)
        self._env = endpoint.env(_PLACEHOLDER)
        self._instance = instance
        self._table: dict[str, Callable[[Connection, RequestId, Any], None]] = {
            "hello": self._hello,
            "acquire": self._acquire,
            "release": self._release,
            "status": lambda peer, request, _: peer.reply(request, board.status()),
            "leases": lambda peer, request, _: peer.reply(request, board.leases()),
            "templates": lambda peer, request, _: peer.reply(request, board.templates()),
            "ping": lambda peer, request, _: peer.reply(request, {}),
        }

    def call(self, peer: Connection, call: Call) -> None:
        """Answer now or later.

        Raises:
            ClonepoolError: to be sent as the answer.
        """
        self._table[call.method](peer, call.id, call.params)

    def disconnect(self, peer: Connection) -> None:
        """End what the connection held and waited for."""
        self._broker.disconnect(peer.number, peer.waiters)

    def _hello(self, peer: Connection, request: RequestId, params: Hello) -> None:
        if params.protocol != PROTOCOL_VERSION:
            raise BadRequestError(
                f"protocol {params.protocol} is not spoken here",
                remedy=f"this daemon speaks protocol {PROTOCOL_VERSION}",
            )
        peer.client = params.client or peer.client
        peer.reply(request, HelloResult(PROTOCOL_VERSION, DAEMON, self._instance))

    def _acquire(self, peer: Connection, request: RequestId, params: Acquire) -> None:
        waiter = 0

        def answer(outcome: Grant | ClonepoolError) -> None:
            peer.waiters.discard(waiter)
            if isinstance(outcome, Grant):
                peer.reply(request, self._lease(outcome))
            else:
                peer.reply_error(request, outcome)

        waiter = self._broker.acquire(
            params.template,
            peer.number,
            answer,
            timeout=params.timeout,
            label=params.label or peer.client,
        )
        if self._broker.is_waiting(waiter):
            peer.waiters.add(waiter)

    def _release(self, peer: Connection, request: RequestId, params: Release) -> None:
        def report(leaked: list[dict[str, Any]] | None) -> None:
            found = None if leaked is None else msgspec.convert(leaked, list[LeakedSession])
            peer.reply(request, ReleaseResult(found))

        self._broker.release(params.lease, peer.number, report)

    def _lease(self, grant: Grant) -> AcquireResult:
        lease, endpoint, name = grant.lease, self._endpoint, grant.lease.clone
        url = f"{self._url_head}{name}{self._url_tail}"
        return AcquireResult(
            lease=lease.token,
            template=lease.template,
            generation=lease.generation,
            database=name,
            url=url,
            host=endpoint.host,
            port=endpoint.port,
            user=endpoint.user,
            password=endpoint.password,
            env={**self._env, "DATABASE_URL": url, "PGDATABASE": name},
            source=grant.source,
            waited_seconds=grant.waited_seconds,
        )
