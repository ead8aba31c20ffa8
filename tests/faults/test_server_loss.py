"""PostgreSQL goes away under a running daemon."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from clonepool.errors import AcquireTimeoutError, PoolFullError
from clonepool.postgres.embedded import cluster
from clonepool.postgres.embedded.server import MARKER
from clonepool.postgres.endpoint import from_url
from clonepool.postgres.gateway import Gateway
from support.daemons import eventually

if TYPE_CHECKING:
    from support.daemons import Daemon


def server_pid(daemon: Daemon) -> int:
    marker = cluster.read_marker(daemon.state / MARKER)
    assert marker is not None
    return int((Path(marker.root) / "data" / "postmaster.pid").read_text().splitlines()[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_an_embedded_server_that_ends_is_started_again(
    daemon: Daemon, number: signal.Signals
) -> None:
    eventually(daemon.at_rest)
    before = server_pid(daemon)
    os.kill(before, number)
    eventually(lambda: bool(daemon.events("server.lost")))
    eventually(lambda: bool(daemon.events("server.found")), 10, "the server is back")
    assert server_pid(daemon) != before
    assert daemon.status()["server"]["problem"] == ""
    with daemon.client() as client:
        leases = [client.lease("blog", timeout=20) for _ in range(5)]
        for lease in leases:
            assert anyio.run(_count, lease.url) == 40
            lease.release()
    eventually(daemon.at_rest)


async def _count(url: str) -> object:
    endpoint = from_url(url)
    async with Gateway(endpoint, "test").session(endpoint.maintenance) as session:
        return await session.value("SELECT count(*) FROM blog.tb_user")


def test_a_crashed_backend_takes_no_lease_away(daemon: Daemon) -> None:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=20)

        async def crash() -> None:
            endpoint = from_url(lease.url)
            gateway = Gateway(endpoint, "test")
            session = await gateway.connect(endpoint.maintenance)
            os.kill(session.pid, signal.SIGSEGV)
            await session.close()

        anyio.run(crash)
        eventually(lambda: bool(daemon.events("server.found")), 20, "the server is back")
        assert anyio.run(_count, lease.url) == 40
        assert client.call("leases")[0]["database"] == lease.database
        lease.release()
    eventually(daemon.at_rest)


def test_a_stopped_server_makes_acquires_wait_and_no_longer_than_they_asked(
    daemon: Daemon,
) -> None:
    eventually(daemon.at_rest)
    pid = server_pid(daemon)
    with daemon.client() as client:
        held = [client.lease("blog") for _ in range(3)]
        os.kill(pid, signal.SIGSTOP)  # nobody can connect: new clones cannot be verified
        try:
            with pytest.raises((AcquireTimeoutError, PoolFullError)):
                held += [client.lease("blog", timeout=0.3) for _ in range(12)]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert client.call("ping") == {}
        for lease in held:
            lease.release()
    eventually(daemon.at_rest, 30)
