"""The daemon's own role and database on the embedded server, which leases may have changed."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from clonepool.errors import StatementError
from clonepool.postgres.databases import INVALID_CATALOG_NAME
from clonepool.postgres.embedded.cluster import MAINTENANCE, SUPERUSER
from clonepool.postgres.gateway import Gateway
from clonepool.postgres.quoting import identifier
from clonepool.postgres.roles import prepare_embedded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clonepool.postgres.endpoint import Endpoint
    from clonepool.postgres.session import Session

_MADE_BY_INITDB = ("postgres", "template1")


async def reset(endpoint: Endpoint, major: int, *, reload: bool) -> None:
    """Create or reset them.

    Args:
        endpoint: of the server, with the daemon's own role.
        major: the server's version.
        reload: whether the server has to read its configuration again.

    Raises:
        StatementError, ServerUnavailableError: the server does not allow it.
    """
    name = identifier(MAINTENANCE)
    async with any_session(endpoint) as session:
        if reload:
            await session.value("SELECT pg_reload_conf()")
        await prepare_embedded(session, SUPERUSER, major)
        if not await session.rows("SELECT FROM pg_database WHERE datname = $1", MAINTENANCE):
            await session.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        await session.execute(
            f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true CONNECTION LIMIT -1;"
            f" ALTER DATABASE {name} RESET ALL"
        )


@asynccontextmanager
async def any_session(endpoint: Endpoint) -> AsyncIterator[Session]:
    """Connect to the daemon's own database or, if there is none, to one that initdb made."""
    gateway = Gateway(endpoint, f"clonepool pid={os.getpid()}")
    for database in (MAINTENANCE, *_MADE_BY_INITDB):
        try:
            session = await gateway.connect(database)
        except StatementError as error:
            if error.sqlstate != INVALID_CATALOG_NAME or database == _MADE_BY_INITDB[-1]:
                raise
        else:
            break
    try:
        yield session
    finally:
        await session.close()
