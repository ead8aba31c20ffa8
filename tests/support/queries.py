"""Queries to the server of a lease or of a daemon."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.from_thread import start_blocking_portal

from clonepool.postgres.embedded import cluster
from clonepool.postgres.embedded.cluster import SUPERUSER
from clonepool.postgres.embedded.server import MARKER
from clonepool.postgres.embedded.settings import DEFAULT_PORT
from clonepool.postgres.embedded.storage import Storage
from clonepool.postgres.endpoint import Endpoint, from_url
from support.client_sessions import ClientGateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.daemons import Daemon


async def _value(url: str, sql: str) -> object:
    endpoint = from_url(url)
    async with ClientGateway(endpoint, "test").session(endpoint.maintenance) as session:
        return await session.value(sql)


def value(url: str, sql: str) -> object:
    return anyio.run(_value, url, sql)


def run(url: str, sql: str) -> None:
    """Run statements as the user of the URL."""

    async def work() -> None:
        endpoint = from_url(url)
        async with ClientGateway(endpoint, "test").session(endpoint.maintenance) as session:
            await session.execute(sql)

    anyio.run(work)


@contextmanager
def connected(url: str) -> Iterator[Callable[[str], object]]:
    """Keep a session open; the block gets a function that queries a value."""
    endpoint = from_url(url)
    with start_blocking_portal() as portal:
        opened = ClientGateway(endpoint, "test").session(endpoint.maintenance)
        with portal.wrap_async_context_manager(opened) as session:
            yield lambda sql: portal.call(session.value, sql)


def ask(daemon: Daemon, sql: str) -> object:
    """Query a value on the embedded server, without the daemon."""
    return value(own_url(daemon), sql)


def tell(daemon: Daemon, sql: str) -> None:
    """Run a statement on the embedded server, without the daemon."""

    async def run() -> None:
        async with ClientGateway(from_url(own_url(daemon)), "test").session("postgres") as session:
            await session.execute(sql)

    anyio.run(run)


def own_url(daemon: Daemon, database: str = "postgres") -> str:
    """Return the URL by which the daemon connects to its embedded server."""
    marker = cluster.read_marker(daemon.state / MARKER)
    assert marker is not None
    host = str(Storage(Path(marker.root), in_memory=False).socket)
    return Endpoint(host, DEFAULT_PORT, SUPERUSER, "").url(database)


def clones_of(daemon: Daemon) -> set[str]:
    """Return the databases of all daemons on the embedded server, without generations."""
    found = ask(
        daemon,
        "SELECT coalesce(string_agg(datname, ' '), '') FROM pg_database"
        " WHERE datname LIKE 'cp\\_%' AND NOT datistemplate",
    )
    return set(str(found).split())


def databases_of(daemon: Daemon) -> set[str]:
    """Return our databases on the daemon's server, without generations."""
    with daemon.client() as client:
        held = client.lease("blog", timeout=30)
        found = value(
            held.url,
            "SELECT string_agg(datname, ' ') FROM pg_database"
            " WHERE datname LIKE 'cp\\_%' AND NOT datistemplate",
        )
        held.release()
    return set(str(found).split())
