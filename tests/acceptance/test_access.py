"""Users without permission get nothing from the daemon."""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.config import AccessSection
from clonepool.errors import ConfigError
from clonepool.service.api.access import Caller, Gatekeeper, identify
from support.daemons import CONFIG, running_daemon

if TYPE_CHECKING:
    from support.daemons import Daemon

PYTHON = "/usr/bin/python3"
ROOT_ONLY = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(PYTHON, os.X_OK),
    reason="needs root, and an interpreter that every user can run",
)
ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    try:
        s.sendall(b'{"id":1,"method":"acquire","params":{"template":"blog","timeout":20}}\\n')
    except BrokenPipeError:
        pass
    print(s.makefile().readline())
"""


def run_as_nobody(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-c", ASK, str(daemon.socket)],
        capture_output=True,
        text=True,
        check=False,
        user="nobody",
        group="nogroup",
        extra_groups=[],
        cwd="/",
    )


def ask_as_nobody(daemon: Daemon) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads(run_as_nobody(daemon).stdout)
    return reply


@ROOT_ONLY
def test_a_stranger_gets_an_error_and_nothing_else_even_if_the_socket_is_open_to_all() -> None:
    with running_daemon() as daemon:
        daemon.socket.chmod(0o666)
        reply = ask_as_nobody(daemon)
        assert reply["error"]["data"]["code"] == "access_denied"
        assert "result" not in reply
        assert daemon.pool()["leased"] == 0
        assert daemon.events("connection.refused")


@ROOT_ONLY
def test_whom_the_configuration_names_may_come_in() -> None:
    with running_daemon(CONFIG + '[access]\nallow_users = ["nobody"]\n') as daemon:
        daemon.socket.chmod(0o666)
        assert "password" in ask_as_nobody(daemon)["result"]


@ROOT_ONLY
def test_the_sockets_mode_keeps_strangers_out_by_itself() -> None:
    with running_daemon() as daemon:
        done = run_as_nobody(daemon)
        assert "PermissionError" in done.stderr


def test_the_kernel_identifies_the_caller() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert identify(ours) == Caller(os.getpid(), os.geteuid(), os.getegid())


def test_users_and_groups_are_let_in_by_name() -> None:
    gate = Gatekeeper(AccessSection(allow_users=["nobody"], allow_groups=["daemon"]))
    nobody, daemon_group = pwd.getpwnam("nobody").pw_uid, grp.getgrnam("daemon").gr_gid
    other = 54_321
    assert gate.admits(Caller(1, nobody, other))
    assert gate.admits(Caller(1, other, daemon_group))
    assert gate.admits(Caller(1, 0, 0))
    assert gate.admits(Caller(1, os.geteuid(), other))
    assert not gate.admits(Caller(1, other, other))


def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"access\.allow_groups: .*no-such-group"):
        Gatekeeper(AccessSection(allow_groups=["no-such-group"]))
