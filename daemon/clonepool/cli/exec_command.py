"""clonepool exec: run a command with a clone of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clonepool import printable
from clonepool.cli.options import socket_option, timeout_option
from clonepool.client import Client

if TYPE_CHECKING:
    from types import FrameType

_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FROM_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_NOT_OF_POSTGRESQL = ("sh", "python3")
"""Programs by which a directory of the machine's or of an environment's own is recognized."""


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-t", "--template", required=True, metavar="NAME", help="Template to lease.")
@timeout_option
@socket_option
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD...")
def command(
    template: str, timeout: float | None, socket_path: str | None, argv: tuple[str, ...]
) -> None:
    """Run CMD with DATABASE_URL and PG* set to a clone, which is released when CMD ends.

    With an embedded server, the PATH of CMD starts with the server's own programs, so that pg_dump
    and psql are of its version.
    """
    with Client(socket_path, name=f"exec {Path(argv[0]).name}") as client:
        programs = client.call("hello").get("programs", "")
        lease = client.lease(template, timeout=timeout)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        path = path_with(programs, os.environ.get("PATH", os.defpath))
        code = _run(argv, {**inherited, **lease.env, "PATH": path})
    sys.exit(code)


def path_with(programs: str, path: str) -> str:
    """Return a PATH on which the server's programs come first, if that changes nothing else.

    Args:
        programs: their directory; empty when the server has none here.
        path: the PATH as it is. A directory that is on it keeps its place, and one that holds more
            than PostgreSQL's programs is not put before those that the user chose.
    """
    directory = Path(programs)
    usable = programs and os.access(directory / "psql", os.X_OK)
    if not usable or programs in path.split(os.pathsep):
        return path
    if any((directory / name).exists() for name in _NOT_OF_POSTGRESQL):
        return path
    return f"{programs}{os.pathsep}{path}"


def _in_foreground() -> bool:
    """Say whether a terminal sends its signals to our process group, and so to the child."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _run(argv: tuple[str, ...], env: dict[str, str]) -> int:
    """Run the child and return its exit code, 128 + n after signal n, as a shell does."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if number in _FROM_KEYBOARD and _in_foreground():
            return  # the terminal has sent it to the child too
        if child is None:
            early.append(number)
        elif child.poll() is None:
            child.send_signal(number)

    for wanted in _PASSED_ON:
        signal.signal(wanted, pass_on)
    try:
        child = subprocess.Popen(argv, env=env)
    except FileNotFoundError:
        click.echo(f"clonepool: {printable.line(argv[0])}: command not found", err=True)
        return _NOT_FOUND
    except OSError as error:
        click.echo(f"clonepool: {printable.line(argv[0])}: {error.strerror}", err=True)
        return _NOT_EXECUTABLE
    for number in early:
        child.send_signal(number)
    code = child.wait()
    return code if code >= 0 else 128 - code
