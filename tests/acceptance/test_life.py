"""Starts, stops, and what the next daemon finds, with real processes and signals."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from clonepool.client import lease
from clonepool.errors import (
    ConnectionLostError,
    DaemonNotFoundError,
    ShuttingDownError,
)
from support.daemons import CONFIG, Daemon, clean_up, eventually, running_daemon
from support.queries import databases_of, value

FORGET_COMMENTS = (
    "WITH gone AS (DELETE FROM blog.tb_comment RETURNING id) SELECT count(*) FROM gone"
)


def test_sigterm_ends_the_daemon_cleanly(daemon: Daemon) -> None:
    client = daemon.client()
    held = client.lease("blog", timeout=30)
    assert daemon.stop(signal.SIGTERM) == 0
    with pytest.raises((ConnectionLostError, ShuttingDownError)):
        client.lease("blog")
    client.close()
    del held
    assert not daemon.socket.exists()
    with pytest.raises(DaemonNotFoundError):
        daemon.client()
    assert daemon.events("server.stopped")


@pytest.mark.alone  # it measures how long a start takes
def test_a_second_start_finds_cluster_and_template_and_is_ready_within_a_second() -> None:
    with running_daemon(prepared=False) as daemon:
        eventually(daemon.at_rest)
        assert daemon.stop() == 0
        began = time.monotonic()
        daemon.start()
        with daemon.client() as client:
            client.lease("blog", timeout=30).release()
        took = time.monotonic() - began
        daemon.stop()
        assert len(daemon.events("cluster.created")) == 1
        assert len(daemon.events("template.reused")) == 1
        started = json.loads(daemon.events("daemon.started")[-1])
    assert started["duration_seconds"] < 1.0
    assert took < 3.0  # the process, its imports and the first clone besides


def test_after_sigkill_the_next_start_adopts_the_server_and_leaves_no_orphan(
    daemon: Daemon,
) -> None:
    client = daemon.client()
    held = client.lease("blog", timeout=30)
    value(held.url, FORGET_COMMENTS)
    before = databases_of(daemon)
    assert held.database in before
    daemon.stop(signal.SIGKILL)
    client.close()
    daemon.start()
    eventually(daemon.at_rest)
    assert daemon.events("server.adopted")
    assert daemon.events("template.reused")
    after = databases_of(daemon)
    assert not after & before, "a clone of unknown state was kept"
    assert 3 <= len(after) <= 4
    with lease("blog", socket_path=str(daemon.socket)) as fresh:
        assert value(fresh.url, "SELECT count(*) FROM blog.tb_comment") == 180


def test_a_changed_file_makes_another_template_at_the_next_start(place: Path) -> None:
    file = place / "a.sql"
    file.write_text("CREATE TABLE t AS SELECT 1 AS a;")
    config = CONFIG[: CONFIG.index("[templates")] + (
        f'[templates.blog]\nsql = ["{file}"]\nmin_ready = 1\nmax_clones = 2\nkeep_generations = 0\n'
    )
    with running_daemon(config) as daemon:
        with lease("blog", socket_path=str(daemon.socket)) as first:
            assert value(first.url, "SELECT max(a) FROM t") == 1
        assert daemon.stop() == 0
        file.write_text("CREATE TABLE t AS SELECT 2 AS a;")
        daemon.start()
        with lease("blog", socket_path=str(daemon.socket)) as second:
            assert value(second.url, "SELECT max(a) FROM t") == 2
        eventually(lambda: bool(daemon.events("template.stale_dropped")))


def test_two_daemons_do_not_share_a_socket_or_a_state(shared_daemon: Daemon, place: Path) -> None:
    second = Daemon(place)
    second.socket = shared_daemon.socket
    assert second.spawn().wait(30) == 3
    assert f"another daemon listens on {shared_daemon.socket}" in second.log.read_text()
    third = Daemon(place)
    third.state = shared_daemon.state
    assert third.spawn().wait(30) == 3
    assert "another daemon uses the state directory" in third.log.read_text()
    with shared_daemon.client() as client:
        assert client.call("ping") == {}


def test_a_dead_socket_is_replaced(place: Path) -> None:
    daemon = Daemon(place)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(daemon.socket))
    try:
        daemon.start()
        assert daemon.socket.stat().st_mode & 0o777 == 0o660
    finally:
        clean_up(daemon)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[templates.blog]\nsql = ['*.sql']\nmin_redy = 1\n",
            "templates.blog.min_redy: unknown key",
        ),
        ("server = 5\n", "server: found 5, allowed: str"),
        (
            "[access]\nallow_users = ['nobody-here']\n[templates.b]\nsql = ['x']\n",
            "access.allow_users: ",
        ),
    ],
)
def test_a_bad_configuration_starts_nothing_and_exits_with_2(
    place: Path, text: str, message: str
) -> None:
    daemon = Daemon(place, text)
    assert daemon.spawn().wait(30) == 2
    (line,) = daemon.log.read_text().splitlines()
    assert message in line
    assert not daemon.state.exists()
    assert not daemon.socket.exists()


@pytest.mark.parametrize("stage", ["", "cluster.created", "server.started", "daemon.started"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_of_the_start_leaves_no_process(
    place: Path, stage: str, number: signal.Signals
) -> None:
    daemon = Daemon(place)
    daemon.program = (sys.executable, "-m", "clonepool")
    process = daemon.spawn()
    try:
        eventually(lambda: daemon.state.exists() and (not stage or bool(daemon.events(stage))))
        process.send_signal(number)
        assert process.wait(30) == 0
        assert not any(str(place) in line or _belongs_to(daemon, line) for line in command_lines())
        assert not daemon.socket.exists()
    finally:
        clean_up(daemon)


def _belongs_to(daemon: Daemon, line: str) -> bool:
    marker = daemon.state / "cluster.json"
    return marker.exists() and json.loads(marker.read_text())["root"] in line


def command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_a_file_in_the_sockets_place_is_left_alone(place: Path) -> None:
    daemon = Daemon(place)
    daemon.socket.write_text("precious")
    assert daemon.spawn().wait(30) == 2
    (line,) = daemon.log.read_text().splitlines()
    assert "cannot be made: Address already in use" in line
    assert daemon.socket.read_text() == "precious"


def test_a_socket_path_too_long_is_told_in_one_line(place: Path) -> None:
    daemon = Daemon(place)
    daemon.socket = place / ("x" * 120)
    assert daemon.spawn().wait(30) == 2
    (line,) = daemon.log.read_text().splitlines()
    assert "too long" in line
    assert "--socket" in line


def test_a_client_that_does_not_read_does_not_delay_the_stop(daemon: Daemon) -> None:
    eventually(daemon.at_rest)  # so that the lease is there when the stop comes
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(daemon.socket))
        deaf.settimeout(0.5)
        deaf.sendall(b'{"id":1,"method":"acquire","params":{"template":"blog"}}\n')
        with contextlib.suppress(TimeoutError):
            for _ in range(500):
                deaf.sendall(b'{"id":1,"method":"status"}\n' * 100)
        began = time.monotonic()
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: bool(daemon.events("daemon.draining")))
        assert daemon.stop() == 0
        assert time.monotonic() - began < 6
    assert not daemon.events("daemon.left_clones")


def test_a_second_signal_does_not_break_the_stop_off(daemon: Daemon) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    eventually(lambda: bool(daemon.events("daemon.stopping")))
    assert daemon.stop() == 0
    assert daemon.events("server.stopped")
