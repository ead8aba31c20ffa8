"""The server restarts, shuts down at once, or loses a backend: leases and waiters survive."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from clonepool.errors import ClonepoolError
from support.daemons import eventually, free_port, running_daemon
from support.outages import (
    COUNT,
    ExternalServer,
    assert_recovers,
    get,
    is_whole,
    logged,
    metric,
    problem,
    rows,
    running_external_server,
    said_once_each,
    sessions,
    template,
)
from support.waiters import Waiter

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def postgres() -> Iterator[ExternalServer]:
    with running_external_server() as running:
        yield running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_restart_of_the_server_takes_neither_leases_nor_waiters_away(
    postgres: ExternalServer, number: signal.Signals
) -> None:
    http = free_port()
    config = postgres.config(f"restart{number}", http=http) + template(min_ready=2, max_clones=6)
    with running_daemon(config) as daemon, daemon.client() as client:
        eventually(lambda: is_whole(daemon))
        held = [client.lease("blog", timeout=20) for _ in range(3)]
        eventually(lambda: is_whole(daemon))
        rows(held[0].url, "CREATE TABLE mine AS SELECT 1 AS a")
        postgres.stop(number)
        eventually(lambda: bool(problem(daemon)), what="the loss is noticed")
        waiters = [Waiter(daemon) for _ in range(3)]
        try:
            eventually(lambda: daemon.pool()["waiting"] == 3)
            time.sleep(1.5)  # sleeps: the time of several tries, of which none may be logged twice
            assert daemon.pool()["limited_by"] == "server"
            assert get(http, "/readyz") == (
                503,
                '{"ready":false,"reasons":["the server cannot be reached"],"short_of":[]}',
            )
            assert metric(http, "clonepool_server_up") == 0.0
            assert {lease["database"] for lease in client.call("leases")} == {
                lease.database for lease in held
            }
        finally:
            postgres.start()
        assert_recovers(daemon)
        assert [waiter.join() for waiter in waiters] == [[{"count": 40}]] * 3
        assert [rows(lease.url, COUNT) for lease in held] == [[{"count": 40}]] * 3
        assert rows(held[0].url, "SELECT a FROM mine") == [{"a": 1}]
        for lease in held:
            lease.release()
        assert get(http, "/readyz")[0] == 200
        assert metric(http, "clonepool_server_up") == 1.0
        assert len(logged(daemon, "server.lost")) == len(logged(daemon, "server.found")) == 1
        assert said_once_each(daemon, "server.unreachable")
        assert len(logged(daemon, "clone.create_failed")) <= 1
        eventually(daemon.at_rest, 10)


MANY = 20
"""Leases before and after a fault, so that it falls among some."""


def test_waiters_in_front_of_a_full_pool_outlast_a_restart(postgres: ExternalServer) -> None:
    config = postgres.config("full") + template(min_ready=1, max_clones=2)
    with running_daemon(config) as daemon, daemon.client() as client:
        held = [client.lease("blog", timeout=20) for _ in range(2)]
        waiter = Waiter(daemon)
        eventually(lambda: daemon.pool()["waiting"] == 1)
        postgres.stop()
        eventually(lambda: bool(problem(daemon)))
        held[0].release()  # while the server cannot be queried
        postgres.start()
        assert waiter.join() == [{"count": 40}]
        held[1].release()
        assert_recovers(daemon)


def test_tests_that_come_and_go_meet_a_crash_of_the_server_as_a_wait_and_no_error(
    postgres: ExternalServer,
) -> None:
    config = postgres.config("busy") + template(min_ready=2, max_clones=8)
    with running_daemon(config) as daemon:
        eventually(lambda: is_whole(daemon))
        enough, failures = threading.Event(), list[ClonepoolError]()
        served = list[int]()

        def come_and_go() -> None:
            with daemon.client() as client:
                while not enough.is_set():
                    try:
                        client.lease("blog", timeout=20).release()
                        served.append(1)
                    except ClonepoolError as error:
                        failures.append(error)

        threads = [threading.Thread(target=come_and_go) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: len(served) > MANY)
            postgres.stop(signal.SIGQUIT)
            eventually(lambda: bool(problem(daemon)))
            postgres.start()
            eventually(lambda: not problem(daemon), 5)
            before = len(served)
            eventually(lambda: len(served) > before + MANY)
        finally:
            enough.set()
            for thread in threads:
                thread.join(30)
        assert failures == []
        assert_recovers(daemon)
        assert len(logged(daemon, "server.lost")) == 1
        for event in ("clone.create_failed", "clone.drop_failed", "clone.recycle_failed"):
            assert said_once_each(daemon, event)
            assert len(logged(daemon, event)) <= 3


@pytest.mark.parametrize("whose", ["a lease's", "the daemon's"])
def test_a_killed_backend_restarts_the_server_and_takes_no_lease_away(
    postgres: ExternalServer, whose: str
) -> None:
    instance = "killa" if whose == "a lease's" else "killt"
    config = postgres.config(instance) + template(min_ready=2, max_clones=6)
    with running_daemon(config) as daemon, daemon.client() as client:
        lease = client.lease("blog", timeout=20)
        eventually(lambda: is_whole(daemon))
        with sessions() as others:
            pid = (
                others.open(lease.url).pid
                if whose == "a lease's"
                else postgres.lock_holder(instance)
            )
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: bool(logged(daemon, "server.lost")))
        assert_recovers(daemon)
        assert client.call("leases")[0]["database"] == lease.database
        assert rows(lease.url, COUNT) == [{"count": 40}]
        lease.release()
        assert len(logged(daemon, "server.lost")) == len(logged(daemon, "server.found")) == 1
        assert said_once_each(daemon, "server.unreachable")
