"""The connection that holds the instance lock, and so knows whether the server is there.

It ends when the server does. A server that stops answering, or a line that is cut without a word,
does not end it: so the server monitor asks something over it now and then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.naming import PREFIX
from clonepool.errors import ServerUnavailableError, StatementError
from clonepool.postgres.instance_lock import COMMON_DATABASE, InstanceLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.gateway import Gateway
    from clonepool.service.state_changes import StateChanges

SILENCE_SECONDS = 5.0
"""Seconds that the server may take for an answer before it counts as away."""


class Sentinel:
    """Holds the instance lock.

    Args:
        gateway: the way to the server.
        instance: of the daemon.
        changed: notified when the connection ends.
        embedded: whether the server is the daemon's own.

    Attributes:
        problem: what is wrong with the server, for people; empty while the lock is held.
        is_lost: whether the connection has ended, or the server does not answer.
    """

    def __init__(
        self, gateway: Gateway, instance: str, changed: StateChanges, *, embedded: bool
    ) -> None:
        # On the daemon's own server in a database where no lease can take it.
        database = gateway.endpoint.maintenance if embedded else COMMON_DATABASE
        self._lock = InstanceLock(gateway, instance, database)
        self._prefix = f"{PREFIX}_{instance}_"
        self._changed = changed
        self._connections = 0
        self.problem = "not connected yet"
        self.is_lost = False

    @property
    def server_up(self) -> bool:
        """Whether the lock is held, and so the server was there a moment ago."""
        return not self.problem

    async def take(self) -> None:
        """Take the lock, for the first time or again.

        Raises:
            AlreadyRunningError, ServerUnavailableError: it is not held.
        """
        self.is_lost = False
        await self._lock.take(self._on_end())
        self.problem = ""

    def lost(self, problem: str) -> None:
        """Remember what is wrong with the server, until the lock is taken again."""
        self.problem = problem

    async def databases(self) -> set[str]:
        """Return the names of the instance's databases.

        Raises:
            ServerUnavailableError, StatementError: there is no answer; the connection is lost.
        """
        try:
            return await self._lock.databases(self._prefix, seconds=SILENCE_SECONDS)
        except (ServerUnavailableError, StatementError) as error:
            self.problem = str(error)
            self.is_lost = True
            raise

    async def close(self) -> None:
        """Release the lock."""
        await self._lock.close()

    def _on_end(self) -> Callable[[], None]:
        """Return what the end of the next connection calls.

        The end of an earlier one can be heard late, and means nothing any more.
        """
        self._connections += 1
        number = self._connections

        def ended() -> None:
            if number == self._connections:
                self.is_lost = True
                self._changed.notify()

        return ended
