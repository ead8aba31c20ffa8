"""Runs one lane in its own process, with its own server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import structlog

from support import binaries
from support.random_rewinds.lane import Lane, run_lane
from support.servers import running_server

if TYPE_CHECKING:
    from clonepool.postgres.embedded.server import EmbeddedServer


def work(lane: Lane, reports: Any) -> None:
    """Run one lane in this process; the last report is None."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with running_server(binaries.available()[lane.major]) as server:
        anyio.run(_run_lane, server, lane, reports, backend_options={"use_uvloop": True})
    reports.put((lane, None))


async def _run_lane(server: EmbeddedServer, lane: Lane, reports: Any) -> None:
    await run_lane(server, lane, lambda result: reports.put((lane, result)))
