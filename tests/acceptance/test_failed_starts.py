"""Every failed start reports its cause and a remedy in one line, without a traceback."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support import binaries
from support.daemons import CONFIG, free_port
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NEWEST, *_, OLDEST = binaries.available().values()
NOBODY = 54_321
"""An id without a name."""
AS_USER = """
import importlib, os, pkgutil, sys
import anyio._backends._asyncio, uvloop, clonepool
for module in pkgutil.walk_packages(clonepool.__path__, "clonepool."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
user = int(sys.argv.pop(1))
os.setgroups([])
os.setgid(user)
os.setuid(user)
importlib.import_module("clonepool.cli").main()
"""
"""Everything is imported before the user is changed: it may not be able to read it."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can arrange that")


class Setting(NamedTuple):
    """Where a daemon is to be started, and what undoes that."""

    place: Path
    stack: ExitStack

    @property
    def state(self) -> Path:
        return self.place / "state"


class Start(NamedTuple):
    """How a start is to fail.

    Attributes:
        cause: a pattern of what is to be told.
        remedy: pattern of the text in brackets after it.
        embedded: lines of [embedded].
        server: instead of the embedded one.
        arrange: makes it fail; returns further lines of [embedded].
        user: the id as which the daemon is run.
    """

    cause: str
    remedy: str
    embedded: str = ""
    server: str = "embedded"
    arrange: Callable[[Setting], str | None] = lambda _: None
    user: int | None = None


@contextmanager
def small(directory: Path, mebibytes: int) -> Iterator[None]:
    directory.mkdir(exist_ok=True, mode=0o711)
    size = f"size={mebibytes}m,mode=0711"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def on_a_small_disk(setting: Setting) -> str:
    setting.stack.enter_context(small(setting.state, 64))
    return 'storage = "disk"'


def on_a_disk_that_is_full(setting: Setting) -> str:
    setting.stack.enter_context(small(setting.state, 1024))
    found = os.statvfs(setting.state)
    with (setting.state / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (found.f_bavail * found.f_frsize) - 10 * 1024**2)
    return 'storage = "disk"'


def with_a_taken_port(setting: Setting) -> str:
    taken = setting.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f"port = {taken.getsockname()[1]}"


def with_data_of_another_version(setting: Setting) -> str:
    config = start_config(setting, f'binaries = "{OLDEST}"\nstorage = "disk"')
    with spawned(setting, config) as daemon:
        assert daemon.stdout is not None
        for line in daemon.stdout:
            if "daemon.started" in line:
                break
        daemon.terminate()
        daemon.communicate(timeout=60)
    return f'binaries = "{NEWEST}"\nstorage = "disk"'


def programs(setting: Setting, name: str, script: str) -> str:
    """Make a directory of PostgreSQL's programs, of which one is a script."""
    directory = setting.place / "bin"
    directory.mkdir()
    for program in NEWEST.iterdir():
        (directory / program.name).symlink_to(program)
    (directory / name).unlink()
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)
    directory.chmod(0o755)
    return f'binaries = "{directory}"'


def postgres_that(does: str) -> Callable[[Setting], str]:
    """Let the server itself do something else; initdb and --version work."""
    script = f'case "$*" in *config_file*) {does};; esac; exec {NEWEST}/postgres "$@"'
    return lambda setting: programs(setting, "postgres", script)


def without_a_library(setting: Setting) -> str:
    says = "error while loading shared libraries: libfoo.so.1: cannot open shared object file"
    return programs(setting, "postgres", f"echo 'postgres: {says}' >&2; exit 127")


def initdb_that(does: str) -> Callable[[Setting], str]:
    return lambda setting: programs(setting, "initdb", does)


def in_a_closed_directory(setting: Setting) -> str:
    (setting.place / "closed").mkdir(mode=0o700)
    setting.state.mkdir(mode=0o711)
    shutil.move(setting.state, setting.place / "closed" / "state")
    setting.state.symlink_to(setting.place / "closed" / "state")
    return 'storage = "disk"'


def with_a_file_for_a_state_directory(setting: Setting) -> None:
    setting.state.write_text("")


def with_what_is_not_a_socket(setting: Setting) -> None:
    (setting.place / "clonepool.sock").mkdir()


def in_a_directory_of_its_own(setting: Setting) -> None:
    setting.state.mkdir(mode=0o711)
    for path in (setting.place, setting.state):
        os.chown(path, NOBODY, NOBODY)


