"""The unit file, and what the daemon tells systemd."""

from __future__ import annotations

import configparser
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from clonepool.postgres.embedded.server import discard
from support.daemons import CONFIG
from support.servers import ROOT

UNIT = ROOT / "systemd" / "clonepool.service"


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read(UNIT)
    return parser


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/clonepool/bin/clonepool", sys.executable)
    me = pwd.getpwuid(os.geteuid()).pw_name
    text = text.replace("User=clonepool", f"User={me}").replace("Group=clonepool\n", "")
    (tmp_path / "clonepool.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "clonepool.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "clonepool.service" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_units_command_runs_and_says_when_it_is_ready(place: Path) -> None:
    """Run what ExecStart says as systemd would: its directories made, its socket listening."""
    command = shlex.split(unit()["Service"]["ExecStart"])
    assert Path(command[0]).name == "clonepool"
    runtime, state, config = place / "run", place / "state", place / "config.toml"
    runtime.mkdir()
    state.mkdir(mode=0o711)
    config.write_text(CONFIG)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(place / "notify"))
        systemd.settimeout(60)
        daemon = subprocess.Popen(
            [sys.executable, "-m", "clonepool", *command[1:2], "--config", str(config)],
            env={
                **{k: v for k, v in os.environ.items() if k != "CLONEPOOL_SOCKET"},
                "NOTIFY_SOCKET": str(place / "notify"),
                "STATE_DIRECTORY": str(state),
                "RUNTIME_DIRECTORY": str(runtime),
            },
            stderr=subprocess.DEVNULL,
        )
        try:
            assert systemd.recv(100) == b"READY=1"
            assert (runtime / "clonepool.sock").is_socket()
            assert (state / "cluster.json").exists()
            daemon.terminate()
            assert systemd.recv(100) == b"STOPPING=1"
            assert daemon.wait(30) == 0
        finally:
            daemon.kill()
            daemon.wait()
            anyio.run(discard, state)


def test_exit_codes_that_no_restart_mends_prevent_one() -> None:
    assert unit()["Service"]["RestartPreventExitStatus"].split() == ["2", "3"]
