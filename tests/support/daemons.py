"""The real `clonepool serve` in a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import anyio

from clonepool import config
from clonepool.client import Client
from clonepool.errors import (
    ConfigError,
    ConnectionLostError,
    DaemonNotFoundError,
    ShuttingDownError,
)
from clonepool.postgres.embedded.server import discard
from support import clusters
from support.processes import run_module
from support.servers import ROOT, open_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from support.processes import Process

CONFIG = f"""
[http]
listen = ""
[templates.blog]
sql = ["{ROOT}/examples/blog/*.sql"]
min_ready = 3
max_clones = 12
"""
START_SECONDS = 60.0
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.04
"""Seconds between two checks of a condition; checks take processor time from the daemon."""


def eventually(condition: Callable[[], bool], seconds: float = 20.0, what: str = "") -> None:
    """Wait until the condition holds; check less often the longer that takes."""
    deadline, pause = time.monotonic() + seconds, SHORTEST_PAUSE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(pause)  # sleeps: between two looks
        pause = min(1.2 * pause, LONGEST_PAUSE_SECONDS)


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


class Daemon:
    """One daemon: its directory, socket and process."""

    def __init__(self, directory: Path, settings: str = CONFIG) -> None:
        self.directory = directory
        self.socket = directory / "clonepool.sock"
        self.state = directory / "state"
        self.config = directory / "config.toml"
        self.log = directory / "daemon.log"
        self.config.write_text(settings)
        self.process: Process | None = None
        self.program: Sequence[str] = ()
        """The program that is run in place of `python -m clonepool`."""
        self.wrapper: Sequence[str] = ()
        """A program that executes the daemon, with its arguments."""
        self.prepared = True
        """Whether its first start finds a cluster that initdb made before."""

    @property
    def arguments(self) -> list[str]:
        """What follows the program's name on its command line."""
        return [
            *("serve", "--config", str(self.config)),
            *("--socket", str(self.socket), "--state", str(self.state)),
        ]

    def spawn(self) -> Process:
        """Start the process and do not wait for it."""
        with self.log.open("ab") as log:
            if self.program or self.wrapper:
                program = self.program or (sys.executable, "-m", "clonepool")
                command = [*self.wrapper, *program, *self.arguments]
                self.process = subprocess.Popen(command, stdout=log, stderr=log)
            else:
                self.process = run_module("clonepool", self.arguments, log.fileno())
        return self.process

    def lay_down_cluster(self) -> None:
        """Copy a prepared cluster for the first start, unless there is a cluster already."""
        if not self.prepared:
            return
        with suppress(ConfigError):
            settings = config.load(self.config)
            if settings.server == config.EMBEDDED:
                clusters.lay_down(self.state, settings.embedded, settings.pool.max_clones)

    def start(self) -> Daemon:
        """Start the process and wait until it listens."""
        self.lay_down_cluster()
        process = self.spawn()
        eventually(lambda: self.listens(process), START_SECONDS, "the daemon listens")
        return self

    def client(self) -> Client:
        """Connect."""
        return Client(str(self.socket), name="test")

    def status(self) -> dict[str, Any]:
        """Ask for the status."""
        with self.client() as client:
            status: dict[str, Any] = client.call("status")
        return status

    def pool(self, template: str = "blog") -> dict[str, Any]:
        """Ask for one pool's state."""
        (pool,) = (p for p in self.status()["pools"] if p["template"] == template)
        found: dict[str, Any] = pool
        return found

    def at_rest(self) -> bool:
        """Say whether the pool is full and no job runs."""
        pool = self.pool()
        busy = pool["creating"] + pool["recycling"] + pool["dropping"] + pool["leased"]
        return bool(pool["ready"] >= pool["min_ready"] and not busy)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the process and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def events(self, name: str) -> list[str]:
        """Return the log's lines with this event."""
        return [line for line in self.log.read_text().splitlines() if f'"{name}"' in line]

    def listens(self, process: Process) -> bool:
        """Say whether the process answers; it must not have ended."""
        assert process.poll() is None, self.log.read_text()
        try:
            with self.client() as client:
                client.call("ping")  # it listens before it has started, and answers after
        except (DaemonNotFoundError, ConnectionLostError, ShuttingDownError):
            return False
        return True


@contextmanager
def running_daemon(
    settings: str = CONFIG,
    *,
    files: Mapping[str, str] = MappingProxyType({}),
    wrapper: Sequence[str] = (),
    prepared: bool = True,
) -> Iterator[Daemon]:
    """Run a daemon, with files beside its configuration; delete its data at the end."""
    with open_directory() as directory:
        daemon = Daemon(directory, settings)
        daemon.wrapper, daemon.prepared = wrapper, prepared
        for name, text in files.items():
            (directory / name).write_text(text)
        try:
            yield daemon.start()
        finally:
            clean_up(daemon)


def clean_up(daemon: Daemon) -> None:
    """End the processes that still run and delete the data."""
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.terminate()
        try:
            daemon.process.wait(30)
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()
    anyio.run(discard, daemon.state)


def resident_bytes(daemon: Daemon) -> int:
    """Return the resident memory of the daemon, in bytes."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024
