"""Fixtures that several folders use."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from support import binaries, clusters
from support.daemons import Daemon, running_daemon
from support.servers import Workshop, open_directory, running_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from clonepool.postgres.embedded.server import EmbeddedServer


# Each process of the daemon's or the command line's would compile the whole package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


_LEFT = ExitStack()


def pytest_configure() -> None:
    """Give the run a place for prepared clusters, unless this is a worker, which shares it."""
    if clusters.PLACE not in os.environ:
        _LEFT.enter_context(clusters.place_for_copies())


def pytest_unconfigure() -> None:
    """Delete it."""
    _LEFT.close()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that every user may pass through."""
    with open_directory() as directory:
        yield directory


@pytest.fixture(
    scope="session", params=list(binaries.available()), ids=lambda major: f"postgresql-{major}"
)
def any_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """Return a server of each version that the machine has, one after another."""
    with running_server(binaries.available()[request.param]) as server:
        yield server


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """Return a server of the newest version."""
    with running_server(next(iter(binaries.available().values()))) as server:
        yield server


@pytest.fixture
async def workshop(server: EmbeddedServer) -> AsyncIterator[Workshop]:
    shop = await Workshop.open(server.endpoint, server.psql, "test")
    yield shop
    await shop.gateway.close()


@pytest.fixture
async def any_workshop(any_server: EmbeddedServer) -> AsyncIterator[Workshop]:
    shop = await Workshop.open(any_server.endpoint, any_server.psql, "test")
    yield shop
    await shop.gateway.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Return a daemon of the test's own."""
    with running_daemon() as running:
        yield running


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[Daemon]:
    """Return a daemon for tests that leave it as they found it."""
    with running_daemon() as running:
        yield running
