"""How long leases last, across connections and restarts, and with a TTL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.client import Client
from clonepool.errors import (
    DrainingError,
    NotYourLeaseError,
    PoolFullError,
    ShuttingDownError,
)
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.kill_points import NOWHERE, spawn
from support.queries import clones_of, value

if TYPE_CHECKING:
    from collections.abc import Iterator

USERS = 40
SHORT = (
    CONFIG
    + "max_lease = 3.0\nkeep_for = 2.0\n[templates.blog2]\n"
    + "".join(line + "\n" for line in CONFIG.splitlines() if line.startswith("sql"))
)


@pytest.fixture(scope="module")
def short() -> Iterator[Daemon]:
    """Return a daemon whose leases may not last long."""
    with running_daemon(SHORT) as running:
        yield running


def leases(daemon: Daemon) -> list[dict[str, Any]]:
    with daemon.client() as client:
        found: list[dict[str, Any]] = client.call("leases")
    return found


def test_a_lease_with_a_ttl_outlives_its_connection_and_ends_by_its_token(daemon: Daemon) -> None:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=30, ttl=60, label="me")
        assert lease.expires_in_seconds == pytest.approx(60, abs=1)
    (held,) = leases(daemon)
    assert (held["database"], held["label"], held["ttl"]) == (lease.database, "me", 60)
    with daemon.client() as other:
        assert other.call("release", lease=lease.token, report=True)["leaked"] == []
        with pytest.raises(NotYourLeaseError):
            other.call("release", lease=lease.token)
    eventually(daemon.at_rest)


def test_a_ttl_that_is_over_ends_the_lease_and_its_sessions(daemon: Daemon) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    with Client(str(daemon.socket), on_notification=lambda *told: heard.append(told)) as client:
        lease = client.lease("blog", timeout=30, ttl=1.0)
        assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == USERS
        eventually(lambda: client.call("ping") == {} and len(heard) == 2, 3)
        with pytest.raises(NotYourLeaseError):
            lease.release()
    assert [name for name, _ in heard] == ["lease.expiring", "lease.expired"]
    assert heard[0][1]["lease"] == lease.token
    assert heard[0][1]["seconds_left"] == pytest.approx(0.2, abs=0.1)
    eventually(daemon.at_rest)


def test_a_renewed_lease_lasts_and_the_ceiling_holds(short: Daemon) -> None:
    with short.client() as client:
        lease = client.lease("blog", timeout=30, ttl=1.0)
        assert lease.renew() == pytest.approx(1.0, abs=0.2)
        left = lease.renew(60)
        assert left is not None
        assert left < 3.0
        assert leases(short)
        eventually(lambda: not leases(short), 5)


def test_a_bound_lease_ends_at_the_ceiling_too(short: Daemon) -> None:
    with short.client() as client:
        lease = client.lease("blog", timeout=30)
        assert lease.expires_in_seconds == pytest.approx(3.0, abs=0.2)
        eventually(lambda: not leases(short), 5)
        with pytest.raises(NotYourLeaseError):
            lease.release()
        forever = client.lease("blog2", timeout=30)
        assert forever.expires_in_seconds is None
        forever.release()


def test_a_kept_clone_can_be_looked_into_until_its_time_is_over(short: Daemon) -> None:
    with short.client() as client:
        lease = client.lease("blog", timeout=30)
        kept = client.call("release", lease=lease.token, keep=True)
    assert (kept["kept"], kept["kept_seconds"]) == (lease.database, 2.0)
    assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == USERS
    assert short.pool()["kept"] == 1
    eventually(lambda: short.pool()["kept"] == 0, 5)
    eventually(lambda: lease.database not in clones_of(short), 5)


def test_reset_gives_a_clean_clone_under_the_same_token(daemon: Daemon) -> None:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=30)
        token = lease.token
        value(lease.url, "WITH gone AS (DELETE FROM blog.tb_post_tag RETURNING 1) SELECT 1")
        was = lease.url
        lease.reset(timeout=30)
        assert (lease.token, lease.url) == (token, was)
        assert value(lease.url, "SELECT count(*) FROM blog.tb_post_tag") != 0
        assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == USERS
        assert len(leases(daemon)) == 1
        lease.release()


def test_a_lease_with_a_ttl_is_found_again_after_a_stop_and_after_a_kill(daemon: Daemon) -> None:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=30, ttl=120, label="long")
        bound = client.lease("blog", timeout=30)
        bound.release()
        value(lease.url, "SELECT setval('blog.tb_user_id_seq', 99)")
    for number in (signal.SIGTERM, signal.SIGKILL):
        daemon.stop(number)
        daemon.start()
        (held,) = leases(daemon)
        assert (held["database"], held["label"]) == (lease.database, "long")
        assert held["expires_in_seconds"] < 120
        assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == USERS
    with daemon.client() as client:
        assert client.call("renew", lease=lease.token)["expires_in_seconds"] > 119
        client.call("release", lease=lease.token, report=True)  # its end is written down by then
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert not leases(daemon)
    eventually(daemon.at_rest)
    assert lease.database not in clones_of(daemon)


def test_a_ttl_that_ended_while_no_daemon_ran_is_over(daemon: Daemon) -> None:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=30, ttl=0.5)
        ends = time.monotonic() + 0.5
    daemon.stop(signal.SIGKILL)
    eventually(lambda: time.monotonic() > ends)
    daemon.start()
    assert not leases(daemon)
    eventually(daemon.at_rest)
    assert lease.database not in clones_of(daemon)


def test_a_kept_clone_is_still_kept_after_a_kill(daemon: Daemon) -> None:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=30)
        lease.release(keep=True)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert daemon.pool()["kept"] == 1
    assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == USERS


def test_a_clean_stop_leaves_ready_clones_to_the_next_start(daemon: Daemon) -> None:
    eventually(daemon.at_rest)
    before = clones_of(daemon)
    assert daemon.stop() == 0
    daemon.start()
    eventually(daemon.at_rest)
    assert len(daemon.events("clone.adopted")) == len(before) == 3
    assert clones_of(daemon) == before


def test_a_stop_waits_for_leases_and_a_second_signal_does_not(daemon: Daemon) -> None:
    with daemon.client() as client, daemon.client() as other:
        lease = client.lease("blog", timeout=30)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: bool(daemon.events("daemon.draining")))
        with pytest.raises(ShuttingDownError):
            other.lease("blog")
        assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == USERS
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 8
    assert daemon.events("daemon.ended_leases")


def test_a_stop_is_over_when_the_last_lease_is(daemon: Daemon) -> None:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=30)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: bool(daemon.events("daemon.draining")))
        lease.release()  # is answered before the connection is closed
    assert daemon.process.wait(8) == 0
    assert not daemon.events("daemon.ended_leases")


@pytest.mark.parametrize("keep", [False, True])
def test_a_release_is_answered_before_the_stop_hangs_up(daemon: Daemon, keep: bool) -> None:
    """The server's word on the sessions left comes late."""
    assert daemon.stop() == 0
    process = daemon.process = spawn(daemon, NOWHERE, "before:sessions:1=0.3")
    eventually(lambda: daemon.listens(process) and bool(daemon.pool()["ready"]))
    with daemon.client() as client:
        lease = client.lease("blog", timeout=30)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: bool(daemon.events("daemon.draining")))
        assert lease.release(keep=keep, report=True) == []
    assert process.wait(10) == 0


