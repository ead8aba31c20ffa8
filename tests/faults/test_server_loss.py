"""PostgreSQL stops under a running daemon."""

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
from support.client_sessions import ClientGateway
from support.daemons import CONFIG, eventually, running_daemon

if TYPE_CHECKING:
    from support.daemons import Daemon

COUNT = "SELECT count(*) FROM blog.tb_user"


def server_pid(daemon: Daemon) -> int:
    return int((data_directory(daemon) / "postmaster.pid").read_text().splitlines()[0])


def data_directory(daemon: Daemon) -> Path:
    marker = cluster.read_marker(daemon.state / MARKER)
    assert marker is not None
    return Path(marker.root) / "data"


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
            assert anyio.run(_value, lease.url, COUNT) == 40
            lease.release()
    eventually(daemon.at_rest)


def test_a_crashed_backend_takes_no_lease_away(daemon: Daemon) -> None:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=20)

        async def crash() -> None:
            endpoint = from_url(lease.url)
            gateway = ClientGateway(endpoint, "test")
            session = await gateway.connect(endpoint.maintenance)
            os.kill(session.pid, signal.SIGSEGV)
            await session.close()

        anyio.run(crash)
        eventually(lambda: bool(daemon.events("server.found")), 20, "the server is back")
        assert anyio.run(_value, lease.url, COUNT) == 40
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
        os.kill(pid, signal.SIGSTOP)  # connections fail: new clones cannot be verified
        try:
            with pytest.raises((AcquireTimeoutError, PoolFullError)):
                held += [client.lease("blog", timeout=0.3) for _ in range(12)]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert client.call("ping") == {}
        for lease in held:
            lease.release()
    eventually(daemon.at_rest, 30)


def test_a_cluster_damaged_under_the_daemon_ends_it_and_the_next_start_is_fresh(
    daemon: Daemon,
) -> None:
    eventually(daemon.at_rest)
    pid, data = server_pid(daemon), data_directory(daemon)
    os.kill(pid, signal.SIGSTOP)
    control = data / "global" / "pg_control"
    control.write_bytes(b"\x00" * control.stat().st_size)
    os.kill(pid, signal.SIGKILL)
    assert daemon.process is not None
    assert daemon.process.wait(30) == 1
    assert "start the daemon again" in daemon.log.read_text()
    daemon.start()
    with daemon.client() as client:
        client.lease("blog", timeout=30).release()


def test_a_server_that_restarts_during_a_build_only_delays_the_template(place: Path) -> None:
    slow = place / "slow.sql"
    slow.write_text("CREATE TABLE t (a int); SELECT pg_sleep(1.5);")
    with running_daemon(CONFIG + f'[templates.slow]\nsql = ["{slow}"]\nmin_ready = 1\n') as daemon:
        eventually(lambda: daemon.pool("blog")["phase"] == "ready")
        eventually(lambda: _is_sleeping(daemon))
        os.kill(server_pid(daemon), signal.SIGINT)
        with daemon.client() as client, client.lease("slow", timeout=30) as lease:
            assert lease.template == "slow"
        assert not daemon.events("template.build_failed")


def _is_sleeping(daemon: Daemon) -> bool:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=20)
        sql = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
        )
        found = anyio.run(_value, lease.url, sql)
        lease.release()
    return found == 1


async def _value(url: str, sql: str) -> object:
    endpoint = from_url(url)
    async with ClientGateway(endpoint, "test").session(endpoint.maintenance) as session:
        return await session.value(sql)


def test_an_edit_while_the_server_is_away_is_built_when_it_is_back() -> None:
    config = '[http]\nlisten = ""\n[templates.blog]\nsql = ["*.sql"]\nmin_ready = 2\n'
    files = {"a.sql": "CREATE TABLE t AS SELECT 1 AS v;"}
    with running_daemon(config, files=files) as daemon:
        eventually(daemon.at_rest)
        pid = server_pid(daemon)
        os.kill(pid, signal.SIGSTOP)
        try:
            (daemon.directory / "a.sql").write_text("CREATE TABLE t AS SELECT 2 AS v;")
            eventually(lambda: bool(daemon.events("template.stale")))
        finally:
            os.kill(pid, signal.SIGKILL)
        with daemon.client() as client, client.lease("blog", timeout=30) as lease:
            assert anyio.run(_value, lease.url, "SELECT v FROM t") == 2