STARTS = {
    "the port is taken": Start(
        "Address already in use", r"embedded\.port", arrange=with_a_taken_port
    ),
    "a setting has a bad value": Start(
        "shared_buffers.*a lot", r"embedded\.settings", 'settings = { shared_buffers = "a lot" }'
    ),
    "a setting is none": Start(
        "no_such_setting", r"embedded\.settings", 'settings = { no_such_setting = "1" }'
    ),
    "there is not that much memory": Start(
        "could not map anonymous shared memory|Cannot allocate memory|shared_buffers",
        r"embedded\.settings",
        'settings = { shared_buffers = "8000GB" }',
    ),
    "a library is missing": Start(
        "loading shared libraries: libfoo",
        r"install the package that has libfoo",
        arrange=without_a_library,
    ),
    "the server ends at once": Start(
        r"the server ended after [\d.]+ s with exit status 3.*boom",
        r"server\.log",
        arrange=postgres_that("echo boom >&2; exit 3"),
    ),
    "the server ends at once and says nothing": Start(
        r"the server ended after [\d.]+ s with exit status 4",
        r"server\.log",
        arrange=postgres_that("exit 4"),
    ),
    "the server is killed at once": Start(
        r"the server ended after [\d.]+ s killed by SIGKILL",
        r"memory",
        arrange=postgres_that("kill -9 $$"),
    ),
    "initdb fails": Start(
        "initdb failed.*no luck",
        r"embedded",
        arrange=initdb_that("echo error: no luck >&2; exit 1"),
    ),
    "initdb is killed": Start(
        "initdb failed.*SIGKILL", r"memory", arrange=initdb_that("kill -9 $$")
    ),
    "there are no programs": Start(
        "no postgres and initdb in /nowhere", r"embedded\.binaries", 'binaries = "/nowhere"'
    ),
    "there is no such user": Start(
        "no unprivileged user no-such-user|cannot start a server as",
        "user",
        'user = "no-such-user"',
    ),
    "the state directory is a file": Start(
        "cannot be used", "--state", arrange=with_a_file_for_a_state_directory
    ),
    "the socket's place is taken": Start(
        "the socket .* cannot be made", "--socket", arrange=with_what_is_not_a_socket
    ),
    "nobody listens at the URL": Start(
        "Connect call failed|refused",
        "server",
        server=f"postgresql://postgres@127.0.0.1:{free_port()}/postgres",
    ),
    "the URL's host is none": Start(
        "no-such-host", "server", server="postgresql://postgres@no-such-host.invalid/postgres"
    ),
    "the URL's socket is not there": Start(
        "No such file|does not exist",
        "server",
        server="postgresql:///postgres?host=/nowhere&user=me",
    ),
}
ROOTS_STARTS = {
    "the disk is too small": Start(
        r"no space left .*64 MiB in all.*352", r"--state|embedded\.storage", arrange=on_a_small_disk
    ),
    "the disk is full": Start(
        "no space left for a database cluster", r"embedded\.storage", arrange=on_a_disk_that_is_full
    ),
    "the server's user may not enter": Start(
        "may not enter", "chmod", arrange=in_a_closed_directory
    ),
    "the user has no name": Start(
        rf"user id {NOBODY} has no name",
        r"/etc/passwd.*nss_wrapper",
        arrange=in_a_directory_of_its_own,
        user=NOBODY,
    ),
    "the user has no name and the URL none either": Start(
        rf"user id {NOBODY} has no name",
        "PGUSER",
        server="postgresql://127.0.0.1/postgres",
        arrange=in_a_directory_of_its_own,
        user=NOBODY,
    ),
}
if NEWEST != OLDEST:
    STARTS["the data is another version's"] = Start(
        "was made by PostgreSQL", "remove", arrange=with_data_of_another_version
    )


@pytest.fixture
def setting() -> Iterator[Setting]:
    with open_directory() as place, ExitStack() as stack:
        yield Setting(place, stack)


def start_config(setting: Setting, embedded: str = "", server: str = "embedded") -> Path:
    path = setting.place / "config.toml"
    path.write_text(f'server = "{server}"\n[embedded]\n{embedded}\n{CONFIG}')
    return path


@contextmanager
def spawned(
    setting: Setting, config: Path, user: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a daemon, if need be as a user who has no name, and no access to our installation."""
    command = ["-m", "clonepool"] if user is None else ["-c", AS_USER, str(user)]
    command += ["serve", "--config", str(config), "--state", str(setting.state)]
    command += ["--socket", str(setting.place / "clonepool.sock")]
    names = {"HOME", "USER", "LOGNAME", "USERNAME", "LNAME", "PGUSER"}
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={k: v for k, v in os.environ.items() if k not in names},
        cwd="/",
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def check(setting: Setting, start: Start) -> None:
    more = start.arrange(setting) or ""
    config = start_config(setting, f"{start.embedded}\n{more}", start.server)
    with spawned(setting, config, start.user) as process:
        said, _ = process.communicate(timeout=100)
    assert process.returncode not in (0, None)
    assert "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    assert re.match(r"clonepool: .", last), said
    assert re.search(start.cause, last), last
    assert re.search(rf"\(.*(?:{start.remedy}).*\)$", last), last


@pytest.mark.parametrize("how", STARTS)
def test_a_start_that_fails_tells_why_and_what_to_do(setting: Setting, how: str) -> None:
    check(setting, STARTS[how])


@as_root
@pytest.mark.parametrize("how", ROOTS_STARTS)
def test_a_start_that_fails_in_a_place_that_root_made_does_so_too(
    setting: Setting, how: str
) -> None:
    check(setting, ROOTS_STARTS[how])
