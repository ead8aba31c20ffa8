"""A server that the test stops and kills, and what the daemon reports during the outage."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio.from_thread import start_blocking_portal

from clonepool.config import EmbeddedSection
from clonepool.postgres.embedded.server import EmbeddedServer, discard
from clonepool.postgres.endpoint import from_url
from clonepool.postgres.gateway import Gateway
from support import binaries, clusters
from support.client_sessions import ClientGateway
from support.daemons import eventually
from support.servers import ROOT, open_directory, role_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anyio.from_thread import BlockingPortal

    from clonepool.postgres.session import Session
    from support.daemons import Daemon

RECOVERY_SECONDS = 5.0
"""Seconds within which the daemon recovers after the cause of a failure is gone."""
COUNT = "SELECT count(*) FROM blog.tb_user"


async def _make_admin(server: EmbeddedServer) -> None:
    """Make the role that a daemon by URL logs in as."""
    gateway = Gateway(server.endpoint, "clonepool test")
    await gateway.ddl("CREATE ROLE admin LOGIN SUPERUSER PASSWORD 'plain'")
    await gateway.close()


class ExternalServer:
    """A real server that the test stops, kills and starts; a daemon knows it by URL."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        anyio.run(_make_admin, server)
        self.endpoint = role_of(server.clients, "admin")
        self.url = self.endpoint.url("postgres")

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return int((self.server.storage.data / "postmaster.pid").read_text().splitlines()[0])

    def stop(self, number: int = signal.SIGINT) -> None:
        """End the server: fast by SIGINT, at once by SIGQUIT."""
        os.kill(self.pid, number)
        eventually(lambda: not self.server.alive(), what="the server has ended")

    def start(self) -> None:
        """Start it again with the data that it has."""
        anyio.run(self.server.restart)

    def rows(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        """Run a query as a superuser."""
        return rows(self.url, sql, *arguments)

    def execute(self, *statements: str) -> None:
        """Run statements, each outside a transaction, as a superuser."""
        for statement in statements:
            rows(self.url, statement)

    def databases(self, like: str = "cp\\_%") -> set[str]:
        """Return the names of the databases on it."""
        found = self.rows("SELECT datname FROM pg_database WHERE datname LIKE $1", like)
        return {row["datname"] for row in found}

    def lock_holder(self, instance: str) -> int:
        """Return the backend that holds the instance lock of a daemon."""
        (found,) = self.rows(
            "SELECT pid FROM pg_stat_activity JOIN pg_locks USING (pid)"
            " WHERE locktype = 'advisory' AND application_name LIKE 'clonepool ' || $1 || ' %'",
            instance,
        )
        pid: int = found["pid"]
        return pid

    def ordinary(self) -> str:
        """Return the URL of a role that may create databases and nothing else."""
        if not self.rows("SELECT FROM pg_roles WHERE rolname = 'ordinary'"):
            self.execute("CREATE ROLE ordinary LOGIN CREATEDB PASSWORD 'plain'")
        return role_of(self.server.clients, "ordinary").url("postgres")

    def config(self, instance: str, *, http: int = 0, url: str = "", more: str = "") -> str:
        """Return a configuration for a daemon on this server, to which templates are added."""
        return f"""
server = "{url or self.url}"
instance = "{instance}"
[http]
listen = "{f"127.0.0.1:{http}" if http else ""}"
{more}
"""


def template(name: str = "blog", **limits: int) -> str:
    """Return the configuration table of a template."""
    lines = "".join(f"{key} = {value}\n" for key, value in limits.items())
    return f'[templates.{name}]\nsql = ["{ROOT}/examples/blog/*.sql"]\n{lines}'


@contextmanager
def running_external_server(state: Path | None = None, **section: Any) -> Iterator[ExternalServer]:
    """Run a server of the newest version; delete its data at the end."""
    with open_directory() as fallback:
        directory = state or fallback
        newest = next(iter(binaries.available().values()))
        embedded = EmbeddedSection(binaries=str(newest), **section)
        clusters.lay_down(directory, embedded, 16)
        server = EmbeddedServer(embedded, directory, 16)
        try:
            anyio.run(server.start)
            yield ExternalServer(server)
        finally:
            anyio.run(discard, directory)
            server.alive()  # takes note of its end, so that no zombie stays


async def _rows(url: str, sql: str, *arguments: object) -> list[dict[str, Any]]:
    endpoint = from_url(url)
    async with ClientGateway(endpoint, "test").session(endpoint.maintenance) as session:
        return await session.rows(sql, *arguments)


def rows(url: str, sql: str, *arguments: object) -> list[dict[str, Any]]:
    """Run one statement on a connection of its own."""
    return anyio.run(_rows, url, sql, *arguments)


class Sessions:
    """Connections that stay open during the test."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._open: list[Session] = []

    def open(self, url: str) -> Session:
        """Open one more."""
        endpoint = from_url(url)
        gateway = ClientGateway(endpoint, "test")
        session = self._portal.call(lambda: gateway.connect(endpoint.maintenance))
        self._open.append(session)
        return session

    def rows(self, session: Session, sql: str, *arguments: object) -> list[dict[str, Any]]:
        """Ask on one of them."""
        return self._portal.call(lambda: session.rows(sql, *arguments))

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._portal.call(self._open.pop().close)


@contextmanager
def sessions() -> Iterator[Sessions]:
    """Give connections that the test holds; closed at the end."""
    with start_blocking_portal() as portal:
        opened = Sessions(portal)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def halted(*pids: int) -> Iterator[None]:
    """Stop processes in their tracks, and let them go on afterwards, whatever happens."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def logged(daemon: Daemon, event: str) -> list[dict[str, Any]]:
    """Return the daemon's log lines of one event."""
    lines = [line for line in daemon.log.read_text().splitlines() if line.startswith("{")]
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def said_once_each(daemon: Daemon, event: str) -> bool:
    """Say whether no cause of an event was told twice running."""
    causes = [entry["error"] for entry in logged(daemon, event)]
    return all(one != other for one, other in itertools.pairwise(causes))


def problem(daemon: Daemon) -> str:
    """Return what the daemon says is wrong with the server."""
    found: str = daemon.status()["server"]["problem"]
    return found


def is_whole(daemon: Daemon) -> bool:
    """Say whether the server is there, and every template as ready as it should be."""
    status = daemon.status()
    return not status["server"]["problem"] and all(
        pool["phase"] == "ready" and pool["ready"] >= pool["min_ready"] and not pool["limited_by"]
        for pool in status["pools"]
    )


def assert_recovers(daemon: Daemon, seconds: float = RECOVERY_SECONDS) -> None:
    """See that the daemon is whole in time from now on, grants, and made no mistake of its own."""
    deadline = time.monotonic() + seconds
    try:
        eventually(lambda: is_whole(daemon), seconds, "the daemon is whole again")
    except AssertionError as error:
        error.add_note(f"{daemon.status()}\n{daemon.log.read_text()[-4000:]}")
        raise
    templates = [pool["template"] for pool in daemon.status()["pools"]]
    with daemon.client() as client:
        for name in templates:
            left = max(0.2, deadline - time.monotonic())
            lease = client.lease(name, timeout=left)
            assert rows(lease.url, COUNT) == [{"count": 40}]
            assert from_url(lease.url).password not in daemon.log.read_text()
            lease.release()
    mistakes = [*logged(daemon, "work.failed"), *logged(daemon, "worker.failed")]
    assert not mistakes, "\n".join(str(entry.get("exception")) for entry in mistakes)


def get(port: int, path: str) -> tuple[int, str]:
    """Ask the daemon by HTTP; return the status code and the text."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(port: int, sample: str) -> float:
    """Return the value of one sample, written as Prometheus writes it; 0 when there is none."""
    return value_in(get(port, "/metrics")[1], sample)


def value_in(scraped: str, sample: str) -> float:
    """Return the value of one sample of a scrape, of which several can be compared."""
    for line in scraped.splitlines():
        name, _, value = line.rpartition(" ")
        if name == sample:
            return float(value)
    return 0.0
