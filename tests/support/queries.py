"""Questions put to a server through a lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.postgres.endpoint import from_url
from clonepool.postgres.gateway import Gateway

if TYPE_CHECKING:
    from support.daemons import Daemon


async def _value(url: str, sql: str) -> object:
    endpoint = from_url(url)
    async with Gateway(endpoint, "test").session(endpoint.maintenance) as session:
        return await session.value(sql)


def value(url: str, sql: str) -> object:
    return anyio.run(_value, url, sql)


def databases_of(daemon: Daemon) -> set[str]:
    """Return our databases on the daemon's server, generations left out."""
    with daemon.client() as client:
        held = client.lease("blog", timeout=30)
        found = value(
            held.url,
            "SELECT string_agg(datname, ' ') FROM pg_database"
            " WHERE datname LIKE 'cp\\_%' AND NOT datistemplate",
        )
        held.release()
    return set(str(found).split())
