"""Metrics and health over HTTP, on loopback."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING

import anyio
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from clonepool.errors import AlreadyRunningError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request

    from clonepool.service.status import StatusBoard


def make_app(registry: CollectorRegistry, board: StatusBoard) -> Starlette:
    """Return the application: /metrics, /healthz, /readyz."""

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        reasons = board.not_ready()
        return JSONResponse(
            {"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200
        )

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )


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


class _QuietServer(uvicorn.Server):
    """Uvicorn without what the daemon does itself: signals, and a tick ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._forever = anyio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def main_loop(self) -> None:
        """Wait to be cancelled."""
        await self._forever.wait()


async def serve(app: Starlette, bound: socket.socket) -> None:
    """Serve until cancelled."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", date_header=False,
        server_header=False, http="h11", ws="none",
    )  # fmt: skip
    await _QuietServer(config).serve(sockets=[bound])
