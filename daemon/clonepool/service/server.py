"""The server that the daemon works on: opened at the start, closed at the end."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import anyio

from clonepool.config import EMBEDDED
from clonepool.postgres.embedded.abandoned import sweep
from clonepool.postgres.embedded.binaries import find_psql
from clonepool.postgres.embedded.server import EmbeddedServer
from clonepool.postgres.embedded.storage import root_in_memory
from clonepool.postgres.endpoint import from_url
from clonepool.postgres.gateway import Gateway

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AsyncExitStack
    from pathlib import Path

    from clonepool.config import Config

CLOSE_SECONDS = 20.0
"""Seconds that closing one thing may take."""
_SPARE_CONNECTIONS = 3
"""Connections besides those for DDL."""
_LARGEST_SHARE = 4
"""The daemon takes at most one in 4 of the server's connections."""
_LARGEST_SHARE_KEPT = 8
"""One in 8 of the server's connections may stay on clones."""


class Server:
    """The server that the daemon works on, embedded or by URL, and the way to it.

    Args:
        config: of the daemon.
        embedded: the daemon's own server, started; None for a server by URL.
        state: directory for what outlives the daemon.

    Attributes:
        clients: the endpoint for clients.
        gateway: the daemon's own way to the server.
        psql: the path of psql.
    """

    def __init__(self, config: Config, embedded: EmbeddedServer | None, state: Path) -> None:
        self.embedded = embedded
        self.state = state
        self.psql = embedded.psql if embedded else find_psql()
        own = embedded.endpoint if embedded else from_url(config.server)
        self.clients = embedded.clients if embedded else own
        self.gateway = Gateway(
            own,
            f"clonepool {config.instance} pid={os.getpid()} host={socket.gethostname()}",
            config.pool.ddl_concurrency + _SPARE_CONNECTIONS,
        )


def own_connections(config: Config, max_connections: int) -> int:
    """Return how many connections of each kind the daemon may hold; most are for the tests."""
    wanted = config.pool.ddl_concurrency + _SPARE_CONNECTIONS
    return max(1, min(wanted, max_connections // _LARGEST_SHARE // 2))


def kept_connections(max_connections: int) -> int:
    """Return how many more may stay on clones from one rewind to the next."""
    return max_connections // _LARGEST_SHARE_KEPT


async def open_server(config: Config, state: Path, stack: AsyncExitStack) -> Server:
    """Start the embedded server, or find the one by URL; `stack` closes what was opened.

    Raises:
        EmbeddedServerError, ConfigError: the server cannot be used.
    """
    embedded = None
    if config.server == EMBEDDED:
        # Before the storage is chosen: abandoned clusters may take the memory that it needs.
        own = root_in_memory(state)
        await sweep(own.parent, own.name)
        embedded = EmbeddedServer(config.embedded, state, config.pool.max_clones)
        # Registered first, so that a start that fails halfway is stopped too.
        stack.push_async_callback(shielded, embedded.stop)
        await embedded.start()
    server = Server(config, embedded, state)
    stack.push_async_callback(shielded, server.gateway.close)
    return server


async def shielded(close: Callable[[], Awaitable[None]]) -> None:
    """Close something even while being cancelled, within `CLOSE_SECONDS`."""
    with anyio.move_on_after(CLOSE_SECONDS, shield=True):
        await close()
