"""The lock that keeps two daemons of one instance apart on one server."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from clonepool.errors import AlreadyRunningError, StatementError

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.gateway import Gateway, Session

_COMMON_DATABASE = "postgres"


class InstanceLock:
    """An advisory lock on a connection of its own; it is held as long as that lives.

    Advisory locks are local to a database, so all daemons take theirs in `postgres`; only where
    that does not exist or is closed to us, in the maintenance database.
    """

    def __init__(self, gateway: Gateway, instance: str) -> None:
        self._gateway = gateway
        self._instance = instance
        self._session: Session | None = None
        digest = hashlib.blake2s(f"clonepool:{instance}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, signed=True)

    async def take(self, on_end: Callable[[], None]) -> None:
        """Take the lock; `on_end` is called when its connection ends.

        Raises:
            AlreadyRunningError: another daemon has it; says which.
            ServerUnavailableError: not reached.
        """
        session = await self._connect()
        try:
            await self._take_on(session)
        except BaseException:
            await session.close()
            raise
        self._session = session
        session.on_end(on_end)

    async def close(self) -> None:
        """Let go."""
        if self._session is not None:
            await self._session.close()

    async def _take_on(self, session: Session) -> None:
        if not await session.value("SELECT pg_try_advisory_lock($1)", self._key):
            holder = await self._holder(session)
            raise AlreadyRunningError(
                f"another daemon of instance {self._instance} uses this server: {holder}",
                remedy="stop it, or give this one another `instance`",
            )

    async def _connect(self) -> Session:
        try:
            return await self._gateway.connect(_COMMON_DATABASE)
        except StatementError:
            return await self._gateway.connect(self._gateway.endpoint.maintenance)

    async def _holder(self, session: Session) -> str:
        rows = await session.rows(
            "SELECT application_name, pid, client_addr FROM pg_locks"
            " JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted"
            " AND ((classid::bigint << 32) | objid::bigint) = $1",
            self._key,
        )
        return "; ".join(
            f"{row['application_name']}, backend {row['pid']}, from"
            f" {row['client_addr'] or 'a local socket'}"
            for row in rows
        )
