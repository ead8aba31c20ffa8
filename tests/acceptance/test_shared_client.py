"""One client used by many threads and interrupted, and requests that are cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.errors import NotYourLeaseError
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.queries import value
from support.raw_connection import RawConnection
from support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.client import Client, Lease

FEW = CONFIG.replace("min_ready = 3\nmax_clones = 12", "min_ready = 2\nmax_clones = 3")
FEW += "[client_templates]\nallow = true\n"


@pytest.fixture(scope="module")
def few() -> Iterator[Daemon]:
    """Return a daemon with three clones."""
    with running_daemon(FEW) as running:
        yield running


@pytest.fixture
def lines(few: Daemon) -> Iterator[RawConnection]:
    connected = RawConnection(few.socket)
    yield connected
    connected.close()


def take_all(client: Client) -> list[Lease]:
    return [client.lease("blog", timeout=30) for _ in range(3)]


def wait_for(daemon: Daemon, waiting: int) -> None:
    eventually(lambda: daemon.pool()["waiting"] == waiting, what=f"{waiting} wait")


def code_of(reply: dict[str, Any]) -> tuple[Any, str]:
    return reply["id"], reply["error"]["data"]["code"]


def test_a_thread_that_releases_serves_a_thread_that_waits_over_the_same_client(
    few: Daemon,
) -> None:
    with few.client() as client:
        held, got = take_all(client), []
        thread = threading.Thread(target=lambda: got.append(client.lease("blog", timeout=60)))
        thread.start()
        wait_for(few, 1)
        assert client.call("ping") == {}
        held.pop().release()
        thread.join(60)
        assert value(got[0].url, "SELECT count(*) FROM blog.tb_user") == 40
        for lease in (*held, *got):
            lease.release()
    eventually(few.at_rest)


class Interrupted(BaseException):
    """A test's timeout."""


