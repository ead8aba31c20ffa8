"""Connections to the HTTP port: any user of the machine can open them, so each has a deadline.

Uvicorn reads HTTP. It waits without limit for a request that never arrives in full, and for a
client that does not read the response. Here a connection that is too slow is cut off. When there
are too many, one without a request is: requests are answered however many connections are silent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from prometheus_client import Counter
    from uvicorn import Config
    from uvicorn.server import ServerState

ASKING_SECONDS = 5.0
"""Seconds that a client may take for a request, or keep a connection without one."""
READING_SECONDS = 10.0
"""Seconds until a client must have its response."""
MOST_BYTES = 8192
"""Bytes of one request: a body of many small chunks would take the event loop seconds to read."""


class HttpConnections:
    """The connections that are open.

    Args:
        most: connections at a time.
        cut: counts connections that were cut off, by reason.
    """

    def __init__(self, most: int, cut: Counter) -> None:
        self._most = most
        self._cut = cut
        self._open: dict[HttpConnection, None] = {}

    def enter(self, connection: HttpConnection) -> None:
        """Count a connection in; if there are too many, cut off the oldest without a request."""
        self._open[connection] = None
        if len(self._open) > self._most:
            silent = (each for each in self._open if not each.is_asking)
            self.cut(next(silent, next(iter(self._open))), "crowded")

    def leave(self, connection: HttpConnection) -> None:
        """Count out a connection that has ended."""
        self._open.pop(connection, None)

    def cut(self, connection: HttpConnection, reason: str) -> None:
        """Close a connection at once, whatever it has not read."""
        self.leave(connection)
        self._cut.labels(reason).inc()
        connection.transport.abort()

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._open):
            self.leave(connection)
            connection.transport.abort()


class HttpConnection(H11Protocol):
    """One connection.

    Attributes:
        is_gone: whether it has ended, so that no response is needed.
        is_asking: whether it has a request that arrived in full and is not answered yet.
    """

    def __init__(self, config: Config, state: ServerState, connections: HttpConnections) -> None:
        super().__init__(config, state, {"connection": self}, asyncio.get_running_loop())
        self._connections = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._received = 0
        self.is_gone = False
        self.is_asking = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        self._set_deadline(ASKING_SECONDS)
        self._connections.enter(self)

    def data_received(self, data: bytes) -> None:
        """Read on; bytes that arrive one by one do not extend the deadline."""
        self._received += len(data)
        if self._received > MOST_BYTES:
            self._connections.cut(self, "large")
        elif not self.is_gone:
            super().data_received(data)
            self._check_request()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of the connection."""
        self._received = 0
        super().on_response_complete()
        self._check_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.is_gone = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._connections.leave(self)
        super().connection_lost(exc)

    def _check_request(self) -> None:
        asking = bool(self.cycle) and not self.cycle.response_complete  # there is none at first
        if asking is not self.is_asking:
            self.is_asking = asking
            self._set_deadline(READING_SECONDS if asking else ASKING_SECONDS)

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.is_gone:
            self._deadline = self.loop.call_later(seconds, self._connections.cut, self, "late")
