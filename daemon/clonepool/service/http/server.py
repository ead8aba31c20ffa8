"""Metrics and health over HTTP, on loopback: for anybody on the machine, so bounded in its means.

Of uvicorn the protocol is used and not the server: it has no deadline for a request's headers, and
accepts without end.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from typing import TYPE_CHECKING

import anyio
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.server import ServerState

from clonepool.errors import AlreadyRunningError, ConfigError
from clonepool.service.api.acceptor import Acceptor
from clonepool.service.http.connections import Visit
from clonepool.service.http.hosts import Hosts
from clonepool.service.http.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from clonepool.service.api.status import StatusBoard
    from clonepool.service.http.connections import HttpConnections
    from clonepool.service.monitors.resources import ResourceMonitor

log = structlog.get_logger()

CONNECTIONS_AT_A_TIME, REST_SECONDS = 8, 0.02
"""So many connections are taken in so long, at most."""
BACKLOG = 512


def make_app(registry: CollectorRegistry, board: StatusBoard, hosts: Iterable[str]) -> ASGIApp:
    """Return the application: /metrics, /healthz, /readyz.

    Args:
        registry: of the metrics.
        board: knows what is ready.
        hosts: names under which it answers beside the machine's own.
    """

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        reasons = board.not_ready()
        return JSONResponse(
            {"ready": not reasons, "reasons": reasons, "short_of": board.short_of()},
            status_code=503 if reasons else 200,
        )

    async def failed(request: Request, error: Exception) -> Response:
        log.error("http.failed", path=request.url.path, exc_info=error)
        return PlainTextResponse("internal error\n", status_code=500)

    inner = Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ],
        exception_handlers={Exception: failed},
    )
    return Throttle(Hosts(inner, hosts), time.monotonic)


def bind(listen: str) -> socket.socket:
    """Bind "ADDRESS:PORT".

    Raises:
        AlreadyRunningError: the port is taken.
        ConfigError: the address is not this machine's.
    """
    host, _, port = listen.rpartition(":")
    address = host.strip("[]")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, int(port)), family=family)
    except OSError as error:
        kind = AlreadyRunningError if error.errno == errno.EADDRINUSE else ConfigError
        raise kind(
            f"http.listen: {listen}: {error.strerror}",
            remedy='choose another address, or "" to serve no HTTP',
        ) from error


async def serve(
    app: ASGIApp, bound: socket.socket, visits: HttpConnections, shortages: ResourceMonitor
) -> None:
    """Serve until cancelled.

    Args:
        app: answers.
        bound: as `bind` returned it.
        visits: bounds the connections.
        shortages: are told what a connection could not be taken for.
    """
    for name in ("uvicorn", "uvicorn.error"):  # what strangers send is not worth a line each
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", date_header=False,
        server_header=False, http="h11", ws="none",
    )  # fmt: skip
    config.load()
    state = ServerState()
    acceptor = Acceptor(
        bound,
        lambda: Visit(config, state, visits),
        shortages,
        turn=CONNECTIONS_AT_A_TIME,
        rest=REST_SECONDS,
    )
    try:
        acceptor.open(BACKLOG)
        await anyio.sleep_forever()
    finally:
        acceptor.close()
        visits.close()
