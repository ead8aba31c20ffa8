"""clonepool demo: a daemon of its own, real leases, and how long they take."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clonepool.client import Client
from clonepool.errors import (
    ClonepoolError,
    ConnectionLostError,
    DaemonNotFoundError,
    ShuttingDownError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 120.0
_TEMPLATE = "blog"


@click.command("demo")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration with a template blog.  [default: the shipped one]",
)
@click.option("--leases", default=200, show_default=True, help="Number of leases to time.")
def command(config_path: Path | None, leases: int) -> None:
    """Lease real databases from a daemon that runs for the demo, and show how long that takes."""
    import anyio

    from clonepool.cli import locations
    from clonepool.cli.demo_scenes import play

    config = config_path or locations.shipped_config()
    click.echo(f"Starting a daemon with {config} …")
    began = time.monotonic()
    with private_daemon(config) as socket_path, Client(str(socket_path), name="demo") as client:
        client.lease(_TEMPLATE, timeout=START_SECONDS).release()
        seconds = time.monotonic() - began
        click.echo(f"  server started, template built, first lease after {seconds:.1f} s")
        anyio.run(play, client, _TEMPLATE, leases)


@contextmanager
def private_daemon(config: Path) -> Iterator[Path]:
    """Run `clonepool serve` with its own socket and state directory, and leave nothing of it.

    Yields:
        The path of its socket.

    Raises:
        ClonepoolError: the daemon did not start; the message is the last line of its log.
    """
    import anyio

    from clonepool.postgres.embedded.server import discard

    base = Path(tempfile.mkdtemp(prefix="clonepool-demo-"))
    base.chmod(0o711)
    socket_path, state, log = base / "demo.sock", base / "state", base / "daemon.log"
    arguments = ["serve", "--config", str(config), "--socket", str(socket_path)]
    arguments += ["--state", str(state), "--http", ""]
    try:
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "clonepool", *arguments],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"},
            )
        try:
            _await_socket(daemon, socket_path, log)
            yield socket_path
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
    finally:
        anyio.run(discard, state)
        shutil.rmtree(base, ignore_errors=True)


def _await_socket(daemon: subprocess.Popen[bytes], socket_path: Path, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            raise ClonepoolError(
                f"the daemon did not start, exit code {daemon.returncode}: {_last_line(log)}"
            )
        try:
            with Client(str(socket_path)) as client:
                client.call("ping")  # answered when it has started
        except (DaemonNotFoundError, ConnectionLostError, ShuttingDownError):
            time.sleep(0.02)
        else:
            return
    raise ClonepoolError(
        f"the daemon did not start within {START_SECONDS:g} s; its last line: {_last_line(log)}"
    )


def _last_line(log: Path) -> str:
    """Return the last line that the daemon wrote, which is the cause when it does not start."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("clonepool: ") if lines else "nothing"
