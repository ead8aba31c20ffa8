"""A backend hangs: on a clone only that clone is delayed; that of the lock is noticed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from support.daemons import eventually, free_port, running_daemon
from support.outages import (
    ExternalServer,
    assert_recovers,
    get,
    halted,
    is_whole,
    logged,
    problem,
    running_external_server,
    said_once_each,
    sessions,
    template,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def postgres() -> Iterator[ExternalServer]:
    with running_external_server() as running:
        yield running


def test_a_session_that_hangs_on_a_returned_clone_delays_no_other_lease(
    postgres: ExternalServer,
) -> None:
    config = postgres.config("hang") + template(min_ready=2, max_clones=12)
    config += template("other", min_ready=2, max_clones=12)
    with running_daemon(config) as daemon, daemon.client() as client, sessions() as others:
        lease = client.lease("blog", timeout=20)
        eventually(lambda: is_whole(daemon))
        with halted(others.open(lease.url).pid):
            (stray,) = lease.release(report=True) or []
            assert stray["application_name"] == "test"
            for _ in range(3):
                for name in ("blog", "other"):
                    held = [client.lease(name, timeout=5) for _ in range(2)]
                    for one in held:
                        one.release()
            eventually(lambda: is_whole(daemon), 5)
            assert problem(daemon) == ""
            eventually(lambda: bool(logged(daemon, "clone.drop_failed")), 10)
            time.sleep(1)  # sleeps: tries go on, and none is to be told
            assert lease.database in postgres.databases()
        eventually(lambda: lease.database not in postgres.databases(), 5)
        eventually(lambda: sum(p["dropping"] for p in daemon.status()["pools"]) == 0, 5)
        assert_recovers(daemon)
        assert [entry["clone"] for entry in logged(daemon, "clone.drop_failed")] == [lease.database]
        assert logged(daemon, "server.lost") == []


def test_a_clone_that_cannot_be_dropped_is_told_once_while_drops_of_others_succeed(
    postgres: ExternalServer,
) -> None:
    config = postgres.config("drops", url=postgres.ordinary())
    with running_daemon(config + template(min_ready=2, max_clones=12)) as daemon:
        with daemon.client() as client, sessions() as others:
            lease = client.lease("blog", timeout=20)
            others.open(postgres.endpoint.url(lease.database))
            lease.release()
            eventually(lambda: bool(logged(daemon, "clone.drop_failed")), 10)
            until = time.monotonic() + 2
            while time.monotonic() < until:
                client.lease("blog", timeout=5).release()
                time.sleep(0.1)  # sleeps: between two leases
            assert lease.database in postgres.databases()
            told = logged(daemon, "clone.drop_failed")
        eventually(lambda: lease.database not in postgres.databases(), 5)
        assert_recovers(daemon)
        eventually(daemon.at_rest, 10)
        assert [entry["clone"] for entry in told] == [lease.database]


def test_a_hanging_lock_is_noticed_by_the_pulse_told_and_got_over(postgres: ExternalServer) -> None:
    http = free_port()
    config = postgres.config("pulse", http=http) + template(min_ready=2, max_clones=6)
    with running_daemon(config) as daemon, daemon.client() as client:
        lease = client.lease("blog", timeout=20)
        eventually(lambda: is_whole(daemon))
        with halted(postgres.lock_holder("pulse")):
            eventually(lambda: bool(problem(daemon)), 20, "the pulse is missed")
            assert get(http, "/readyz")[0] == 503
            assert client.call("leases")[0]["database"] == lease.database
            eventually(lambda: bool(logged(daemon, "server.unreachable")), 10)
            time.sleep(1)  # sleeps: tries go on, and none is to be told
        assert_recovers(daemon)
        lease.release()
        assert get(http, "/readyz")[0] == 200
        assert len(logged(daemon, "server.lost")) == len(logged(daemon, "server.found")) == 1
        assert said_once_each(daemon, "server.unreachable")
        assert len(logged(daemon, "server.unreachable")) <= 2
