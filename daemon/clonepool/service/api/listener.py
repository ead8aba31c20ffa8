"""The Unix socket: connections in, calls to the dispatcher, replies out.

Each connection is an asyncio protocol rather than a task with a stream: a hit is answered inside
the callback that delivers its bytes, without a task switch. An exception in a callback ends that
connection alone, never the listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, cast

import structlog

from clonepool.errors import (
    AccessDeniedError,
    ClientLimitError,
    ClonepoolError,
    ConfigError,
    ShuttingDownError,
)
from clonepool.paths import anybody_may_replace, foreign_owners
from clonepool.protocol.server import (
    Call,
    Rejected,
    ServerConnection,
    encode_error,
    encode_notification,
    encode_result,
)
from clonepool.service.api.acceptor import Acceptor
from clonepool.service.api.access import identify
from clonepool.service.api.methods import leaks_of, news_of
from clonepool.service.state_files import hold_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.config import AccessSection
    from clonepool.core.decisions import Notice
    from clonepool.observe.metrics import Metrics
    from clonepool.protocol.server import RequestId
    from clonepool.service.api.access import Caller, Gatekeeper
    from clonepool.service.api.methods import Methods
    from clonepool.service.dispatcher import Report, Sessions
    from clonepool.service.monitors.resources import ResourceMonitor

log = structlog.get_logger()

SOCKET_MODE = 0o660
ACCEPTED_AT_A_TIME = 16
SMALLEST_BACKLOG = 128
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
UNREAD_BYTES = 1024 * 1024
"""Replies that a client may leave unread before nothing more is read from it."""
CALLS_AT_A_TIME = 50
"""Requests that are answered, of all clients together, before new ones are looked at.