def test_the_clone_that_an_interrupted_lease_waited_for_goes_to_the_next_in_line(
    few: Daemon,
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    with few.client() as client, few.client() as other:
        held, got = take_all(other), []

        def follow() -> None:
            with few.client() as follower:
                wait_for(few, 1)
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                with follower.lease("blog", timeout=60) as lease:
                    got.append(lease.database)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            with pytest.raises(Interrupted):
                client.lease("blog", timeout=60)
        finally:
            signal.signal(signal.SIGUSR1, before)
        wait_for(few, 1)
        held.pop().release()
        thread.join(60)
        assert len(got) == 1
        assert client.call("ping") == {}
        for lease in held:
            lease.release()
    eventually(few.at_rest)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_interrupts_threads_nothing_is_lost_and_each_has_its_own(
    few: Daemon, seed: int
) -> None:
    eventually(few.at_rest)
    command = [
        sys.executable,
        str(ROOT / "tests" / "support" / "interrupted_threads.py"),
        str(few.socket),
    ]
    done = subprocess.run(
        [*command, "3", str(seed)], capture_output=True, text=True, timeout=110, check=True
    )
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    assert told["left"] == []
    assert told["leases"] > 10
    assert told["interrupts"] > 10
    eventually(few.at_rest)


# The method -------------------------------------------------------------------------------


def test_a_cancelled_acquire_is_answered_first_and_costs_no_clone(
    few: Daemon, lines: RawConnection
) -> None:
    with few.client() as client:
        held = take_all(client)
        lines.send(1, "acquire", template="blog", timeout=60)
        lines.send("mine", "acquire", template="blog", timeout=60, ttl=600)
        lines.send(2, "acquire", template="blog", timeout=60)
        wait_for(few, 3)
        lines.send(3, "cancel", request=1)
        lines.send(4, "cancel", request="mine")
        lines.send(5, "cancel", request=1)
        assert code_of(lines.receive()) == (1, "cancelled")
        assert lines.receive() == {"jsonrpc": "2.0", "id": 3, "result": {"cancelled": True}}
        assert code_of(lines.receive()) == ("mine", "cancelled")
        assert lines.receive()["result"] == {"cancelled": True}
        assert lines.receive()["result"] == {"cancelled": False}
        wait_for(few, 1)
        held.pop().release()
        served = lines.receive()
        assert served["id"] == 2
        lines.send(6, "cancel", request=2)
        assert lines.receive()["result"] == {"cancelled": False}
        lines.send(7, "release", lease=served["result"]["lease"])
        assert lines.receive()["id"] == 7
        for lease in held:
            lease.release()
    eventually(few.at_rest)


def test_a_request_can_be_cancelled_by_its_own_connection_alone(
    few: Daemon, lines: RawConnection
) -> None:
    with few.client() as client:
        held = take_all(client)
        lines.send(1, "acquire", template="blog", timeout=60)
        wait_for(few, 1)
        assert client.call("cancel", request=1) == {"cancelled": False}
        wait_for(few, 1)
        held.pop().release()
        assert "result" in lines.receive()
        for lease in held:
            lease.release()


def test_a_lease_whose_reset_is_cancelled_is_over(few: Daemon, lines: RawConnection) -> None:
    eventually(few.at_rest)
    with few.client() as client:
        lease = client.lease("blog", timeout=30)
        lines.send(1, "reset", lease=lease.token, timeout=60)
        lines.send(2, "cancel", request=1)
        assert code_of(lines.receive()) == (1, "cancelled")
        assert lines.receive()["result"] == {"cancelled": True}
        with pytest.raises(NotYourLeaseError):
            lease.release()
    eventually(few.at_rest)


def test_an_acquire_whose_lease_is_being_recorded_can_be_cancelled(
    few: Daemon, lines: RawConnection
) -> None:
    eventually(few.at_rest)
    lines.send(1, "acquire", template="blog", ttl=600)
    lines.send(2, "cancel", request=1)
    assert code_of(lines.receive()) == (1, "cancelled")
    assert lines.receive()["result"] == {"cancelled": True}
    eventually(few.at_rest)
    lines.send(3, "leases")
    assert lines.receive()["result"] == []


def test_a_cancelled_drain_stops_waiting_and_stays_in_force(
    few: Daemon, lines: RawConnection
) -> None:
    with few.client() as client, client.lease("blog", timeout=30):
        lines.send(1, "drain", timeout=60)
        lines.send(2, "cancel", request=1)
        assert code_of(lines.receive()) == (1, "cancelled")
        assert lines.receive()["result"] == {"cancelled": True}
        lines.send(3, "acquire", template="blog")
        assert code_of(lines.receive()) == (3, "draining")
        lines.send(4, "drain", off=True)
        assert lines.receive()["result"] == {"leases": 1}
        lines.send(5, "ping")
        assert lines.receive() == {"jsonrpc": "2.0", "id": 5, "result": {}}


def test_a_cancelled_define_leaves_the_template_to_the_next_client(lines: RawConnection) -> None:
    lines.send(1, "define", hash="content")
    lines.send(2, "define", hash="content", timeout=60)
    lines.send(3, "define", hash="content", timeout=60)
    lines.send(4, "cancel", request=1)  # its database is being made
    lines.send(5, "cancel", request=2)  # it waits
    answers = [lines.receive() for _ in range(4)]
    assert [code_of(each) for each in answers if "error" in each] == [
        (1, "cancelled"),
        (2, "cancelled"),
    ]
    third = lines.receive()
    assert (third["id"], third["result"]["filled"]) == (3, False)
    lines.send(6, "finalize", definition=third["result"]["definition"], abandon=True)
    assert lines.receive()["id"] == 6
    lines.send(7, "ping")
    assert lines.receive()["id"] == 7


def test_a_request_that_cannot_be_cancelled_is_answered(lines: RawConnection) -> None:
    lines.send(1, "build", template="blog", anew=True)
    lines.send(2, "cancel", request=1)
    assert lines.receive() == {"jsonrpc": "2.0", "id": 2, "result": {"cancelled": False}}
    assert lines.receive()["id"] == 1
