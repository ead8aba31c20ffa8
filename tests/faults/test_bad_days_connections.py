"""Others use up the server's connections: ready clones are granted, refills wait, with a reason."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from clonepool.errors import AcquireTimeoutError, ResourceError
from clonepool.postgres.endpoint import from_url
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
    said_once_each,
    sessions,
    template,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.postgres.session import Session

OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'clonepool %'"

LIMITED = 'clonepool_limited{limit="max_connections",template="blog"}'
END_ORDINARY = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ordinary'"


@pytest.fixture(scope="module")
def postgres() -> Iterator[ExternalServer]:
    with running_external_server(max_connections=20) as running:
        yield running


def use_up(others: Sessions, url: str) -> list[Session]:
    """Open connections until the server refuses."""
    opened: list[Session] = []
    with contextlib.suppress(ResourceError):
        while True:
            opened.append(others.open(url))
    return opened


def test_with_no_connection_left_ready_clones_are_granted_and_refills_wait() -> None:
    http = free_port()
    config = f'[http]\nlisten = "127.0.0.1:{http}"\n[embedded]\nmax_connections = 20\n' + template(
        min_ready=3, max_clones=20
    )
    with running_daemon(config) as daemon, daemon.client() as client, sessions() as others:
        held = [client.lease("blog", timeout=20)]
        eventually(lambda: is_whole(daemon))
        use_up(others, from_url(held[0].url).url("postgres"))
        held += [client.lease("blog", timeout=0) for _ in range(3)]
        eventually(lambda: daemon.pool()["limited_by"] == "max_connections", 10)
        with pytest.raises(AcquireTimeoutError, match="SQLSTATE 53300"):
            client.lease("blog", timeout=1)
        assert problem(daemon) == ""
        assert "SQLSTATE 53300" in daemon.pool()["last_error"]
        eventually(
            lambda: (
                metric(http, 'clonepool_limited{limit="max_connections",template="blog"}') == 1.0
            ),
            5,
        )
        assert metric(http, 'clonepool_server_errors_total{sqlstate_class="unavailable"}') > 0
        others.close()
        assert_recovers(daemon)
        assert len(client.call("leases")) == 4
        assert len(logged(daemon, "clone.create_failed")) == 1
        assert len(logged(daemon, "server.lost")) == 0
        for lease in held:
            lease.release()
        eventually(daemon.at_rest, 10)
        assert get(http, "/readyz")[0] == 200


def test_the_want_of_connections_is_told_steadily_while_one_try_after_another_fails(
    postgres: ExternalServer,
) -> None:
    config = postgres.config("small") + template(min_ready=3, max_clones=6)
    with running_daemon(config) as daemon, daemon.client() as client, sessions() as others:
        eventually(lambda: is_whole(daemon))
        use_up(others, postgres.url)
        held = [client.lease("blog", timeout=0) for _ in range(3)]
        eventually(lambda: daemon.pool()["limited_by"] == "max_connections", 10)
        for _ in range(40):
            with pytest.raises(AcquireTimeoutError, match="SQLSTATE 53300"):
                client.lease("blog", timeout=0.05)
            assert daemon.pool()["limited_by"] == "max_connections"
        others.close()
        assert_recovers(daemon)
        for lease in held:
            lease.release()


@pytest.mark.alone  # a session that was closed is still counted until its backend gets a processor
def test_the_daemon_has_no_more_sessions_than_it_says(postgres: ExternalServer) -> None:
    config = postgres.config("counted") + template(min_ready=3, max_clones=12)
    with running_daemon(config) as daemon, sessions() as others:
        own = daemon.status()["server"]["own_connections"]
        assert own <= 20 // 4 + 1
        watching = others.open(postgres.url)
        enough = threading.Event()

        def come_and_go() -> None:
            with daemon.client() as client:
                while not enough.is_set():
                    for lease in [client.lease("blog", timeout=20) for _ in range(3)]:
                        lease.release()

        threads = [threading.Thread(target=come_and_go) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            seen = [others.rows(watching, OURS)[0]["count"] for _ in range(400)]
        finally:
            enough.set()
            for thread in threads:
                thread.join(30)
        assert max(seen) <= own
        assert_recovers(daemon)


def test_a_lost_lock_that_finds_no_connection_left_is_told_and_taken_later(
    postgres: ExternalServer,
) -> None:
    config = postgres.config("locked", url=postgres.ordinary()) + template(
        min_ready=2, max_clones=6
    )
    with running_daemon(config) as daemon, daemon.client() as client, sessions() as others:
        lease = client.lease("blog", timeout=20)
        eventually(lambda: is_whole(daemon))
        # What is left when the daemon's own are gone is reserved for superusers.
        mine = use_up(others, postgres.url)[0]
        others.rows(
            mine,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ordinary'",
        )
        eventually(lambda: "SQLSTATE 53300" in problem(daemon), 10)
        assert daemon.pool()["leased"] == 1
        others.close()
        assert_recovers(daemon)
        lease.release()
        assert len(logged(daemon, "server.lost")) == len(logged(daemon, "server.found")) == 1
        assert said_once_each(daemon, "server.unreachable")
