"""One lane in a process of its own, with a server of its own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import structlog

from support import binaries
from support.random_rewinds.lane import Lane, run_lane
from support.servers import Workshop, running_server

if TYPE_CHECKING:
    from clonepool.postgres.embedded.server import EmbeddedServer


def work(lane: Lane, told: Any) -> None:
    """Run one lane in a process of its own; say at last why it could not, or nothing."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with running_server(binaries.available()[lane.major]) as server:
        told.put((lane, anyio.run(_try, server, lane, told, backend_options={"use_uvloop": True})))


async def _try(server: EmbeddedServer, lane: Lane, told: Any) -> str:
    shop = await Workshop.open(server.endpoint, server.psql, "trial")
    has_contrib = await shop.has_contrib()
    await shop.gateway.close()
    if not has_contrib:
        return "without contrib clones are not rewound"
    await run_lane(server, lane, lambda news: told.put((lane, news)))
    return ""
