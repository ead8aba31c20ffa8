"""Fixtures that tests of several directories use."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from support import binaries, clusters, lanes
from support.daemons import Daemon, running_daemon
from support.servers import ServerTools, open_directory, running_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from clonepool.postgres.embedded.server import EmbeddedServer


# With it, each process of the daemon or the command line would compile the whole package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


SERVERS = {"server_of", "daemon", "shared_daemon"}
"""Fixtures that start PostgreSQL."""
_LEFT = ExitStack()
settings.register_profile("lane", max_examples=lanes.examples(100), deadline=None)
settings.load_profile("lane")


def pytest_configure() -> None:
    """Make the directory for prepared clusters, unless this is a worker, which shares it."""
    if clusters.PLACE not in os.environ:
        _LEFT.enter_context(clusters.place_for_copies())


def pytest_unconfigure() -> None:
    """Delete that directory."""
    _LEFT.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need a server or are slow, and set the number of hypothesis examples."""
    versions, oldest = list(binaries.available()), min(binaries.rewinding())
    for item in items:
        if SERVERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("server")
        major = version_of(item)
        marks = {mark.name for mark in item.iter_markers()}
        if major and lanes.is_slow(major, versions, oldest, marks):
            item.add_marker("slow")
    classes = {item.cls for item in items if isinstance(item, pytest.Function) and item.cls}
    for machine in classes:
        tried = getattr(machine, "settings", None)
        if isinstance(tried, settings):
            few = lanes.examples(tried.max_examples)
            machine.settings = settings(tried, max_examples=few)


def version_of(item: pytest.Item) -> int | None:
    """Return the version of PostgreSQL that a test runs on, if it runs on several."""
    found = re.search(r"\bpostgresql-(\d+)", item.name)
    return int(found[1]) if found else None


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that every user can enter."""
    with open_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def server_of() -> Iterator[Callable[[int], EmbeddedServer]]:
    """Return a function that returns the server of a version, started on first use."""
    with ExitStack() as stack:

        @cache
        def start(major: int) -> EmbeddedServer:
            return stack.enter_context(running_server(binaries.available()[major]))

        yield start


@pytest.fixture(
    scope="session", params=list(binaries.available()), ids=lambda major: f"postgresql-{major}"
)
def any_server(
    request: pytest.FixtureRequest, server_of: Callable[[int], EmbeddedServer]
) -> EmbeddedServer:
    """Return a server of each installed version, one after another."""
    return server_of(request.param)


@pytest.fixture(scope="session")
def server(server_of: Callable[[int], EmbeddedServer]) -> EmbeddedServer:
    """Return a server of the newest version."""
    return server_of(next(iter(binaries.available())))


@pytest.fixture
async def tools(server: EmbeddedServer) -> AsyncIterator[ServerTools]:
    tools = await ServerTools.open(server.endpoint, server.psql, "test")
    yield tools
    await tools.gateway.close()


@pytest.fixture
async def any_tools(any_server: EmbeddedServer) -> AsyncIterator[ServerTools]:
    tools = await ServerTools.open(any_server.endpoint, any_server.psql, "test")
    yield tools
    await tools.gateway.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Return a daemon of the test's own."""
    with running_daemon() as running:
        yield running


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[Daemon]:
    """Return a daemon for tests that leave its state unchanged."""
    with running_daemon() as running:
        yield running