Each of those that have more than they may has an equal share, of one at least: a crowd that floods
the daemon gets slower, and not the client beside it that asks once.
"""
READ_BYTES = 4096
"""Bytes that are read of one client at a time: about a hundred requests are parsed at once."""
_LONGEST_ADDRESS = 107
"""Bytes of a path that a socket's address has room for."""
MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""Replies to what was asked before may still come: with more than this it is cut off at once."""


class Peer(asyncio.BufferedProtocol):
    """One client."""

    def __init__(self, number: int, methods: Methods, gate: Gatekeeper, listener: Listener) -> None:
        self.number = number
        self.client = ""
        self.waiters: set[int] = set()
        self.pending: dict[RequestId, Callable[[], None]] = {}
        self.unanswered = 0
        self._methods = methods
        self._gate = gate
        self._listener = listener
        self.gone = False
        self._protocol = ServerConnection()
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._deaf = False
        self._reading = True
        self._backlog: deque[Call | Rejected] = deque()

    # What asyncio calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the client in, or tell it that it may not."""
        # uvloop's transports have the methods of asyncio.Transport and are not its subclass.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        caller = identify(transport.get_extra_info("socket"))
        refusal = self._listener.refusal(caller, self._gate)
        if refusal is None:
            self.client = f"pid {caller.pid}, uid {caller.uid}"
            self._listener.enter(self)
            return
        self.gone = True
        self._listener.metrics.connections_refused.labels(refusal.code).inc()
        log.warning(
            "connection.refused",
            code=refusal.code, uid=caller.uid, gid=caller.gid, pid=caller.pid,
        )  # fmt: skip
        transport.write(encode_error(None, refusal))
        transport.close()

    def get_buffer(self, _: int) -> bytearray:
        """Return where the bytes are put; all clients share it, for they are taken out at once."""
        return self._listener.buffer

    def buffer_updated(self, size: int) -> None:
        """Answer what can be answered now, queue the rest."""
        if self.gone:
            return
        self._backlog.extend(self._protocol.receive(bytes(self._listener.buffer[:size])))
        self._work()

    def pause_writing(self) -> None:
        """The client does not read its replies: take no more requests from it, for a while."""
        self._deaf = True
        self._read_or_not()
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(self._listener.unread_timeout, self._lose_patience)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._patience is not None:
            self._patience.cancel()
        self._deaf = False
        self._work()

    def connection_lost(self, _: Exception | None) -> None:
        """End what belonged to the client: nobody has to clean up."""
        if self._patience is not None:
            self._patience.cancel()
        self._backlog.clear()
        self._listener.busy.discard(self)
        self.pending.clear()
        if not self.gone:
            self.gone = True
            self._listener.leave(self)
            self._methods.disconnect(self)

    # What the methods call ------------------------------------------------------------------

    def reply(self, request: RequestId, result: object) -> None:
        """Send a result; a client that is gone hears nothing."""
        self.pending.pop(request, None)
        self.unanswered -= 1
        try:
            line = encode_result(request, result)
        except Exception as error:
            log.exception("reply.failed", result=type(result).__name__)
            line = encode_error(request, ClonepoolError(f"internal error: {error!r}"))
        self._send(line)

    def reply_error(self, request: RequestId, error: ClonepoolError) -> None:
        """Send an error."""
        self.pending.pop(request, None)
        self.unanswered -= 1
        self._send(encode_error(request, error))

    def notify(self, method: str, params: object) -> None:
        """Send what was not asked for; what cannot be put into words is left out."""
        try:
            line = encode_notification(method, params)
        except Exception:
            log.exception("notification.failed", method=method)
            return
        self._send(line)

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
        """Answer what came, for as long as it is read, and let others have their turn between."""
        busy = self._listener.busy
        for _ in range(max(1, CALLS_AT_A_TIME // (len(busy) + 1))):
            if not self._backlog or self._deaf:
                break
            message = self._backlog.popleft()
            if isinstance(message, Call):
                self._handle(message)
            else:
                self._reject(message)
        if self._backlog and not self._deaf:
            busy.add(self)
            asyncio.get_running_loop().call_soon(self._work)
        else:
            busy.discard(self)
        self._read_or_not()

    def _read_or_not(self) -> None:
        """Take more from the client only when it has read, and what it asked is answered."""
        reading = not self._deaf and not self._backlog
        if reading is self._reading or self._transport is None or self._transport.is_closing():
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _handle(self, call: Call) -> None:
        self.unanswered += 1
        try:
            self._methods.call(self, call)
        except ClonepoolError as error:
            self.reply_error(call.id, error)
        except Exception as error:
            log.exception("request.failed", method=call.method)
            self.reply_error(call.id, ClonepoolError(f"internal error: {error!r}"))

    def _reject(self, rejected: Rejected) -> None:
        self._send(rejected.reply)
        if rejected.fatal:
            self._backlog.clear()
            self.hang_up()

    def _send(self, line: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(line)
        if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._lose_patience()

    def _lose_patience(self) -> None:
        """Cut off a client that never reads: what waits for it takes memory, its leases clones."""
        self._listener.metrics.connections_cut.inc()
        log.warning("connection.cut", client=self.client, reason="it does not read its replies")
        self.cut_off()


class Listener:
    """The socket, its lock file, and the clients connected to it.

    Making one takes the place: before anything else is started it is known whether that works. From
    then on clients can connect; the kernel holds them, and what they send, until `open`.

    Args:
        path: of the socket.
        metrics: count who is refused.
        access: the configuration's [access].
        most: clients at a time, where there are files for fewer than `access` allows.

    Raises:
        AlreadyRunningError: another daemon listens there.
        ConfigError: the place cannot be used; what lies there was not touched.
    """

    def __init__(
        self, path: Path, metrics: Metrics, access: AccessSection, most: int | None = None
    ) -> None:
        self.path = path
        self.metrics = metrics
        self.peers: dict[int, Peer] = {}
        self.busy: set[Peer] = set()
        self.buffer = bytearray(READ_BYTES)
        self.on_first_client: Callable[[], None] = lambda: None
        self.unread_timeout = access.unread_timeout
        self._max_clients = min(most or access.max_clients, access.max_clients)
        self._too_few_files = self._max_clients < access.max_clients
        self._lock = _take_lock(path)
        self._bound = _listen(path, access.max_clients)
        self._opened = False
        self._acceptor: Acceptor | None = None
        self._last_number = 0

    def open(self, methods: Methods, gate: Gatekeeper, shortages: ResourceMonitor) -> None:
        """Begin to accept; who has connected before is the first.

        All who may be connected at a time may come at once.
        """
        self._opened = True
        factory = self._factory(methods, gate)
        self._acceptor = Acceptor(self._bound, factory, shortages, turn=ACCEPTED_AT_A_TIME)
        backlog = max(self._max_clients, SMALLEST_BACKLOG)
        self._acceptor.open(backlog)
        allowed = _longest_backlog()
        if allowed is not None and allowed < backlog:
            log.warning(
                "socket.backlog_limited", backlog=allowed, wanted=backlog,
                remedy="raise net.core.somaxconn: connections beyond that are refused by the kernel"
                " when so many come at once",
            )  # fmt: skip

    def stop_accepting(self) -> None:
        """Take the socket away; who is connected stays."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
            self._bound.close()
        self.path.unlink(missing_ok=True)

    def cut_off(self) -> None:
        """Close all connections at once."""
        for peer in list(self.peers.values()):
            peer.cut_off()

    def hang_up(self) -> None:
        """Close all connections after what was sent."""
        for peer in list(self.peers.values()):
            peer.hang_up()

    def enter(self, peer: Peer) -> None:
        """Count a client in."""
        self.peers[peer.number] = peer
        if len(self.peers) == 1:
            self.on_first_client()

    def leave(self, peer: Peer) -> None:
        """Count it out."""
        del self.peers[peer.number]

    def refusal(self, caller: Caller, gate: Gatekeeper) -> ClonepoolError | None:
        """Say why a caller may not come in, if so."""
        if not gate.admits(caller):
            return AccessDeniedError(
                f"user id {caller.uid} may not use this daemon",
                remedy="ask for access.allow_users or access.allow_groups in its configuration",
            )
        if len(self.peers) >= self._max_clients:
            return ClientLimitError(
                f"{len(self.peers)} clients are connected",
                remedy="close connections that are not needed, or raise"
                f" {'the limit of open files' if self._too_few_files else 'access.max_clients'}",
            )
        return None

    def tell(self, notice: Notice) -> None:
        """Tell a lease's holder what happens to it, if it is connected."""
        peer = self.peers.get(notice.lease.holder)
        if peer is not None:
            peer.notify(notice.news, news_of(notice))

    def leaks_to(self, number: int, template: str, clone: str) -> Report | None:
        """Return how to tell a connection what a lease left; None when nobody is there to hear it.

        It may be gone by then, and nothing is said when nothing was left, or nothing is known.
        """
        if number not in self.peers:
            return None

        def tell(leaked: Sessions) -> None:
            peer = self.peers.get(number)
            if leaked and peer is not None:
                peer.notify("lease.leaked", leaks_of(template, clone, leaked))

        return tell

    def close(self) -> None:
        """Hang up on everybody and let go of the lock."""
        self.stop_accepting()
        if not self._opened:
            self._turn_away()
        self._bound.close()
        self.hang_up()
        os.close(self._lock)

    def _turn_away(self) -> None:
        """Tell those who have connected meanwhile that the start came to nothing."""
        error = ShuttingDownError(
            "the daemon could not start", remedy="see its log, and try again when it runs"
        )
        self._bound.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                waiting, _ = self._bound.accept()
                with waiting, contextlib.suppress(OSError):
                    waiting.setblocking(False)
                    waiting.send(encode_error(None, error))
                    waiting.recv(UNREAD_BYTES)  # left unread it would make theirs an error

    def _factory(self, methods: Methods, gate: Gatekeeper) -> Callable[[], Peer]:
        def make() -> Peer:
            self._last_number += 1
            return Peer(self._last_number, methods, gate, self)

        return make


def _longest_backlog() -> int | None:
    """Return how many connections the kernel lets wait at most; None when that is not known."""
    try:
        return int(_SOMAXCONN.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _listen(path: Path, most: int) -> socket.socket:
    """Make the socket; a dead one is replaced, nothing else is.

    It gets its name when it listens already: a connection is never refused because it came between.
    """
    bound = socket.socket(socket.AF_UNIX)
    old_mask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        if path.is_socket():
            path.unlink()
        _bind_and_listen(bound, path, most)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"the socket {path} cannot be made: {error.strerror or error}",
            remedy="name another place with --socket",
        ) from error
    finally:
        os.umask(old_mask)
    return bound


def _bind_and_listen(bound: socket.socket, path: Path, most: int) -> None:
    if os.path.lexists(path):
        taken = f"{os.strerror(errno.EADDRINUSE)} by something that is no socket"
        raise OSError(errno.EADDRINUSE, taken)
    new = path.with_name(f"{path.name}.new")
    if len(os.fsencode(new)) > _LONGEST_ADDRESS:
        new = path
    elif new.is_socket():
        new.unlink()  # a daemon was killed at this very place, while it held the lock as we do
    bound.bind(str(new))
    bound.listen(most)
    if new != path:
        new.rename(path)


def _take_lock(path: Path) -> int:
    """Hold `<socket>.lock`: a live socket is never taken over.

    Raises:
        AlreadyRunningError: another daemon has it.
        ConfigError: the directory cannot be used, or others could put a socket of theirs in place
            of ours; nothing is made in it then.
    """
    remedy = "name another place with --socket"
    _check_directory(path.parent, remedy)
    lock = hold_lock(
        path.with_name(f"{path.name}.lock"),
        directory_mode=0o755,
        taken=f"another daemon listens on {path}",
        remedy=remedy,
    )
    try:
        _check_directory(path.parent, remedy)  # again: it may have been made meanwhile, by others
    except ConfigError:
        os.close(lock)
        raise
    return lock


def _check_directory(directory: Path, remedy: str) -> None:
    """Look at a directory that is there already: one that is not will be ours."""
    try:
        strangers, open_to_all = foreign_owners(str(directory)), anybody_may_replace(str(directory))
    except OSError:
        return  # making the lock file in it tells why it cannot be used
    if strangers:
        raise ConfigError(f"{directory} belongs to another user", remedy=remedy)
    if open_to_all:
        raise ConfigError(f"{directory}: anybody may replace files there", remedy=remedy)
