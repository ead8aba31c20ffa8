"""The number of ready clones follows announcements and demand, as clients see it."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import TYPE_CHECKING

import pytest

from clonepool.errors import BadRequestError, DrainingError, UnknownTemplateError
from support.daemons import CONFIG, Daemon, eventually, free_port, running_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = free_port()
BRISK = CONFIG.replace('listen = ""', f'listen = "127.0.0.1:{PORT}"') + (
    'shrink_after = 2.0\nrecycle = "recreate"\n'
)


@pytest.fixture(scope="module")
def forgetful() -> Iterator[Daemon]:
    """Return a daemon that soon forgets what was needed: of 3 clones, and 12 at the most."""
    with running_daemon(BRISK) as running:
        yield running


@pytest.fixture
def brisk(forgetful: Daemon) -> Daemon:
    """Return it when it has forgotten what the test before needed."""
    eventually(lambda: forgetful.at_rest() and ready_and_target(forgetful) == (3, 3), 30)
    return forgetful


def ready_and_target(daemon: Daemon) -> tuple[int, int]:
    pool = daemon.pool()
    return pool["ready"], pool["target"]


def target_in_metrics() -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith("clonepool_target_ready{"))
    return float(value)


def test_what_is_announced_is_ready_and_goes_with_its_connection(brisk: Daemon) -> None:
    with brisk.client() as client:
        told = client.reserve("blog", tests=100, parallelism=8)
        assert told["target"] == 8
        assert told["ready"] <= 8
        eventually(lambda: ready_and_target(brisk) == (8, 8))
        assert target_in_metrics() == 8
        leases = [client.lease("blog", timeout=0) for _ in range(8)]
        assert {lease.source for lease in leases} == {"ready"}
        assert brisk.pool()["target"] >= 8
    eventually(lambda: ready_and_target(brisk) == (3, 3), 30)


def test_another_takes_its_place_and_no_tests_take_it_back(brisk: Daemon) -> None:
    with brisk.client() as client:
        assert client.reserve("blog", tests=100, parallelism=5)["target"] == 5
        assert client.reserve("blog", tests=100, parallelism=100)["target"] == 12
        assert client.reserve("blog", tests=100, parallelism=4)["target"] == 4
        assert client.reserve("blog", tests=0)["target"] == 3


def test_it_ends_when_its_tests_have_had_their_clones_over_whatever_connection(
    brisk: Daemon,
) -> None:
    with brisk.client() as runner, brisk.client() as worker:
        assert runner.reserve("blog", tests=4, parallelism=12)["target"] == 4
        for _ in range(4):
            worker.lease("blog", timeout=30).release()
        eventually(lambda: brisk.pool()["target"] == 3)


def test_a_burst_is_remembered_for_a_while(brisk: Daemon) -> None:
    ask = {"method": "acquire", "params": {"template": "blog", "timeout": 30}}
    with socket.socket(socket.AF_UNIX) as crowd, crowd.makefile() as replies:
        crowd.connect(str(brisk.socket))
        crowd.sendall(b"".join(json.dumps({"id": n, **ask}).encode() + b"\n" for n in range(10)))
        sources = [json.loads(replies.readline())["result"]["source"] for _ in range(10)]
        assert sources.count("ready") == 3
        assert brisk.pool()["target"] == 12
    eventually(lambda: brisk.pool()["ready"] > 3)
    eventually(lambda: ready_and_target(brisk) == (3, 3), 30)


def test_what_cannot_be_reserved_is_refused_with_the_reason(brisk: Daemon) -> None:
    with brisk.client() as client:
        with pytest.raises(UnknownTemplateError):
            client.reserve("blgo", tests=1)
        for parameters in ({"tests": -1}, {"tests": 5, "parallelism": 0}, {"parallelism": 2}):
            with pytest.raises(BadRequestError, match="reserve: "):
                client.call("reserve", template="blog", **parameters)
        client.call("drain", template="blog")
        with pytest.raises(DrainingError):
            client.reserve("blog", tests=1)
        assert client.reserve("blog", tests=0)["target"] == 3
        client.call("drain", template="blog", off=True)


def test_it_can_be_typed_by_hand(brisk: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile() as replies:
        connection.connect(str(brisk.socket))
        asked = {"template": "blog", "tests": 9, "parallelism": 6}
        request = {"id": 1, "method": "reserve", "params": asked}
        connection.sendall(json.dumps(request).encode() + b"\n")
        reply = json.loads(replies.readline())
    assert reply["result"]["target"] == 6
    assert set(reply["result"]) == {"target", "ready"}
