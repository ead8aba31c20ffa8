"""Notices when the server goes away, brings it back or waits for it, and says so.

The sentinel's connection ends when the server does. Besides, the server is asked for its
databases every few seconds, but only while clients are connected: an idle daemon asks nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool import resource_errors
from clonepool.errors import (
    ClonepoolError,
    ClusterLostError,
    ServerUnavailableError,
    StatementError,
)
from clonepool.service.monitors.base import Monitor, Pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.embedded.server import EmbeddedServer
    from clonepool.service.failures import Failures
    from clonepool.service.monitors.reconciler import Reconciler
    from clonepool.service.outages import Outages
    from clonepool.service.sentinel import Sentinel
    from clonepool.service.state_changes import StateChanges

log = structlog.get_logger()

PULSE_SECONDS = 2.0
"""Seconds between two questions to the server."""


class ServerMonitor(Monitor):
    """Keeps the sentinel's lock.

    Args:
        failures: of every monitor.
        changed: notified when the sentinel's connection ends, and when the first client connects.
        embedded: the daemon's own server; None for a server by URL.
        has_clients: says whether clients are connected.
        outages: is told when the server goes away and when it is back.
        reconciler: is shown which databases there are.
        sentinel: holds the instance lock already.
    """

    failed_event = "server.unreachable"
    expected = (ClusterLostError,)
    longest_pause = 1.0

    def __init__(
        self,
        failures: Failures,
        *,
        changed: StateChanges,
        embedded: EmbeddedServer | None,
        has_clients: Callable[[], bool],
        outages: Outages,
        reconciler: Reconciler,
        sentinel: Sentinel,
    ) -> None:
        super().__init__(failures)
        self._changed = changed
        self._embedded = embedded
        self._has_clients = has_clients
        self._outages = outages
        self._reconciler = reconciler
        self._sentinel = sentinel
        self._lost_at: float | None = None

    async def run_once(self) -> Pause:
        """Watch until the server is lost; then try once to have it back.

        Raises:
            ClusterLostError: it will not come back with what it had.
            ClonepoolError: it is not back yet.
        """
        if self._lost_at is None:
            await self._watch()
            self._lose()
        await self._regain()
        return Pause(0.0, 0.0)

    async def _watch(self) -> None:
        """Return when the server is away."""
        sentinel = self._sentinel
        while not sentinel.is_lost:
            await self._changed.wait_for(lambda: sentinel.is_lost or self._has_clients())
            if not sentinel.is_lost:
                await self._take_pulse()

    async def _take_pulse(self) -> None:
        """Ask for the databases, and wait until the next question is due.

        Clients that come and go must not make the questions more frequent.
        """
        expected = self._reconciler.expected()
        try:
            there = await self._sentinel.databases()
        except (ServerUnavailableError, StatementError):
            return
        self._reconciler.compare(expected, there)
        with anyio.move_on_after(PULSE_SECONDS):
            await self._changed.wait_for(lambda: self._sentinel.is_lost)

    def _lose(self) -> None:
        sentinel = self._sentinel
        sentinel.lost(sentinel.problem or "the connection to the server was lost")
        self._lost_at = anyio.current_time()
        log.warning("server.lost", reason=sentinel.problem)
        self._outages.began(sentinel.problem)

    async def _regain(self) -> None:
        """Restart an embedded server that has ended, and take the lock again."""
        try:
            if self._embedded is not None and not self._embedded.alive():
                await self._embedded.restart()
            await self._sentinel.take()
        except ClusterLostError:
            raise
        except ClonepoolError as error:
            self._still_lost(str(error) or repr(error))
            raise
        except OSError as error:
            self._still_lost(str(error) or repr(error))
            short = resource_errors.told(error, "bringing the server back")
            raise short or ServerUnavailableError(str(error)) from error
        began, self._lost_at = self._lost_at, None
        seconds = anyio.current_time() - (began or 0.0)
        log.info("server.found", duration_seconds=round(seconds, 3))
        self._outages.ended()

    def _still_lost(self, problem: str) -> None:
        """Remember why, for the status and for the refusals of the pools."""
        if problem != self._sentinel.problem:
            self._sentinel.lost(problem)
            self._outages.began(problem)
