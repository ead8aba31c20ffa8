"""Metrics and health over HTTP on loopback, for all users of the machine, with bounded resources.

Only the protocol of uvicorn is used. Its server has no deadline for a request's headers, and
accepts connections without limit.
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
from clonepool.service.http.connections import HttpConnection
from clonepool.service.http.hosts import Hosts
from clonepool.service.http.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from clonepool.service.api.status import StatusBoard
    from clonepool.service.http.connections import HttpConnections
    from clonepool.service.resources import Resources

log = structlog.get_logger()

CONNECTIONS_AT_A_TIME, REST_SECONDS = 8, 0.02
"""At most 8 connections are accepted in 0.02 seconds."""
BACKLOG = 512
"""Connections that the kernel holds until they are accepted."""


def make_app(registry: CollectorRegistry, board: StatusBoard, hosts: Iterable[str]) -> ASGIApp:
    """Return the application: /metrics, /healthz, /readyz.

    Args:
        registry: of the metrics.
        board: tells what is ready.
        hosts: names that it answers to, besides the machine's own.
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
    app: ASGIApp, bound: socket.socket, connections: HttpConnections, resources: Resources
) -> None:
    """Serve until cancelled.

    Args:
        app: makes the responses.
        bound: the socket that `bind` returned.
        connections: limits the connections.
        resources: notes what was missing when a connection could not be accepted.
    """
    for name in ("uvicorn", "uvicorn.error"):  # no log line for each request that is malformed
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
        lambda: HttpConnection(config, state, connections),
        resources,
        turn=CONNECTIONS_AT_A_TIME,
        rest=REST_SECONDS,
    )
    try:
        acceptor.open(BACKLOG)
        await anyio.sleep_forever()
    finally:
        acceptor.close()
        connections.close()
