"""Starts, awaits and stops the processes that are measured."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from clonepool.client import Client
from clonepool.errors import DaemonNotFoundError
from clonepool.postgres.embedded.cluster import SUPERUSER
from clonepool.postgres.embedded.server import discard
from clonepool.postgres.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCH = Path(__file__).parent
START_SECONDS = 120.0
_NOT_PASSED_ON = {"NOTIFY_SOCKET", "PYTHONDONTWRITEBYTECODE"}
"""Variables not passed on; without the second, compiled modules are reused as usual."""


def own_url(client: Client, database: str = "postgres") -> str:
    """Return the URL by which the daemon itself comes into its embedded server.

    For what is measured beside it: a lease's login is good for the lease, and its databases go with
    it.
    """
    server = client.call("status")["server"]
    return Endpoint(server["host"], server["port"], SUPERUSER, "").url(database)


@contextmanager
def daemon(directory: Path, config: str) -> Iterator[tuple[Path, int]]:
    """Run a daemon with this configuration text; yield its socket and process id."""
    try:
        with daemon_run(directory, config) as found:
            yield found
    finally:
        anyio.run(discard, directory / "state")


@contextmanager
def daemon_run(
    directory: Path, config: str, *, source: Path | None = None
) -> Iterator[tuple[Path, int]]:
    """Run a daemon as `daemon` does, and leave what it leaves to the next one.

    Args:
        directory: for its files.
        config: TOML.
        source: the directory that holds the package; None for the one that is installed.
    """
    file, path, state = directory / "bench.toml", directory / "daemon.sock", directory / "state"
    file.write_text(config)
    arguments = ["--config", str(file), "--socket", str(path), "--state", str(state)]
    command = [sys.executable, "-m", "clonepool", "serve", *arguments]
    with _process(command, path, directory / "daemon.log", source) as pid:
        yield path, pid


@contextmanager
def floor(directory: Path, result: str) -> Iterator[tuple[Path, int]]:
    """Run the smallest Python server, answering with this JSON; yield its socket and process id."""
    path = directory / "floor.sock"
    with _process([sys.executable, str(BENCH / "floor.py"), str(path), result], path) as pid:
        yield path, pid


@contextmanager
def faked(directory: Path, name: str, ready: int) -> Iterator[tuple[Path, int]]:
    """Run a daemon without a server, with some clones ready; yield its socket and process id."""
    path, log = directory / f"{name}.sock", directory / f"{name}.log"
    command = [sys.executable, str(BENCH / "faked.py"), str(path), str(ready)]
    with _process(command, path, log) as pid:
        yield path, pid


@contextmanager
def echo(directory: Path) -> Iterator[tuple[Path, int]]:
    """Compile and run the echo server in C; yield its socket and process id."""
    program, path = directory / "echo", directory / "echo.sock"
    subprocess.run(["cc", "-O2", "-o", program, BENCH / "echo.c"], check=True)  # noqa: S607 - cc
    with _process([str(program), str(path)], path) as pid:
        yield path, pid


@contextmanager
def apart(servers: list[int]) -> Iterator[None]:
    """Keep this process on one core and the servers on another, where there are two.

    Left to itself the scheduler puts a client and whichever server it likes on one core, and the
    other server across: a difference of two and a half times that has nothing to do with either.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        yield
        return
    here, there = {cores[0]}, {cores[1]}
    try:
        for process, place in ((0, here), *((pid, there) for pid in servers)):
            os.sched_setaffinity(process, place)
        yield
    finally:
        for process in (0, *servers):
            os.sched_setaffinity(process, cores)


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def await_rest(
    client: Client, busy: tuple[str, ...] = ("creating", "recycling", "dropping")
) -> None:
    """Wait until every pool is full and nothing is under way."""
    while True:
        pools = client.call("status")["pools"]
        if all(p["ready"] >= p["min_ready"] and not any(p[b] for b in busy) for p in pools):
            return
        time.sleep(0.01)


def await_calm(client: Client, busy: tuple[str, ...] = ("returned", "recycling")) -> None:
    """Wait until no clone is being recycled; others may be leased."""
    while any(pool[b] for pool in client.call("status")["pools"] for b in busy):
        time.sleep(0.001)


@contextmanager
def _process(
    command: list[str], path: Path, log: Path | None = None, source: Path | None = None
) -> Iterator[int]:
    environment = {k: v for k, v in os.environ.items() if k not in _NOT_PASSED_ON}
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else subprocess.DEVNULL
        child = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            _await(path, child, log)
            yield child.pid
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait()


def _await(path: Path, child: subprocess.Popen[bytes], log: Path | None) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(log.read_text() if log else f"{child.args!r} did not start")
        with contextlib.suppress(DaemonNotFoundError):
            Client(str(path)).close()
            return
        time.sleep(0.01)
    raise TimeoutError(str(path))
