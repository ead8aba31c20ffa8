"""Databases created and dropped by plain statements, with which leases are compared."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import asyncpg

from clonepool.postgres.endpoint import from_url

if TYPE_CHECKING:
    from types import TracebackType

STRATEGIES = ("wal_log", "file_copy")
"""Strategies of CREATE DATABASE; results are compared with the faster one."""


class Plain:
    """A connection that stays open, and one database at a time.

    Args:
        url: of any database on the server, as a superuser.
    """

    def __init__(self, url: str) -> None:
        self._endpoint = from_url(url)

    async def __aenter__(self) -> Plain:
        self._admin = await asyncpg.connect(self._endpoint.url("postgres"), statement_cache_size=0)
        self._name = f"plain_{self._admin.get_server_pid()}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._admin.execute(f"DROP DATABASE IF EXISTS {self._name} WITH (FORCE)")
        finally:
            await self._admin.close()

    async def generation(self, template: str) -> str:
        """Return the sealed database that a template's clones are copies of."""
        name: str = await self._admin.fetchval(
            "SELECT datname FROM pg_database WHERE datistemplate AND starts_with(datname, $1)",
            f"cp_main_{template}_",
        )
        return name

    async def size(self, database: str) -> int:
        """Return the size of a database in bytes."""
        size: int = await self._admin.fetchval("SELECT pg_database_size($1::name)", database)
        return size

    async def create(self, source: str, strategy: str) -> str:
        """Create the database and return its URL."""
        await self._admin.execute(
            f"CREATE DATABASE {self._name} TEMPLATE {source} STRATEGY {strategy}"
        )
        return self._endpoint.url(self._name)

    async def drop(self) -> None:
        """Drop it."""
        await self._admin.execute(f"DROP DATABASE {self._name}")

    async def drop_and_create(self, source: str, strategy: str) -> float:
        """Return the seconds that dropping the database and creating it again take."""
        await self.create(source, strategy)
        began = time.perf_counter()
        await self.drop()
        await self.create(source, strategy)
        took = time.perf_counter() - began
        await self.drop()
        return took
