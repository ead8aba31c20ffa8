"""Keeps the way to the server open: the instance lock, and the embedded server itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool.errors import ClusterLostError
from clonepool.postgres.lock import InstanceLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.embedded.server import EmbeddedServer
    from clonepool.postgres.gateway import Gateway

log = structlog.get_logger()

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


class Keeper:
    """Notices when the server goes away, and says when it is back.

    The lock's connection is the sentinel: it ends when the server does, so that nothing has to
    be asked while all is well.
    """

    def __init__(self, gateway: Gateway, instance: str, embedded: EmbeddedServer | None) -> None:
        self._lock = InstanceLock(gateway, instance)
        self._embedded = embedded
        self._lost = anyio.Event()
        self.problem = "not connected yet"

    @property
    def server_up(self) -> bool:
        """Whether the lock is held, and so the server was there a moment ago."""
        return not self.problem

    async def begin(self) -> None:
        """Take the lock for the first time.

        Raises:
            AlreadyRunningError, ServerUnavailableError: nothing is held.
        """
        await self._lock.take(self._lost.set)
        self.problem = ""

    async def run(self, lost: Callable[[], None], found: Callable[[], None]) -> None:
        """Hold the lock for ever: whenever it is lost, take it again as soon as that can be.

        Args:
            lost: called when the server went away.
            found: called when it is back.

        Raises:
            ClusterLostError: it will not come back with what it had.
        """
        while True:
            await self._lost.wait()
            self.problem = "the connection to the server was lost"
            log.warning("server.lost")
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

    async def _run_once(self) -> bool:
        lost = anyio.Event()
        try:
            if self._embedded is not None and not self._embedded.alive():
                await self._embedded.restart()
            await self._lock.take(lost.set)
        except ClusterLostError:
            raise
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            if str(error) != self.problem:
                self.problem = str(error) or repr(error)
                log.warning("server.unreachable", error=self.problem)
            return False
        self._lost, self.problem = lost, ""
        return True
