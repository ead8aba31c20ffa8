"""The network to the server is cut, stalls, or drops connections silently."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest

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
    template,
)
from support.proxy import Proxy, proxy_to_unix
from support.waiters import Waiter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.daemons import Daemon


@pytest.fixture(scope="module")
def postgres() -> Iterator[ExternalServer]:
    with running_external_server() as running:
        yield running


@contextmanager
def far_daemon(
    postgres: ExternalServer, instance: str, http: int = 0
) -> Iterator[tuple[Daemon, Proxy]]:
    """Run a daemon that reaches the server over a line of ours, and make it whole."""
    endpoint = postgres.endpoint
    with proxy_to_unix(f"{endpoint.host}/.s.PGSQL.{endpoint.port}") as proxy:
        through = msgspec.structs.replace(endpoint, host="127.0.0.1", port=proxy.port)
        config = postgres.config(instance, http=http, url=through.url("postgres"))
        config += template(min_ready=2, max_clones=12)
        with running_daemon(config) as daemon:
            eventually(lambda: is_whole(daemon))
            yield daemon, proxy


MANY = 20
"""Leases before and after a fault, so that it falls among some."""


def test_over_a_line_that_was_cut_leases_and_waiters_last(postgres: ExternalServer) -> None:
    http = free_port()
    with far_daemon(postgres, "cut", http) as (daemon, proxy), daemon.client() as client:
        lease = client.lease("blog", timeout=20)
        proxy.cut()
        eventually(lambda: bool(problem(daemon)), 5, "the cut is noticed")
        waiters = [Waiter(daemon) for _ in range(3)]
        eventually(lambda: daemon.pool()["waiting"] == 3)
        time.sleep(1.5)  # sleeps: the time of several tries, of which none may be logged twice
        assert daemon.pool()["limited_by"] == "server"
        assert "refused" in problem(daemon) or "Connect call failed" in problem(daemon)
        assert get(http, "/readyz")[0] == 503
        assert metric(http, "clonepool_server_up") == 0.0
        proxy.mend()
        assert_recovers(daemon)
        assert [waiter.join() for waiter in waiters] == [[{"count": 40}]] * 3
        assert client.call("leases")[0]["database"] == lease.database
        assert rows(lease.url, COUNT) == [{"count": 40}]
        lease.release()
        eventually(daemon.at_rest, 10)
        assert len(logged(daemon, "server.lost")) == len(logged(daemon, "server.found")) == 1
        assert said_once_each(daemon, "server.unreachable")


def test_a_short_stall_is_no_more_than_a_wait(postgres: ExternalServer) -> None:
    with far_daemon(postgres, "short") as (daemon, proxy):
        enough, errors = threading.Event(), list[Exception]()
        served = list[int]()

        def come_and_go() -> None:
            with daemon.client() as client:
                while not enough.is_set():
                    try:
                        client.lease("blog", timeout=10).release()
                        served.append(1)
                    except Exception as error:  # noqa: BLE001 - the test looks at it
                        errors.append(error)

        threads = [threading.Thread(target=come_and_go) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: len(served) > MANY)
            proxy.stall()
            time.sleep(1)  # sleeps: so long is the stall
            proxy.flow()
            before = len(served)
            eventually(lambda: len(served) > before + MANY)
        finally:
            enough.set()
            for thread in threads:
                thread.join(30)
        assert errors == []
        assert_recovers(daemon)
        assert logged(daemon, "server.lost") == []


def test_a_long_stall_is_noticed_while_clients_are_connected(postgres: ExternalServer) -> None:
    http = free_port()
    with far_daemon(postgres, "stall", http) as (daemon, proxy), daemon.client() as client:
        held = [client.lease("blog", timeout=20) for _ in range(2)]
        eventually(lambda: is_whole(daemon))
        proxy.stall()
        held.append(client.lease("blog", timeout=1))  # at once: without a query
        started = time.monotonic()
        assert held.pop().release(report=True) is None
        assert time.monotonic() - started < 5
        eventually(lambda: bool(problem(daemon)), 20, "the stall is noticed")
        waiter = Waiter(daemon)
        eventually(lambda: daemon.pool()["waiting"] == 1)
        assert daemon.pool()["limited_by"] == "server"
        assert get(http, "/readyz")[0] == 503
        tried = proxy.opened
        eventually(lambda: proxy.opened > tried, what="a connection is tried")
        proxy.flow()
        assert_recovers(daemon)
        assert waiter.join() == [{"count": 40}]
        assert len(client.call("leases")) == 2
        for lease in held:
            lease.release()
        eventually(daemon.at_rest, 10)
        ended = {entry["of"] for entry in logged(daemon, "trouble.ended")}
        assert "clone.recycle_failed" in ended  # or its next failure would not be told
        assert len(logged(daemon, "server.lost")) == len(logged(daemon, "server.found")) == 1
        assert said_once_each(daemon, "server.unreachable")
        for event in ("clone.create_failed", "clone.drop_failed", "clone.recycle_failed"):
            assert len(logged(daemon, event)) <= 2


def test_connections_that_the_line_forgot_are_given_up_with_the_lock(
    postgres: ExternalServer,
) -> None:
    with far_daemon(postgres, "forgot") as (daemon, proxy), daemon.client() as client:
        lease = client.lease("blog", timeout=20)
        eventually(lambda: is_whole(daemon))
        proxy.forget()
        eventually(lambda: bool(logged(daemon, "server.lost")), 20, "the pulse is missed")
        assert_recovers(daemon)
        eventually(lambda: is_whole(daemon), 5, "what was leased is refilled")
        lease.release()
        eventually(daemon.at_rest, 5, "what was released is dropped")
        assert len(logged(daemon, "server.lost")) == len(logged(daemon, "server.found")) == 1
