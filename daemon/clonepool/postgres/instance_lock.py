"""Advisory locks: one daemon of an instance on a server, one builder of a generation."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import anyio

from clonepool.errors import AlreadyRunningError, ServerUnavailableError, StatementError

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.session import Session

CONNECT_SECONDS = 2.0
"""Time limit of connecting; short, so that a server that is back is found soon."""
BUILD_LOOK_SECONDS = 0.2
"""Seconds between two tries to take a build lock."""
COMMON_DATABASE = "postgres"
"""Database in which daemons take their instance locks."""


class BuildLock:
    """Held while a generation is looked up and built, so that it is built once at a time.

    Daemons of different instances create databases with different names, and do not wait for each
    other. A daemon waits for its own builds, and for a daemon of the same instance that is
    stopping.

    Args:
        gateway: the way to the server.
        name: of the generation.
    """

    def __init__(self, gateway: Gateway, name: str) -> None:
        self._gateway = gateway
        digest = hashlib.blake2s(f"clonepool build:{name}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, signed=True)
        self._session: Session | None = None

    async def __aenter__(self) -> None:
        """Wait for the lock.

        Raises:
            ServerUnavailableError, StatementError: the lock was not taken.
        """
        session = await self._gateway.connect(self._gateway.endpoint.maintenance)
        try:
            while not await session.value("SELECT pg_try_advisory_lock($1)", self._key):
                await anyio.sleep(BUILD_LOOK_SECONDS)
        except BaseException:
            await session.close()
            raise
        self._session = session

    async def __aexit__(self, *_: object) -> None:
        """Release the lock."""
        if self._session is not None:
            await self._session.close()


class InstanceLock:
    """An advisory lock on a connection of its own, held for as long as that is open.

    Advisory locks are local to a database, so all daemons take theirs in the same one. If that does
    not exist or refuses the daemon, it takes the lock in the maintenance database.

    Args:
        gateway: the way to the server.
        instance: the daemon's.
        database: in which the lock is taken.
    """

    def __init__(self, gateway: Gateway, instance: str, database: str = COMMON_DATABASE) -> None:
        self._gateway = gateway
        self._instance = instance
        self._database = database
        self._session: Session | None = None
        self._former_pid = 0
        digest = hashlib.blake2s(f"clonepool:{instance}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, signed=True)

    async def take(self, on_end: Callable[[], None]) -> None:
        """Take the lock; `on_end` is called when its connection ends.

        Raises:
            AlreadyRunningError: another daemon holds it; says which.
            ServerUnavailableError: the server cannot be reached.
        """
        session = await self._connect()
        try:
            await self._take_on(session)
        except BaseException:
            await session.close()
            raise
        self._session = session
        self._former_pid = session.pid
        session.on_end(on_end)

    async def databases(self, prefix: str, *, seconds: float) -> set[str]:
        """Return the names of all databases that begin with `prefix`, read on the lock's session.

        Raises:
            ServerUnavailableError: there was no answer within `seconds`; the lock is released.
        """
        if self._session is None:
            raise ServerUnavailableError("the instance lock is not held")
        try:
            rows = await self._session.rows(
                "SELECT datname FROM pg_database WHERE starts_with(datname, $1)",
                prefix,
                seconds=seconds,
            )
        except ServerUnavailableError:
            self._session.abort()
            raise
        return {row["datname"] for row in rows}

    async def close(self) -> None:
        """Release the lock."""
        if self._session is not None:
            await self._session.close()

    async def _take_on(self, session: Session) -> None:
        if not await session.value("SELECT pg_try_advisory_lock($1)", self._key):
            if await self._end_former_backend(session):
                raise ServerUnavailableError(
                    "the daemon's former session still holds the instance lock"
                )
            holder = await self._holder(session)
            raise AlreadyRunningError(
                f"another daemon of instance {self._instance} uses this server: {holder}",
                remedy="stop it, or give this one another `instance`",
            )

    async def _end_former_backend(self, session: Session) -> bool:
        """End the backend of the former connection, which may not have noticed that it was cut.

        Its process id may belong to another backend by now, so application_name must match too.
        """
        rows = await session.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid = $1 AND application_name = $2 AND usename = current_user",
            self._former_pid,
            self._gateway.application_name,
        )
        return bool(rows)

    async def _connect(self) -> Session:
        gateway = self._gateway
        try:
            return await gateway.connect(self._database, seconds=CONNECT_SECONDS)
        except StatementError:
            maintenance = gateway.endpoint.maintenance
            return await gateway.connect(maintenance, seconds=CONNECT_SECONDS)

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
