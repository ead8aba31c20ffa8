"""Shares out the files that the daemon may have open: its own work first, then clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool import descriptors
from clonepool.config import EMBEDDED
from clonepool.service.server import kept_connections

if TYPE_CHECKING:
    from clonepool.config import Config

log = structlog.get_logger()

OWN_FILES = 64
"""Files that the daemon has open besides connections: logs, locks, watches, pipes, sources."""
FEWEST_CLIENTS = 16
"""Clients that may connect even where there are not files enough for the daemon's own work."""
_CONNECTIONS_OF_SERVERS = 300
"""The max_connections assumed of a server by URL, which is asked later."""


def share_out(config: Config) -> int:
    """Raise the limit of open files as far as allowed, and return how many clients may connect.

    However many connect, and whatever happens on the HTTP port, files are left for the daemon's own
    connections to the server.
    """
    limit = descriptors.raise_limit()
    if limit.soft != descriptors.AT_START.soft:
        log.info("files.limit_raised", before=descriptors.AT_START.soft, now=limit.soft)
    wanted = config.access.max_clients
    room = max(FEWEST_CLIENTS, limit.soft - reserve(config))
    if room >= wanted:
        return wanted
    log.warning(
        "clients.limited", most=room, wanted=wanted, files=limit.soft,
        remedy="raise the limit of open files (LimitNOFILE in the unit, `ulimit -n`)",
    )  # fmt: skip
    return room


def reserve(config: Config) -> int:
    """Return how many files are kept for the daemon itself."""
    embedded = config.embedded.max_connections
    most = embedded if config.server == EMBEDDED else _CONNECTIONS_OF_SERVERS
    http = config.http.max_connections if config.http.listen else 0
    own = 2 * config.pool.ddl_concurrency
    return OWN_FILES + own + kept_connections(most) + http
