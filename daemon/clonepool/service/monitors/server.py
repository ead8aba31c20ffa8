"""Keeps the way to the server open: the lock, the pulse, and the embedded server itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool.core.naming import PREFIX
from clonepool.errors import ClusterLostError, ServerUnavailableError, StatementError
from clonepool.postgres.instance_lock import COMMON_DATABASE, InstanceLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.embedded.server import EmbeddedServer
    from clonepool.postgres.gateway import Gateway
    from clonepool.service.monitors.reconciler import Reconciler
    from clonepool.service.monitors.resources import ResourceMonitor

log = structlog.get_logger()

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
PULSE_SECONDS = 2.0
"""How often the server is asked for its databases while clients are connected."""
SILENCE_SECONDS = 5.0
"""How long it may take to answer that before it counts as away."""


class ServerMonitor:
    """Notices when the server goes away, and says when it is back.

    The lock's connection is the sentinel: it ends when the server does. A server that merely stops
    to answer, or a line that was cut without a word, does not end it: so it is asked something
    every few seconds, but only while clients are connected. An idle daemon asks nothing.
    """

    def __init__(
        self,
        gateway: Gateway,
        instance: str,
        embedded: EmbeddedServer | None,
        shortages: ResourceMonitor,
    ) -> None:
        # On the daemon's own server, where no lease can take it.
        where = gateway.endpoint.maintenance if embedded else COMMON_DATABASE
        self._lock = InstanceLock(gateway, instance, where)
        self._embedded = embedded
        self._shortages = shortages
        self._prefix = f"{PREFIX}_{instance}_"
        self._lost = False
        self._connections = 0
        self._stirred = anyio.Event()
        self.problem = "not connected yet"
        self.watched: Callable[[], bool] = lambda: False

    @property
    def server_up(self) -> bool:
        """Whether the lock is held, and so the server was there a moment ago."""
        return not self.problem

    async def begin(self) -> None:
        """Take the lock for the first time.

        Raises:
            AlreadyRunningError, ServerUnavailableError: nothing is held.
        """
        await self._lock.take(self._sentinel())
        self.problem = ""

    def stir(self) -> None:
        """Begin to ask: there are clients."""
        self._stirred.set()

    async def run(
        self, lost: Callable[[], None], found: Callable[[], None], auditor: Reconciler
    ) -> None:
        """Hold the lock for ever: whenever it is lost, take it again as soon as that can be.

        Args:
            lost: called when the server went away.
            found: called when it is back.
            auditor: is shown which databases there are.

        Raises:
            ClusterLostError: it will not come back with what it had.
        """
        while True:
            await self._watch(auditor)
            self.problem = self.problem or "the connection to the server was lost"
            log.warning("server.lost", reason=self.problem)
            lost()
            began, pause = anyio.current_time(), _FIRST_PAUSE_SECONDS
            while not await self._run_once():
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            log.info("server.found", duration_seconds=round(anyio.current_time() - began, 3))
            found()

    async def close(self) -> None:
        """Let go of the lock."""
        await self._lock.close()

    def _sentinel(self) -> Callable[[], None]:
        """Return what the end of the next connection calls.

        The end of an earlier one can be heard late, and means nothing any more then.
        """
        self._connections += 1
        mine = self._connections

        def ended() -> None:
            if mine == self._connections:
                self._lost = True
                self._stirred.set()

        return ended

    async def _watch(self, auditor: Reconciler) -> None:
        """Return when the server is away."""
        while not self._lost:
            await self._await_stir(PULSE_SECONDS if self.watched() else math.inf)
            if self.watched() and not self._lost:
                await self._feel_pulse(auditor)

    async def _feel_pulse(self, auditor: Reconciler) -> None:
        expected = auditor.expected()
        try:
            there = await self._lock.databases(self._prefix, seconds=SILENCE_SECONDS)
        except (ServerUnavailableError, StatementError) as error:
            self.problem = str(error)
            self._lost = True
            return
        auditor.compare(expected, there)
        # Clients that come and go must not make it more often than every few seconds.
        until = anyio.current_time() + PULSE_SECONDS
        while (left := until - anyio.current_time()) > 0 and not self._lost:
            await self._await_stir(left)

    async def _await_stir(self, seconds: float) -> None:
        if not self._lost:
            self._stirred = anyio.Event()
            with anyio.move_on_after(seconds):
                await self._stirred.wait()

    async def _run_once(self) -> bool:
        try:
            if self._embedded is not None and not self._embedded.alive():
                await self._embedded.restart()
            self._lost = False
            await self._lock.take(self._sentinel())
        except ClusterLostError:
            raise
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            new = str(error) != self.problem
            self.problem = str(error) or repr(error)
            if not self._shortages.note(error) and new:
                log.warning("server.unreachable", error=self.problem)
            return False
        self.problem = ""
        return True
