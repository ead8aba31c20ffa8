"""Overload: order, deadlines, refusals, and limits for every client."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.client import Client
from clonepool.errors import (
    AcquireTimeoutError,
    ClientLimitError,
    ClonepoolError,
    ConnectionLostError,
    PoolFullError,
    QueueFullError,
)
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.misbehaving_clients import misbehaving
from support.raw_connection import RawConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.client import Lease

SMALL = CONFIG.replace("max_clones = 12", "max_clones = 4\nmax_waiting = 60")
SMALL += "\n[access]\nunread_timeout = 2.0\n"
BOUNDS = "\n[access]\nmax_clients = 8\nmax_leases_per_client = 2\nmax_pending_per_client = 3\n"
LATE_SECONDS = 0.05
OVERLOAD_SECONDS = float(os.environ.get("CLONEPOOL_OVERLOAD_SECONDS", "6"))


@pytest.fixture(scope="module")
def small() -> Iterator[Daemon]:
    with running_daemon(SMALL) as running:
        yield running


@pytest.fixture(scope="module")
def bounded() -> Iterator[Daemon]:
    with running_daemon(CONFIG + BOUNDS) as running:
        yield running


def test_ten_times_more_clients_than_clones_are_served_or_refused_in_time(small: Daemon) -> None:
    """Forty clients over four clones, each wanting more than it gets."""
    lock, overshoots, outcomes = threading.Lock(), [], {"granted": 0, "refused": 0}
    until = time.monotonic() + OVERLOAD_SECONDS

    def work(number: int) -> None:
        with Client(str(small.socket), name=f"client {number}") as client:
            while time.monotonic() < until:
                began = time.monotonic()
                try:
                    lease = client.lease("blog", timeout=0.5)
                except (PoolFullError, AcquireTimeoutError):
                    late = time.monotonic() - began - 0.5
                    with lock:
                        overshoots.append(late)
                        outcomes["refused"] += 1
                    continue
                with lock:
                    outcomes["granted"] += 1
                time.sleep(0.15)  # sleeps: holds the lease
                lease.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes["granted"] > 40, outcomes
    assert outcomes["refused"] > 40, outcomes
    print(outcomes, f"latest {max(overshoots) * 1000:.1f} ms past its deadline")  # noqa: T201 - with -s
    # The client's own threads take turns on the machine too: hence not the very last of them.
    assert sorted(overshoots)[int(len(overshoots) * 0.9)] < LATE_SECONDS
    eventually(small.at_rest)


def test_a_line_that_is_full_is_refused_at_once(small: Daemon) -> None:
    with small.client() as holder:
        held = [holder.lease("blog", timeout=30) for _ in range(4)]
        lines = RawConnection(small.socket)
        for number in range(60):
            lines.send(number, "acquire", template="blog", timeout=20)
        eventually(lambda: small.pool()["waiting"] == 60)
        with (
            small.client() as late,
            pytest.raises(QueueFullError, match="60 acquires of blog are already waiting"),
        ):
            late.lease("blog", timeout=20)
        lines.close()
        eventually(lambda: small.pool()["waiting"] == 0)
        for lease in held:
            lease.release()
    eventually(small.at_rest)


def test_a_waiter_that_vanished_costs_no_clone_and_no_order(small: Daemon) -> None:
    with small.client() as holder:
        held = [holder.lease("blog", timeout=30) for _ in range(4)]
        waiting = [RawConnection(small.socket) for _ in range(3)]
        for number, lines in enumerate(waiting):
            lines.send(number, "acquire", template="blog", timeout=20, label=f"waiter {number}")
            eventually(lambda: small.pool()["waiting"] == number + 1)  # noqa: B023 - called at once
        waiting[0].close()
        eventually(lambda: small.pool()["waiting"] == 2)
        held.pop().release()
        assert waiting[1].receive()["result"]["source"] == "waited"
        assert small.pool()["waiting"] == 1
        for lease in held:
            lease.release()
        assert "result" in waiting[2].receive()
        for lines in waiting[1:]:
            lines.close()
    eventually(small.at_rest)


def test_at_the_limit_the_error_says_how_many_by_whom_and_for_how_long(small: Daemon) -> None:
    with Client(str(small.socket), name="the hoarder") as holder:
        held = [holder.lease("blog", timeout=30) for _ in range(4)]
        with small.client() as late, pytest.raises(PoolFullError) as caught:
            late.lease("blog", timeout=0.1)
        assert "4 of 4 are leased, 4 by the hoarder (the oldest for" in str(caught.value)
        assert "templates.blog.max_clones" in caught.value.remedy
        assert small.pool()["limited_by"] == "max_clones"
        for lease in held:
            lease.release()
    eventually(small.at_rest)


def test_one_connection_holds_and_waits_for_so_much_and_no_more(bounded: Daemon) -> None:
    with bounded.client() as client:
        held = [client.lease("blog", timeout=30) for _ in range(2)]
        with pytest.raises(ClientLimitError, match="holds 2 leases"):
            client.lease("blog")
        held[0].release()
        held.append(client.lease("blog", timeout=30))
    eventually(bounded.at_rest)
    with bounded.client() as client:
        client.call("drain")
        client.call("drain", off=True)


def test_pending_requests_are_bounded(place: Any) -> None:
    del place
    config = CONFIG.replace("max_clones = 12", "max_clones = 3") + BOUNDS
    with running_daemon(config) as running:
        holders = [running.client() for _ in range(2)]
        held: list[Lease] = []
        for client, count in zip(holders, (2, 1), strict=True):
            held += [client.lease("blog", timeout=30) for _ in range(count)]
        lines = RawConnection(running.socket)
        for number in range(4):
            lines.send(number, "acquire", template="blog", timeout=20)
        refused = lines.receive()
        assert (refused["id"], refused["error"]["data"]["code"]) == (3, "client_limit")
        lines.close()
        for client in holders:
            client.close()


@pytest.mark.parametrize("method", ["renew", "drain", "build", "explain", "acquire"])
def test_whatever_waits_for_its_answer_counts_as_pending(bounded: Daemon, method: str) -> None:
    with bounded.client() as holder:
        lease = holder.lease("blog", timeout=30)
        lines = RawConnection(bounded.socket)
        for number in range(3):
            lines.send(number, "drain", timeout=20)
        eventually(lambda: bool(bounded.pool()["draining"]))
        asked: dict[str, dict[str, object]] = {
            "renew": {"lease": lease.token},
            "drain": {"timeout": 20},
        }
        lines.send(3, method, **asked.get(method, {"template": "blog"}))
        refused = lines.receive()
        assert (refused["id"], refused["error"]["data"]["code"]) == (3, "client_limit")
        lines.send(4, "ping")
        assert lines.receive()["id"] == 4
        lines.close()
        holder.call("drain", off=True)
        lease.release()
    eventually(bounded.at_rest)


@pytest.mark.alone  # who gets how much of the processors is what it measures
@pytest.mark.parametrize("crowd", [20, 200])
def test_clients_that_flood_the_daemon_delay_only_themselves(small: Daemon, crowd: int) -> None:
    asked = 300
    with small.client() as client:
        with misbehaving(small.socket, {"flood": crowd}) as flood:
            for _ in range(asked):
                client.call("ping")
        # One request at a time, each written when the last was answered: a flooding client has one
        # waiting always, and gets no more for it than a few times as much.
        assert flood.answered / crowd < 5 * asked
    eventually(small.at_rest)


def test_too_many_connections_are_refused_and_room_is_found_again(bounded: Daemon) -> None:
    eventually(lambda: bool(bounded.status()))
    clients = [bounded.client() for _ in range(8)]
    eventually(lambda: all(client.call("ping") == {} for client in clients))
    with bounded.client() as one_more, pytest.raises((ClientLimitError, ConnectionLostError)):
        one_more.call("ping")
    for client in clients:
        client.close()

    def served() -> bool:
        try:
            return bounded.status() is not None
        except ClonepoolError:
            return False

    eventually(served)
    assert bounded.events("connection.refused")


def test_a_client_that_never_reads_is_cut_off_and_its_leases_end(small: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(small.socket))
        deaf.sendall(b'{"id":1,"method":"acquire","params":{"template":"blog","timeout":30}}\n')
        deaf.settimeout(0.3)
        line = json.dumps({"id": 1, "method": "status"}).encode() + b"\n"
        eventually(lambda: small.pool()["leased"] == 1)
        with contextlib.suppress(TimeoutError):
            for _ in range(100_000):
                deaf.sendall(line * 100)
        assert small.pool()["leased"] == 1
        eventually(lambda: small.pool()["leased"] == 0)
    assert small.events("connection.cut")
    eventually(small.at_rest)
