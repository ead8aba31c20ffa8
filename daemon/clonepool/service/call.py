"""One request of a client, from the bytes that made it to the bytes that answer it.

The connection (`api.peer`) makes a `Call` of each message, and whoever learns the outcome answers
it, at once or later: there is no other way to answer. What the methods do with a request, and what
a result holds, do not belong here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog

from clonepool.core import refusals
from clonepool.errors import ClonepoolError
from clonepool.protocol.server import encode_error, encode_notification, encode_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.protocol.server import RequestId

log = structlog.get_logger()


class Connection(Protocol):
    """What a call needs of the connection that it came over.

    Attributes:
        number: unique among the connections of this daemon's run; leases name their holder by it.
        client: what the client calls itself, or its process and user, for people.
        is_gone: whether the connection has ended.
        open_calls: the calls that have not been answered yet.
        cancellable: those of them that can be taken back, by their ids.
        most_leases: an upper bound of the leases that the connection holds; see `LeaseMethods`.
    """

    number: int
    client: str
    is_gone: bool
    open_calls: set[Call]
    cancellable: dict[RequestId, Call]
    most_leases: int

    def rename(self, name: str) -> None:
        """Remember what the client calls itself."""

    def send(self, line: bytes) -> None:
        """Send a line; a connection that has ended drops it."""


class Call:
    """A request that is answered once, by a result or by an error.

    An answer after the first, or to a connection that has ended, is dropped: a call may be
    cancelled, or its client gone, while work for it is under way.

    Args:
        connection: that it came over.
        number: unique among the calls of this daemon's run; names the call among the waiters.
        request: the id that the client gave it.

    Attributes:
        is_answered: whether a result or an error has been sent.
    """

    __slots__ = ("_take_back", "connection", "is_answered", "number", "request")

    def __init__(self, connection: Connection, number: int, request: RequestId) -> None:
        self.connection = connection
        self.number = number
        self.request = request
        self.is_answered = False
        self._take_back: Callable[[], None] | None = None
        connection.open_calls.add(self)

    @property
    def holder(self) -> int:
        """The number of the connection, to which what the call obtains belongs."""
        return self.connection.number

    @property
    def client(self) -> str:
        """What the client calls itself, for people."""
        return self.connection.client

    @property
    def is_gone(self) -> bool:
        """Whether no answer is awaited: it was given, or the connection has ended."""
        return self.is_answered or self.connection.is_gone

    def reply(self, result: object) -> None:
        """Answer with a result: a struct, list or dict of the protocol."""
        if not self._close():
            return
        try:
            line = encode_result(self.request, result)
        except Exception as error:
            log.exception("reply.failed", result=type(result).__name__)
            line = encode_error(self.request, internal_error(error))
        self.connection.send(line)

    def fail(self, error: ClonepoolError) -> None:
        """Answer with an error."""
        if self._close():
            self.connection.send(encode_error(self.request, error))

    def notify(self, method: str, params: object) -> None:
        """Send a notification while the call is open; one that cannot be encoded is left out."""
        if not self.is_gone:
            notify(self.connection, method, params)

    def on_cancel(self, take_back: Callable[[], None]) -> None:
        """Allow the client to cancel the call from now on, until it is answered.

        Args:
            take_back: called once the client has been told that the call is cancelled.
        """
        if not self.is_gone:
            self._take_back = take_back
            self.connection.cancellable[self.request] = self

    def cancel(self) -> bool:
        """Answer that the call is cancelled and take it back; say whether that was possible."""
        take_back = self._take_back
        if take_back is None or self.is_gone:
            return False
        self.fail(refusals.cancelled())
        take_back()
        return True

    def _close(self) -> bool:
        """Mark the call as answered; say whether the answer is to be sent."""
        if self.is_answered:
            return False
        self.is_answered = True
        connection = self.connection
        connection.open_calls.discard(self)
        if self._take_back is not None and connection.cancellable.get(self.request) is self:
            del connection.cancellable[self.request]
        return not connection.is_gone


def notify(connection: Connection, method: str, params: object) -> None:
    """Send what was not asked for; a notification that cannot be encoded is left out."""
    try:
        line = encode_notification(method, params)
    except Exception:
        log.exception("notification.failed", method=method)
        return
    connection.send(line)


def internal_error(error: Exception) -> ClonepoolError:
    """Return what a client is told of a mistake of the daemon's own."""
    return ClonepoolError(f"internal error: {error!r}")
