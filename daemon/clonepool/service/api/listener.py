"""The Unix socket and the clients connected to it.

What one connection does is in `peer`, where the socket is in `socket_file`.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import structlog

from clonepool.errors import (
    AccessDeniedError,
    ClientLimitError,
    ClonepoolError,
    ShuttingDownError,
)
from clonepool.protocol.server import encode_error
from clonepool.service.api.acceptor import Acceptor
from clonepool.service.api.peer import UNREAD_BYTES, Peer
from clonepool.service.api.socket_file import bind_and_listen, longest_backlog, take_lock
from clonepool.service.call import notify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clonepool.config import AccessSection
    from clonepool.observe.metrics import Metrics
    from clonepool.service.api.access import Caller, Gatekeeper
    from clonepool.service.api.peer import CallHandler
    from clonepool.service.resources import Resources

log = structlog.get_logger()

ACCEPTED_AT_A_TIME = 16
"""Connections that are accepted before other callbacks have their turn."""
SMALLEST_BACKLOG = 128
"""Connections that may wait to be accepted, where fewer clients are allowed."""
READ_BYTES = 4096
"""Bytes that are read from one client at a time: about a hundred requests are parsed at once."""


class Listener:
    """The socket, its lock file, and the connected clients.

    Making a listener takes the place: whether that works is known before anything else is started.
    Clients can connect from then on; the kernel holds them, and what they send, until `open`.

    Args:
        path: of the socket.
        metrics: count the clients that are refused.
        access: the configuration's [access].
        gate: decides which users may connect.
        most: clients at a time, where there are files for fewer than `access` allows.

    Attributes:
        requests_read: how many requests have been read from all clients.

    Raises:
        AlreadyRunningError: another daemon listens there.
        ConfigError: the path cannot be used; what is there was not touched.
    """

    def __init__(
        self,
        path: Path,
        metrics: Metrics,
        access: AccessSection,
        gate: Gatekeeper,
        most: int | None = None,
    ) -> None:
        self.path = path
        self.metrics = metrics
        self.peers: dict[int, Peer] = {}
        self.busy: set[Peer] = set()
        self.buffer = bytearray(READ_BYTES)
        self.requests_read = 0
        self.unread_timeout = access.unread_timeout
        self._gate = gate
        self._max_clients = min(most or access.max_clients, access.max_clients)
        self._has_too_few_files = self._max_clients < access.max_clients
        self._lock = take_lock(path)
        self._bound = bind_and_listen(path, access.max_clients)
        self._on_first_client: Callable[[], None] | None = None
        self._opened = False
        self._acceptor: Acceptor | None = None
        self._last_number = 0

    # The socket ---------------------------------------------------------------------------

    def open(
        self,
        methods: CallHandler,
        shortages: Resources,
        on_first_client: Callable[[], None] | None = None,
    ) -> None:
        """Begin to accept connections, those that were made earlier first.

        The backlog has room for as many as may be connected: all may come at once.

        Args:
            methods: what is done with the clients' calls.
            shortages: are told when a connection cannot be accepted for lack of a resource.
            on_first_client: called when somebody connects while nobody else is connected.
        """
        self._opened = True
        self._on_first_client = on_first_client
        self._acceptor = Acceptor(
            self._bound, self._peers(methods), shortages, turn=ACCEPTED_AT_A_TIME
        )
        backlog = max(self._max_clients, SMALLEST_BACKLOG)
        self._acceptor.open(backlog)
        allowed = longest_backlog()
        if allowed is not None and allowed < backlog:
            log.warning(
                "socket.backlog_limited", backlog=allowed, wanted=backlog,
                remedy="raise net.core.somaxconn: connections beyond that are refused by the kernel"
                " when so many come at once",
            )  # fmt: skip

    def stop_accepting(self) -> None:
        """Remove the socket; connected clients stay."""
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

    def close(self) -> None:
        """Hang up on everybody and let go of the lock."""
        self.stop_accepting()
        if not self._opened:
            self._turn_away()
        self._bound.close()
        self.hang_up()
        os.close(self._lock)

    # The connected clients ------------------------------------------------------------------

    def refusal(self, caller: Caller) -> ClonepoolError | None:
        """Say why a caller may not come in, if so."""
        if not self._gate.admits(caller):
            return AccessDeniedError(
                f"user id {caller.uid} may not use this daemon",
                remedy="ask for access.allow_users or access.allow_groups in its configuration",
            )
        if len(self.peers) >= self._max_clients:
            limit = "the limit of open files" if self._has_too_few_files else "access.max_clients"
            return ClientLimitError(
                f"{len(self.peers)} clients are connected",
                remedy=f"close connections that are not needed, or raise {limit}",
            )
        return None

    def enter(self, peer: Peer) -> None:
        """Count a client in."""
        self.peers[peer.number] = peer
        if len(self.peers) == 1 and self._on_first_client is not None:
            self._on_first_client()

    def leave(self, peer: Peer) -> None:
        """Count it out."""
        del self.peers[peer.number]

    def is_connected(self, number: int) -> bool:
        """Say whether the connection of that number is open."""
        return number in self.peers

    def notify(self, number: int, method: str, params: object) -> None:
        """Send a notification to a connection; one that has ended is not told."""
        peer = self.peers.get(number)
        if peer is not None:
            notify(peer, method, params)

    # Inside -------------------------------------------------------------------------------

    def _peers(self, methods: CallHandler) -> Callable[[], Peer]:
        def make() -> Peer:
            self._last_number += 1
            return Peer(self._last_number, methods, self)

        return make

    def _turn_away(self) -> None:
        """Tell clients that have connected already that the daemon could not start."""
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
