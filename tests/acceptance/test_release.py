"""A release is answered at once; leaks of the lease are reported afterwards."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from clonepool import LeakWarning
from clonepool.errors import NotYourLeaseError
from clonepool.paths import SOCKET_VARIABLE
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.kill_points import NOWHERE, spawn
from support.queries import connected, own_url, run, value
from support.raw_connection import RawConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE = CONFIG.replace("min_ready = 3", "min_ready = 1").replace("max_clones = 12", "max_clones = 1")
UNKNOWN = {"leaked": None, "kept": None, "kept_seconds": None}
MARKED = "SELECT 'left by me'"


@pytest.fixture
def lines(shared_daemon: Daemon) -> Iterator[RawConnection]:
    eventually(shared_daemon.at_rest)
    with contextlib.closing(RawConnection(shared_daemon.socket)) as opened:
        yield opened
    eventually(shared_daemon.at_rest)


@pytest.fixture
def slow(daemon: Daemon) -> Daemon:
    """Return a daemon that is slow to find out what the first lease left."""
    assert daemon.stop() == 0
    return start(daemon, late="before:sessions:1=0.5")


def start(daemon: Daemon, *, late: str, killed_at: str = NOWHERE) -> Daemon:
    process = daemon.process = spawn(daemon, killed_at, late)
    eventually(lambda: daemon.listens(process) and bool(daemon.pool()["ready"]))
    return daemon


def acquire(lines: RawConnection, **options: object) -> dict[str, Any]:
    lines.send("acquire", "acquire", template="blog", timeout=30, **options)
    granted: dict[str, Any] = lines.receive()["result"]
    return granted


def assert_told(news: dict[str, Any], database: str) -> None:
    """See that a notification tells of the session that said it was left."""
    assert "id" not in news
    assert news["method"] == "lease.leaked"
    assert news["params"]["template"] == "blog"
    assert news["params"]["database"] == database
    (session,) = news["params"]["leaked"]
    assert (session["application_name"], session["query"]) == ("test", MARKED)


def assert_silent(lines: RawConnection) -> None:
    """See that the next thing said is an answer."""
    lines.send("silent", "ping")
    assert lines.receive()["id"] == "silent"


# At once ----------------------------------------------------------------------------------


def test_the_answer_claims_nothing_and_what_was_left_is_told_when_it_is_known(
    lines: RawConnection,
) -> None:
    lease = acquire(lines)
    with connected(lease["url"]) as ask:
        ask(MARKED)
        lines.send(1, "release", lease=lease["lease"])
        assert lines.receive() == {"jsonrpc": "2.0", "id": 1, "result": UNKNOWN}
        assert_told(lines.receive(), lease["database"])


def test_a_change_of_the_server_is_told_too(lines: RawConnection) -> None:
    lease = acquire(lines)
    run(lease["url"], "CREATE ROLE left_by_me")
    lines.send(1, "release", lease=lease["lease"])
    assert lines.receive()["id"] == 1
    news = lines.receive()
    assert news["method"] == "lease.leaked"
    (change,) = news["params"]["leaked"]
    assert (change["pid"], change["what"]) == (0, "role left_by_me was made; undone")


def test_nothing_is_told_when_nothing_was_left(shared_daemon: Daemon, lines: RawConnection) -> None:
    for ttl in (None, 60):
        lease = acquire(lines, ttl=ttl)
        assert value(lease["url"], "SELECT 1") == 1
        lines.send(1, "release", lease=lease["lease"])
        assert lines.receive()["result"] == UNKNOWN
        eventually(shared_daemon.at_rest)
        assert_silent(lines)


def test_a_release_is_answered_before_the_server_has_said_anything(slow: Daemon) -> None:
    with contextlib.closing(RawConnection(slow.socket)) as lines:
        lease = acquire(lines)
        with connected(lease["url"]) as ask:
            ask(MARKED)
            lines.send(1, "release", lease=lease["lease"])
            lines.send(2, "ping")
            assert [lines.receive()["id"] for _ in range(2)] == [1, 2]
            assert not slow.events("clone.sessions_leaked")
            assert_told(lines.receive(), lease["database"])
            assert len(slow.events("clone.sessions_leaked")) == 1


def test_the_end_of_a_lease_with_a_ttl_is_written_down_after_the_answer(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    start(daemon, late="before:recycle.write:1=0.5")
    with contextlib.closing(RawConnection(daemon.socket)) as lines:
        lease = acquire(lines, ttl=60)
        comment = (
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database"
            f" WHERE datname = '{lease['database']}'"
        )
        lines.send(1, "release", lease=lease["lease"])
        assert lines.receive()["result"] == UNKNOWN
        assert json.loads(str(value(own_url(daemon), comment)))["state"] == "leased"
        lines.send(2, "renew", lease=lease["lease"])
        assert lines.receive()["error"]["data"]["code"] == "not_your_lease"
        eventually(lambda: '"leased"' not in str(value(own_url(daemon), comment)))


# With a report ----------------------------------------------------------------------------


def test_a_report_is_waited_for_and_not_told_twice(slow: Daemon) -> None:
    with contextlib.closing(RawConnection(slow.socket)) as lines:
        lease = acquire(lines)
        with connected(lease["url"]) as ask:
            ask(MARKED)
            lines.send(1, "release", lease=lease["lease"], report=True)
            lines.send(2, "ping")
            assert lines.receive()["id"] == 2
            answer = lines.receive()
        assert answer["id"] == 1
        (session,) = answer["result"]["leaked"]
        assert (session["application_name"], session["query"]) == ("test", MARKED)
        eventually(slow.at_rest)
        assert_silent(lines)


def test_a_report_of_nothing_says_so(lines: RawConnection) -> None:
    lease = acquire(lines)
    lines.send(1, "release", lease=lease["lease"], report=True)
    assert lines.receive()["result"] == {**UNKNOWN, "leaked": []}


def test_clonepool_release_prints_what_was_left(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        lease = client.lease("blog", timeout=30, ttl=60)
    with connected(lease.url) as ask:
        ask(MARKED)
        done = subprocess.run(
            [sys.executable, "-m", "clonepool", "release", lease.token],
            env={SOCKET_VARIABLE: str(shared_daemon.socket)},
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    assert MARKED in done.stderr
    assert "still open" in done.stderr


# Who is told ------------------------------------------------------------------------------


def test_each_of_two_clients_hears_of_its_own_leases_alone(
    shared_daemon: Daemon, lines: RawConnection
) -> None:
    with contextlib.closing(RawConnection(shared_daemon.socket)) as other:
        mine, theirs = acquire(lines), acquire(other)
        with connected(mine["url"]) as ask, connected(theirs["url"]) as ask_other:
            ask(MARKED)
            ask_other(MARKED)
            lines.send(1, "release", lease=mine["lease"])
            other.send(1, "release", lease=theirs["lease"])
            for client, lease in ((lines, mine), (other, theirs)):
                assert client.receive()["id"] == 1
                assert_told(client.receive(), lease["database"])
        eventually(shared_daemon.at_rest)
        assert_silent(lines)
        assert_silent(other)


def test_leaks_are_reported_to_the_releasing_client_not_the_holder(
    shared_daemon: Daemon, lines: RawConnection
) -> None:
    with contextlib.closing(RawConnection(shared_daemon.socket)) as holder:
        lease = acquire(holder)
        with connected(lease["url"]) as ask:
            ask(MARKED)
            lines.send(1, "release", lease=lease["lease"])
            assert lines.receive()["result"] == UNKNOWN
            assert_told(lines.receive(), lease["database"])
        eventually(shared_daemon.at_rest)
        assert_silent(holder)


def test_a_client_may_disconnect_before_its_leaks_are_known(slow: Daemon) -> None:
    with contextlib.closing(RawConnection(slow.socket)) as other:
        with contextlib.closing(RawConnection(slow.socket)) as lines:
            lease = acquire(lines)
            with connected(lease["url"]) as ask:
                ask(MARKED)
                lines.send(1, "release", lease=lease["lease"])
                assert lines.receive()["result"] == UNKNOWN
                lines.close()
                eventually(lambda: bool(slow.events("clone.sessions_leaked")))
        eventually(slow.at_rest)
        assert_silent(other)
    for event in ("request.failed", "worker.failed", "work.failed", "notification.failed"):
        assert not slow.events(event)


def test_the_holder_of_an_expired_lease_is_told_what_it_left(lines: RawConnection) -> None:
    lease = acquire(lines, ttl=0.5)
    with connected(lease["url"]) as ask:
        ask(MARKED)
        news = [lines.receive() for _ in range(3)]
    assert [each["method"] for each in news[:2]] == ["lease.expiring", "lease.expired"]
    assert_told(news[2], lease["database"])


def test_a_reset_leaves_nothing_to_be_told(shared_daemon: Daemon, lines: RawConnection) -> None:
    lease = acquire(lines)
    with connected(lease["url"]) as ask:
        ask(MARKED)
        lines.send(1, "reset", lease=lease["lease"], timeout=30)
        assert lines.receive()["id"] == 1
    lines.send(2, "release", lease=lease["lease"])
    assert lines.receive()["id"] == 2
    eventually(shared_daemon.at_rest)
    assert_silent(lines)


# The Python client ------------------------------------------------------------------------


def test_the_client_warns_of_what_was_left_and_reports_when_asked(shared_daemon: Daemon) -> None:
    eventually(shared_daemon.at_rest)
    with shared_daemon.client() as client:
        lease = client.lease("blog", timeout=30)
        with connected(lease.url) as ask:
            ask(MARKED)
            with lease:
                pass
            with pytest.warns(LeakWarning, match=f"{lease.database}.*'test'.*left by me") as told:
                eventually(lambda: client.call("ping") == {} and len(told) > 0)
        lease = client.lease("blog", timeout=30)
        with connected(lease.url) as ask:
            ask(MARKED)
            (session,) = lease.release(report=True) or []
        assert session["query"] == MARKED
    eventually(shared_daemon.at_rest)


# One for another, in one write ------------------------------------------------------------


def test_a_release_and_an_acquire_in_one_write_are_answered_in_order(
    shared_daemon: Daemon, lines: RawConnection
) -> None:
    lease = acquire(lines)
    for _ in range(20):
        lines.write(
            {"id": "back", "method": "release", "params": {"lease": lease["lease"]}},
            {"id": "next", "method": "acquire", "params": {"template": "blog", "timeout": 30}},
        )
        back, following = lines.receive(), lines.receive()
        assert (back["id"], following["id"]) == ("back", "next")
        assert back["result"] == UNKNOWN
        assert following["result"]["lease"] != lease["lease"]
        lease = following["result"]
    assert shared_daemon.pool()["leased"] == 1
    lines.send(1, "release", lease=lease["lease"])
    assert lines.receive()["id"] == 1


def test_with_room_for_one_clone_an_exchange_gets_it_back() -> None:
    with running_daemon(ONE) as daemon, daemon.client() as client:
        with client.lease("blog", timeout=30) as lease:
            for _ in range(5):
                run(lease.url, "DELETE FROM blog.tb_post_tag")
                token = lease.token
                lease.exchange(timeout=30)
                assert lease.token != token
                assert value(lease.url, "SELECT count(*) > 0 FROM blog.tb_post_tag") is True
                assert daemon.pool()["leased"] == 1
        eventually(daemon.at_rest)


def test_an_exchange_of_a_lease_that_has_ended_says_so_and_takes_none(
    shared_daemon: Daemon,
) -> None:
    with shared_daemon.client() as client:
        lease = client.lease("blog", timeout=30)
        client.call("release", lease=lease.token)
        with pytest.raises(NotYourLeaseError):
            lease.exchange(timeout=30)
        eventually(shared_daemon.at_rest)
