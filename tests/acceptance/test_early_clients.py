"""The socket listens as soon as its file exists: early clients wait and are answered."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from clonepool.client import Client
from clonepool.errors import ConfigError, ShuttingDownError
from clonepool.service.api.socket_file import SOCKET_MODE, bind_and_listen
from support import binaries
from support.daemons import CONFIG, Daemon, clean_up, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NEWEST = next(iter(binaries.available().values()))
CROWD = 150
PING = b'{"id":1,"method":"ping"}\n'


@pytest.fixture
def starting(place: Path) -> Iterator[Callable[[str], Daemon]]:
    """Return what starts a daemon whose start goes no further than initdb until `place/go` exists.

    Then initdb does what it is told to.
    """
    made: list[Daemon] = []

    def begin(then: str) -> Daemon:
        directory = place / "bin"
        directory.mkdir()
        directory.chmod(0o755)
        for program in NEWEST.iterdir():
            if program.name != "initdb":
                (directory / program.name).symlink_to(program)
        waits = f"while [ ! -e {place}/go ]; do sleep 0.02; done"
        (directory / "initdb").write_text(f"#!/bin/sh\n{waits}\n{then}\n")
        (directory / "initdb").chmod(0o755)
        made.append(Daemon(place, f'[embedded]\nbinaries = "{directory}"\n{CONFIG}'))
        made[-1].spawn()
        eventually(made[-1].socket.exists, 60)
        return made[-1]

    yield begin
    for daemon in made:
        (place / "go").touch()
        clean_up(daemon)


def works() -> str:
    return f'exec {NEWEST}/initdb "$@"'


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return connection.recv(1, socket.MSG_PEEK) is None
    except TimeoutError:
        return True
    finally:
        connection.settimeout(60)


def test_clients_that_come_during_the_start_are_answered_when_it_is_done(
    starting: Callable[[str], Daemon], place: Path
) -> None:
    daemon = starting(works())
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(CROWD)]
        for connection in crowd:
            connection.settimeout(60)
            connection.connect(str(daemon.socket))
            connection.sendall(PING)
        status = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "clonepool", "status", "--socket", str(daemon.socket)],
                stdout=subprocess.PIPE,
            )
        )
        assert is_silent(crowd[0])
        (place / "go").touch()
        for connection in crowd:
            assert json.loads(connection.recv(4096))["result"] == {}
        with daemon.client() as client:
            client.lease("blog", timeout=60).release()
        said, _ = status.communicate(timeout=60)
        assert b"instance main" in said
        assert status.returncode == 0


def test_clients_of_a_start_that_fails_are_told_so(
    starting: Callable[[str], Daemon], place: Path
) -> None:
    daemon = starting("echo error: no luck >&2; exit 1")
    with Client(str(daemon.socket)) as client, socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(60)
        silent.connect(str(daemon.socket))
        threading.Timer(0.2, (place / "go").touch).start()
        with pytest.raises(ShuttingDownError, match="could not start") as caught:
            client.lease("blog")
        assert "no luck" not in str(caught.value)  # it was not asked who this is
        assert json.loads(silent.recv(4096))["error"]["data"]["code"] == "shutting_down"
        assert silent.recv(1) == b""
    assert daemon.process is not None
    assert daemon.process.wait(60) != 0
    assert not daemon.socket.exists()


def status(daemon: Daemon, wait: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "clonepool", "status", "--socket", str(daemon.socket),
            "--wait", wait,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_status_says_that_the_daemon_is_starting_and_ends_when_it_has_started(
    starting: Callable[[str], Daemon], place: Path
) -> None:
    daemon = starting(works())
    with status(daemon, "60s") as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "clonepool: the daemon is starting\n"
        (place / "go").touch()
        said, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert "instance main" in said


def test_status_that_waits_ends_when_the_start_fails(
    starting: Callable[[str], Daemon], place: Path
) -> None:
    daemon = starting("echo error: no luck >&2; exit 1")
    with status(daemon, "60s") as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "clonepool: the daemon is starting\n"
        (place / "go").touch()
        _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 1
    assert "the daemon could not start" in said


def test_status_that_waits_ends_with_its_time_while_the_daemon_is_starting(
    starting: Callable[[str], Daemon],
) -> None:
    with status(starting(works()), "1.5s") as waiting:
        _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 1
    assert "is still starting after 1.5 s" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_clients_of_a_start_that_is_ended_do_not_wait_without_limit(
    starting: Callable[[str], Daemon], place: Path, number: signal.Signals
) -> None:
    daemon = starting(works())
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(daemon.socket))
        connection.sendall(PING)
        assert daemon.process is not None
        daemon.process.send_signal(number)
        (place / "go").touch()
        with contextlib.suppress(ConnectionResetError):
            said = connection.recv(4096)
            assert not said or "could not start" in said.decode()
        daemon.process.wait(60)


def test_a_client_that_sees_the_file_is_never_refused(place: Path) -> None:
    path, over = place / "a.sock", threading.Event()
    refused: list[OSError] = []

    def knock() -> None:
        while not over.is_set():
            with socket.socket(socket.AF_UNIX) as connection:
                try:
                    connection.connect(str(path))
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.EAGAIN):
                        refused.append(error)

    knocking = threading.Thread(target=knock)
    knocking.start()
    with contextlib.ExitStack() as stack:  # none is closed while somebody may have found its name
        try:
            for _ in range(300):
                stack.enter_context(bind_and_listen(path, 4096))
                path.unlink()
        finally:
            over.set()
            knocking.join()
    assert not refused


def test_the_socket_is_the_owners_and_the_groups_and_replaces_a_dead_one_only(place: Path) -> None:
    path = place / "a.sock"
    bind_and_listen(path, 5).close()
    again = bind_and_listen(path, 5)
    assert path.stat().st_mode & 0o777 == SOCKET_MODE
    assert sorted(entry.name for entry in place.iterdir()) == ["a.sock"]
    again.close()
    path.unlink()
    path.write_text("dear")
    with pytest.raises(ConfigError, match="not a socket"):
        bind_and_listen(path, 5)
    assert path.read_text() == "dear"


def test_a_path_as_long_as_an_address_may_be_is_listened_on(place: Path) -> None:
    path = place / ("s" * (107 - len(os.fsencode(place)) - 1))
    with bind_and_listen(path, 5), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))


def test_what_a_start_that_was_killed_had_bound_is_no_obstacle(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place / "a.sock.new"))
    bind_and_listen(place / "a.sock", 5).close()
    assert not (place / "a.sock.new").exists()
