"""The unit file, and the daemon's messages to systemd."""

from __future__ import annotations

import configparser
import json
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from clonepool.client import Client
from clonepool.errors import DaemonNotFoundError
from clonepool.postgres.embedded.server import discard
from support import binaries
from support.daemons import CONFIG, eventually
from support.servers import ROOT

UNIT = ROOT / "systemd" / "clonepool.service"
MOST_EXPOSED = 2.0


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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_exposes_little() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot judge a file")
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert overall, done.stderr
    assert float(overall[1]) < MOST_EXPOSED


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        ("MemoryDenyWriteExecute", "Node.js"),
        ("PrivateUsers", "nobody"),
        ("PrivateNetwork", "embedded.port"),
        ("ProcSubset", "/proc/meminfo"),
        ("RemoveIPC", "/dev/shm"),
    ],
)
def test_what_the_unit_leaves_open_has_its_reason(left_out: str, reason: str) -> None:
    assert unit()["Service"].get(left_out, "no") == "no"
    comments = [line for line in UNIT.read_text().split("# - ") if line.startswith(left_out)]
    assert [reason in " ".join(comment.split()) for comment in comments] == [True]


def test_a_killed_backend_does_not_end_the_daemon() -> None:
    assert unit()["Service"]["OOMPolicy"] == "continue"


SANDBOX = """\
set -eu
mount --make-rprivate /
inside=$PLACE/inside
mkdir -p "$inside/dev/shm" "$inside/opened"
for name in null zero full random urandom tty; do
    touch "$inside/dev/$name"
    mount --bind "/dev/$name" "$inside/dev/$name"
done
mount --bind /dev/shm "$inside/dev/shm"
OPEN
mount --bind "$PLACE" /mnt
mount --no-mtab -o remount,bind,ro /
mount --no-mtab --rbind "$inside/dev" /dev
mount --no-mtab -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p "$PLACE"
mount --no-mtab --move /mnt "$PLACE"
mount --no-mtab -t proc -o hidepid=invisible proc /proc
mount --no-mtab --bind /proc/sys /proc/sys
mount --no-mtab -o remount,bind,ro /proc/sys
umask 0077
exec setpriv --reuid nobody --regid nogroup --clear-groups --no-new-privs --bounding-set=-all \
    --inh-caps=-all --ambient-caps=-all "$@"
"""
"""The unit's file system, /dev, /proc and rights, made by hand for want of a systemd to be run.
What it says of system calls and of the network is not in it."""


def opened(needed: set[Path]) -> str:
    """Return the commands that let every user reach directories below closed ones."""
    lines = []
    closed = {
        directory: [path for path in needed if directory in path.parents]
        for path in needed
        for directory in path.parents
        if not directory.stat().st_mode & 0o001
    }
    for directory, paths in closed.items():
        stand_in = f'"$inside/opened{directory}"'
        for path in paths:
            target = f'"$inside/opened{path}"'
            lines += [f"mkdir -p {target}", f"mount --rbind {shlex.quote(str(path))} {target}"]
        lines.append(f"mount --rbind {stand_in} {shlex.quote(str(directory))}")
    return "\n".join(lines)


def listens(socket_path: str) -> bool:
    try:
        Client(socket_path).close()
    except DaemonNotFoundError:
        return False
    return True


def can_make_a_sandbox() -> bool:
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--mount", "mount", "-t", "proc", "-o", "hidepid=invisible", "p", "/proc"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_make_a_sandbox(), reason="only root can make the sandbox, with mounts")
def test_a_daemon_in_the_sandbox_works_in_memory_and_runs_commands(place: Path) -> None:
    psql = next(iter(binaries.available().values())) / "psql"
    (place / "config.toml").write_text(
        f'embedded.storage = "memory"\n{CONFIG}\n[templates.made]\nmin_ready = 1\n'
        f"command = [\"{psql}\", '-Xc', 'CREATE TABLE made ()']\n"
    )
    for name in ("state", "run"):
        (place / name).mkdir()
        shutil.chown(place / name, group="nogroup")
        (place / name).chmod(0o771)
    script = SANDBOX.replace(
        "OPEN", opened({Path(sys.base_prefix).resolve(), Path(sys.prefix), ROOT, psql.parents[1]})
    )
    serve = ["serve", "--config", str(place / "config.toml")]
    with (place / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "clonepool"]  # noqa: RUF005 - what comes before is the sandbox
            + serve,
            env={
                **{k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET", "TMPDIR")},
                "PLACE": str(place),
                "HOME": "/",
                "STATE_DIRECTORY": str(place / "state"),
                "RUNTIME_DIRECTORY": str(place / "run"),
            },
            stdout=log,
            stderr=log,
            cwd="/",
        )
    try:
        said = (place / "daemon.log").read_text
        socket_path = str(place / "run" / "clonepool.sock")
        eventually(lambda: listens(socket_path) or daemon.poll() is not None, 60, "it listens")
        assert daemon.poll() is None, said()
        with Client(socket_path, name="test") as client:
            with client.lease("blog", timeout=60) as lease:
                assert lease.env["PGHOST"].startswith("/dev/shm/")
            client.lease("made", timeout=60).release()
        rights = dict(
            line.split(":\t")
            for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        )
        assert (rights["CapBnd"], rights["NoNewPrivs"]) == ("0" * 16, "1")
        daemon.terminate()
        assert daemon.wait(60) == 0, said()
    finally:
        daemon.terminate()  # it ends its server, which would outlive it otherwise
        daemon.wait(60)
        if (place / "state" / "cluster.json").exists():
            marker = json.loads((place / "state" / "cluster.json").read_text())
            shutil.rmtree(marker["root"], ignore_errors=True)


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
