"""The server refuses the daemon or a build: the cause is reported everywhere."""

from __future__ import annotations

import contextlib
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from clonepool.errors import AcquireTimeoutError, ResourceError
from clonepool.postgres.gateway import Gateway
from support.daemons import eventually, free_port, running_daemon
from support.outages import (
    ExternalServer,
    Sessions,
    assert_recovers,
    get,
    is_whole,
    logged,
    metric,
    problem,
    running_external_server,
    sessions,
    template,
)
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REJECT = "local all admin reject\nhost all admin 127.0.0.1/32 reject\n"


@pytest.fixture
def postgres() -> Iterator[ExternalServer]:
    with running_external_server(max_connections=20) as running:
        yield running


@contextmanager
def rejecting(postgres: ExternalServer) -> Iterator[None]:
    """Make pg_hba.conf reject the daemon's role; open sessions stay."""
    rules = postgres.server.storage.access
    good = rules.read_text()

    def give(text: str) -> None:
        rules.write_text(text)
        gateway = Gateway(postgres.server.endpoint, "clonepool test")

        async def reload() -> None:
            await gateway.ddl("SELECT pg_reload_conf()")
            await gateway.close()

        anyio.run(reload)

    give(REJECT + good)
    try:
        yield
    finally:
        give(good)


def reasons(http: int) -> str:
    status, body = get(http, "/readyz")
    assert status == 503
    found: str = " / ".join(json.loads(body)["reasons"])
    return found


def limited(limit: str) -> str:
    return f'clonepool_limited{{limit="{limit}",template="blog"}}'


def test_a_daemon_that_pg_hba_rejects_says_so_to_waiters_in_its_status_and_in_its_metrics(
    postgres: ExternalServer,
) -> None:
    http = free_port()
    config = postgres.config("rejected", http=http) + template(min_ready=2, max_clones=9)
    with running_daemon(config) as daemon, daemon.client() as client:
        eventually(lambda: is_whole(daemon))
        with rejecting(postgres):
            held = [client.lease("blog", timeout=0) for _ in range(2)]
            eventually(lambda: "pg_hba" in daemon.pool()["last_error"])
            with pytest.raises(AcquireTimeoutError, match="pg_hba") as caught:
                client.lease("blog", timeout=0.5)
            assert "a line for it in pg_hba.conf" in caught.value.remedy
            assert daemon.pool()["limited_by"] == "server"
            assert "pg_hba" in problem(daemon)
            assert metric(http, limited("server")) == 1.0
            for lease in held:
                lease.release()
        assert_recovers(daemon)
        eventually(lambda: problem(daemon) == "")
        eventually(lambda: metric(http, limited("server")) == 0.0)


@pytest.fixture
def source() -> Iterator[Path]:
    with open_directory() as directory:
        (directory / "one.sql").write_text("CREATE TABLE one (id int);")
        yield directory / "one.sql"


def configured(postgres: ExternalServer, source: Path, http: int) -> str:
    options = 'min_ready = 1\nmax_clones = 4\n[templates.upper]\nextends = "blog"\nmin_ready = 1\n'
    return (
        postgres.config("builds", http=http) + f'[templates.blog]\nsql = ["{source}"]\n' + options
    )


@contextmanager
def without_connections(postgres: ExternalServer, others: Sessions) -> Iterator[None]:
    with contextlib.suppress(ResourceError):
        while True:
            others.open(postgres.url)
    yield
    others.close()


@pytest.mark.parametrize(
    ("how", "cause", "limit"),
    [("rejected", "pg_hba", "server"), ("used up", "SQLSTATE 53300", "max_connections")],
)
def test_a_build_that_cannot_connect_is_tried_again_and_its_waiters_are_told_why(
    postgres: ExternalServer, source: Path, how: str, cause: str, limit: str
) -> None:
    http = free_port()
    with (
        running_daemon(configured(postgres, source, http)) as daemon,
        daemon.client() as client,
        sessions() as others,
    ):
        eventually(lambda: all(p["phase"] == "ready" for p in daemon.status()["pools"]))
        eventually(lambda: daemon.pool()["ready"] == 1)
        with rejecting(postgres) if how == "rejected" else without_connections(postgres, others):
            source.write_text("CREATE TABLE one (id int); CREATE TABLE two (id int);")
            eventually(lambda: cause in daemon.pool()["last_error"])
            with pytest.raises(AcquireTimeoutError, match=f"cannot be built .*{cause}") as caught:
                client.lease("blog", timeout=0.5)
            assert caught.value.remedy not in ("", "raise the timeout")
            assert daemon.pool()["phase"] == "building"
            assert daemon.pool()["limited_by"] == limit
            assert f"template blog: building ({limit})" in reasons(http)
            assert metric(http, limited(limit)) == 1.0
            assert (cause in problem(daemon)) is (limit == "server")
        client.lease("blog", timeout=30).release()
        client.lease("upper", timeout=30).release()
        assert daemon.pool()["last_error"] == ""
        assert not logged(daemon, "template.build_failed")