def test_an_upgrade_loses_no_request_of_a_client_that_reconnects(daemon: Daemon) -> None:
    stop, served, failed = threading.Event(), [0], []

    def work() -> None:
        with Client(str(daemon.socket), reconnect=30) as client:
            while not stop.is_set():
                try:
                    lease = client.lease("blog", timeout=30)
                except Exception as error:  # noqa: BLE001 - the test's own question
                    failed.append(error)
                    return
                served[0] += 1
                try:
                    lease.release()
                except Exception:  # noqa: BLE001 - the lease may have ended with the daemon
                    continue

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        before = served[0]
        eventually(lambda: served[0] > before + 5)  # noqa: B023 - called at once
        assert daemon.stop() == 0
        daemon.start()
    before = served[0]
    eventually(lambda: served[0] > before + 5)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not failed


def test_drain_refuses_waits_tells_and_can_be_taken_back(daemon: Daemon) -> None:
    heard: list[dict[str, Any]] = []
    with (
        daemon.client() as holder,
        Client(
            str(daemon.socket), on_notification=lambda _, params: heard.append(params)
        ) as client,
    ):
        lease = holder.lease("blog", timeout=30)
        assert client.call("drain", template="blog", timeout=0.2, progress=True) == {"leases": 1}
        assert heard == [{"request": 1, "leases": 1}]
        with pytest.raises(DrainingError):
            holder.lease("blog")
        assert daemon.pool()["draining"]
        lease.release()
        assert client.call("drain", timeout=5) == {"leases": 0}
        assert client.call("drain", off=True) == {"leases": 0}
        holder.lease("blog", timeout=30).release()


def test_a_waiter_can_ask_for_progress(daemon: Daemon) -> None:
    heard: list[dict[str, Any]] = []
    with (
        daemon.client() as holder,
        Client(
            str(daemon.socket), on_notification=lambda _, params: heard.append(params)
        ) as client,
    ):
        held = [holder.lease("blog", timeout=30) for _ in range(12)]
        with pytest.raises(PoolFullError, match="12 of 12"):
            client.lease("blog", timeout=1.2, progress=True)
    assert len(held) == 12
    assert len(heard) == 2
    assert heard[0]["limited_by"] == "max_clones"
    assert (heard[0]["ahead"], heard[0]["phase"]) == (0, "ready")


def test_a_shell_can_hold_a_lease(daemon: Daemon) -> None:
    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clonepool", *arguments, "--socket", str(daemon.socket)],
            capture_output=True, text=True, check=False, env={**os.environ, **more}, timeout=60,
        )  # fmt: skip

    taken = json.loads(run("acquire", "-t", "blog", "--ttl", "10m", "--format", "json").stdout)
    assert 590 < taken["expires_in_seconds"] <= 600
    assert value(taken["url"], "SELECT count(*) FROM blog.tb_user") == USERS
    assert float(run("renew", taken["lease"], "--ttl", "1h").stdout) == pytest.approx(3600, abs=9)
    assert run("release", CLONEPOOL_LEASE=taken["lease"]).returncode == 0
    again = run("release", taken["lease"])
    assert again.returncode == 1
    assert "no lease has that token" in again.stderr
    exported = run("acquire", "-t", "blog", "--ttl", "30s").stdout
    shown = subprocess.run(
        ["bash", "-c", f'{exported}\necho "$CLONEPOOL_LEASE $DATABASE_URL"'],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "kept cp_main_blog_" in run("release", shown[0], "--keep").stdout
    assert run("drain").returncode == 0
    assert run("drain", "--off").returncode == 0
    assert "is not a duration" in run("acquire", "-t", "blog", "--ttl", "soon").stderr
