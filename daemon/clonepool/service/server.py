"""The server the daemon works on: opened at the start, closed at the end, whatever came between."""

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
_SPARE_CONNECTIONS = 3
_LARGEST_SHARE = 4
"""The daemon takes at most one in so many of the server's connections."""
_LARGEST_SHARE_KEPT = 8
"""And one in so many may stay on clones."""


class Server:
    """The server the daemon works on, embedded or by URL, and the way to it.

    Attributes:
        state: directory for what outlives the daemon.
        clients: where the server is for whoever has a login there.
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
    """Return how many connections of each kind the daemon may hold: most are for the tests."""
    wanted = config.pool.ddl_concurrency + _SPARE_CONNECTIONS
    return max(1, min(wanted, max_connections // _LARGEST_SHARE // 2))


def kept_connections(max_connections: int) -> int:
    """Return how many more may stay on clones from one rewind to the next."""
    return max_connections // _LARGEST_SHARE_KEPT


async def open_server(config: Config, state: Path, stack: AsyncExitStack) -> Server:
    """Start the embedded server, or look up the one by URL; `stack` closes what was opened.

    Raises:
        EmbeddedServerError, ConfigError: says what stands in the way.
    """
    embedded = None
    if config.server == EMBEDDED:
        # Before the storage is chosen: what they leave is room in memory.
        own = root_in_memory(state)
        await sweep(own.parent, own.name)
        embedded = EmbeddedServer(config.embedded, state, config.pool.max_clones)
        # Registered first: half a start is stopped too.
        stack.push_async_callback(shielded, embedded.stop)
        await embedded.start()
    server = Server(config, embedded, state)
    stack.push_async_callback(shielded, server.gateway.close)
    return server


async def shielded(close: Callable[[], Awaitable[None]]) -> None:
    """Close something even while being cancelled, for as long as that may take."""
    with anyio.move_on_after(CLOSE_SECONDS, shield=True):
        await close()
