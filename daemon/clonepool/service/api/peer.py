"""One client's connection: bytes in, calls made of them, replies out.

A connection is an asyncio protocol rather than a task with a stream: a hit is answered inside the
callback that delivers its bytes, without a task switch. An exception in a callback ends that
connection alone. What a call does is the matter of `methods`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

import structlog

from clonepool.errors import ClonepoolError
from clonepool.protocol.server import Message, Rejected, ServerConnection, encode_error
from clonepool.service.api.access import identify
from clonepool.service.call import Call, internal_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.observe.metrics import Metrics
    from clonepool.protocol.server import RequestId
    from clonepool.service.api.access import Caller

log = structlog.get_logger()

CALLS_AT_A_TIME = 50
"""Requests, of all clients together, that are answered before new ones are read.

Each client that has more than its share has an equal share, of one at least: a crowd that floods
the daemon gets slower, and another client that asks once does not.
"""
UNREAD_BYTES = 1024 * 1024
"""Bytes of replies that a client may leave unread before nothing more is read from it."""
MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""Bytes of replies left unread at which a client is cut off at once.

Replies to what was asked earlier may still come when nothing more is read.
"""


class CallHandler(Protocol):
    """What is done with calls; `methods.Methods` in the daemon."""

    def call(self, call: Call, message: Message) -> None:
        """Answer a call now or later, or raise the error that is the answer."""

    def disconnect(self, holder: int, open_calls: Iterable[Call]) -> None:
        """End what a connection held and waited for."""


class ListenerState(Protocol):
    """What the connections have in common; `listener.Listener` in the daemon.

    Attributes:
        metrics: count the clients that are refused and cut off.
        buffer: where bytes are read into; they are taken out at once.
        busy: the connections that have requests left to answer.
        requests_read: how many requests have been read from all connections.
        unread_timeout: seconds for which a client may leave its replies unread.
    """

    metrics: Metrics
    buffer: bytearray
    busy: set[Peer]
    requests_read: int
    unread_timeout: float

    def refusal(self, caller: Caller) -> ClonepoolError | None:
        """Say why a caller may not come in, if so."""

    def enter(self, peer: Peer) -> None:
        """Count a client in."""

    def leave(self, peer: Peer) -> None:
        """Count it out."""


class Peer(asyncio.BufferedProtocol):
    """One client, to the calls that it makes a `Connection`.

    Args:
        number: unique among the connections of this daemon's run.
        methods: what is done with its calls.
        listener: what the connection has in common with the others.
    """

    def __init__(self, number: int, methods: CallHandler, listener: ListenerState) -> None:
        self.number = number
        self.client = ""
        self.is_gone = False
        self.open_calls: set[Call] = set()
        self.cancellable: dict[RequestId, Call] = {}
        self.most_leases = 0
        self._methods = methods
        self._listener = listener
        self._protocol = ServerConnection()
        self._transport: asyncio.Transport | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._leaves_replies_unread = False
        self._is_reading = True
        self._backlog: deque[Message | Rejected] = deque()

    # What asyncio calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the client, or refuse it with an error."""
        # uvloop's transports have the methods of asyncio.Transport and are not its subclass.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        caller = identify(transport.get_extra_info("socket"))
        refusal = self._listener.refusal(caller)
        if refusal is None:
            self.client = f"pid {caller.pid}, uid {caller.uid}"
            self._listener.enter(self)
            return
        self.is_gone = True
        self._listener.metrics.connections_refused.labels(refusal.code).inc()
        log.warning(
            "connection.refused",
            code=refusal.code, uid=caller.uid, gid=caller.gid, pid=caller.pid,
        )  # fmt: skip
        transport.write(encode_error(None, refusal))
        transport.close()

    def get_buffer(self, _: int) -> bytearray:
        """Return where the bytes are put."""
        return self._listener.buffer

    def buffer_updated(self, size: int) -> None:
        """Answer what can be answered now, and queue the rest."""
        if self.is_gone:
            return
        data = bytes(memoryview(self._listener.buffer)[:size])
        self._backlog.extend(self._protocol.receive(data))
        self._work()

    def pause_writing(self) -> None:
        """The client does not read its replies: take no more requests from it, for a while."""
        self._leaves_replies_unread = True
        self._read_or_not()
        loop = asyncio.get_running_loop()
        self._unread_timer = loop.call_later(
            self._listener.unread_timeout, self._cut_off_slow_reader
        )

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        self._leaves_replies_unread = False
        self._work()

    def connection_lost(self, _: Exception | None) -> None:
        """End what belonged to the client: nobody has to clean up."""
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        self._backlog.clear()
        self._listener.busy.discard(self)
        if not self.is_gone:
            self.is_gone = True
            self._listener.leave(self)
            open_calls, self.open_calls = self.open_calls, set()
            self.cancellable.clear()
            self._methods.disconnect(self.number, open_calls)

    # What calls and the listener do with it -------------------------------------------------

    def rename(self, name: str) -> None:
        """Remember what the client calls itself."""
        self.client = name

    def send(self, line: bytes) -> None:
        """Send a line; a connection that has ended drops it."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(line)
        if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._cut_off_slow_reader()

    def hang_up(self) -> None:
        """Close the connection after what was sent."""
        if self._transport is not None:
            self._transport.close()

    def cut_off(self) -> None:
        """Close the connection at once, whatever was not read."""
        if self._transport is not None:
            self._transport.abort()

    # Inside -------------------------------------------------------------------------------

    def _work(self) -> None:
        """Answer requests for as long as the client reads; let others have their turn between."""
        busy = self._listener.busy
        for _ in range(max(1, CALLS_AT_A_TIME // (len(busy) + 1))):
            if not self._backlog or self._leaves_replies_unread:
                break
            message = self._backlog.popleft()
            self._listener.requests_read += 1
            if isinstance(message, Message):
                self._handle(message)
            else:
                self._reject(message)
        if self._backlog and not self._leaves_replies_unread:
            busy.add(self)
            asyncio.get_running_loop().call_soon(self._work)
        else:
            busy.discard(self)
        self._read_or_not()

    def _read_or_not(self) -> None:
        """Read more only when the client has read its replies and its requests are answered."""
        reading = not self._leaves_replies_unread and not self._backlog
        if reading is self._is_reading or self._transport is None or self._transport.is_closing():
            return
        self._is_reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _handle(self, message: Message) -> None:
        call = Call(self, self._listener.requests_read, message.id)
        try:
            self._methods.call(call, message)
        except ClonepoolError as error:
            call.fail(error)
        except Exception as error:
            log.exception("request.failed", method=message.method)
            call.fail(internal_error(error))

    def _reject(self, rejected: Rejected) -> None:
        self.send(rejected.reply)
        if rejected.fatal:
            self._backlog.clear()
            self.hang_up()

    def _cut_off_slow_reader(self) -> None:
        """Cut off a client that never reads: its replies take memory, its leases clones."""
        self._listener.metrics.connections_cut.inc()
        log.warning("connection.cut", client=self.client, reason="it does not read its replies")
        self.cut_off()
