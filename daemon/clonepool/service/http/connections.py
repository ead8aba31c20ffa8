"""Connections to the HTTP port: anybody on the machine may make them, so each has a deadline.

Uvicorn reads HTTP; it waits for ever for a request that never comes whole, and for whoever does not
read an answer. Here a connection that is too slow is cut, and when there are too many, the one that
has said least: who asks something is answered, however many others say nothing.
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
"""How long a client may take for a request, and how long it may keep a connection without one."""
READING_SECONDS = 10.0
"""How long it may take until it has its answer."""
MOST_BYTES = 8192
"""Of one request: a body of many small chunks would take the event loop seconds to read."""


class HttpConnections:
    """Those that are there.

    Args:
        most: connections at a time.
        cut: counts those that were cut, by reason.
    """

    def __init__(self, most: int, cut: Counter) -> None:
        self._most = most
        self._cut = cut
        self._there: dict[Visit, None] = {}

    def enter(self, visit: Visit) -> None:
        """Let one in; if there are too many then, the oldest without a request has to go."""
        self._there[visit] = None
        if len(self._there) > self._most:
            silent = (each for each in self._there if not each.is_asking)
            self.cut(next(silent, next(iter(self._there))), "crowded")

    def leave(self, visit: Visit) -> None:
        """It has ended."""
        self._there.pop(visit, None)

    def cut(self, visit: Visit, reason: str) -> None:
        """End one at once, whatever it has not read."""
        self.leave(visit)
        self._cut.labels(reason).inc()
        visit.transport.abort()

    def close(self) -> None:
        """End all."""
        for visit in list(self._there):
            self.leave(visit)
            visit.transport.abort()


class Visit(H11Protocol):
    """One connection.

    Attributes:
        gone: whether it has ended; answers to it need not be made.
        is_asking: whether a request came whole that is not answered yet.
    """

    def __init__(self, config: Config, state: ServerState, visits: HttpConnections) -> None:
        super().__init__(config, state, {"visit": self}, asyncio.get_running_loop())
        self._visits = visits
        self._deadline: asyncio.TimerHandle | None = None
        self._received = 0
        self.gone = False
        self.is_asking = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._set_deadline(ASKING_SECONDS)
        self._visits.enter(self)

    def data_received(self, data: bytes) -> None:
        """Read on; bytes that come one by one win no time."""
        self._received += len(data)
        if self._received > MOST_BYTES:
            self._visits.cut(self, "large")
        elif not self.gone:
            super().data_received(data)
            self._look()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end."""
        self._received = 0
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.gone = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._visits.leave(self)
        super().connection_lost(exc)

    def _look(self) -> None:
        asking = bool(self.cycle) and not self.cycle.response_complete  # there is none at first
        if asking is not self.is_asking:
            self.is_asking = asking
            self._set_deadline(READING_SECONDS if asking else ASKING_SECONDS)

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.gone:
            self._deadline = self.loop.call_later(seconds, self._visits.cut, self, "late")
