"""Runs programs that work on a template's database, with a time limit and little output.

Each program runs in a process group of its own, which is ended as a whole when time is up or the
build is cancelled. Otherwise, what a shell has started would keep writing to the database.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread

from clonepool import descriptors, resource_errors
from clonepool.errors import TemplateFailedError
from clonepool.postgres.redaction import hide

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from clonepool.postgres.endpoint import Endpoint

SHOWN_BYTES = 2_000
"""Number of bytes of the end of a program's output that is kept."""
GRACE_SECONDS = 2.0
"""Time that a program has to end after a signal."""
_LOOK_SECONDS = 0.005
"""Seconds between two checks whether a program has ended."""
_PIECE_BYTES = 65_536
"""Most bytes of output that are read at a time."""


class Finished(NamedTuple):
    """How a program ended.

    Attributes:
        code: its exit code, or minus the number of the signal that ended it.
        output: the end of its output on both streams, without secrets.
    """

    code: int
    output: str


def inherited() -> dict[str, str]:
    """Return the daemon's environment without variables that name another server."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PG") or "SSL" in k}


def environment(endpoint: Endpoint, database: str, options: str = "") -> dict[str, str]:
    """Return the environment of PostgreSQL's own programs, whose messages will be in English.

    Args:
        endpoint: of the server, and the role to log in as.
        database: to connect to.
        options: settings of their sessions, as PGOPTIONS takes them.
    """
    found = {**inherited(), **endpoint.env(database), "LC_ALL": "C", "PGAPPNAME": "clonepool"}
    found["PGOPTIONS"] = f"{found.get('PGOPTIONS', '')} {options}".strip()
    return found


async def run(
    command: str | Sequence[str],
    *,
    env: Mapping[str, str],
    directory: Path,
    seconds: float,
    what: str,
    keep_all: bool = False,
    complaints_only: bool = False,
    secrets: Iterable[str] = (),
) -> Finished:
    """Run a program to its end.

    This uses a thread and the standard library, because uvloop takes 6 ms more to start a program,
    and a template may consist of hundreds of files.

    Args:
        command: arguments, or a line for the shell.
        env: its whole environment.
        directory: in which it runs.
        seconds: time limit.
        what: names the program in errors.
        keep_all: whether to return all of its output, instead of the end.
        complaints_only: whether to leave out its standard output.
        secrets: removed from the end of its output, as is the password for the server.

    Raises:
        TemplateFailedError: it cannot be started, or exceeded the time limit and was ended.
        ResourceError: a resource of the machine that it takes to start it is exhausted.
    """
    secrets = [*secrets, env.get("PGPASSWORD", "")]
    program = _Program(keep_all=keep_all, complaints_only=complaints_only)
    try:
        with anyio.fail_after(seconds):
            await anyio.to_thread.run_sync(
                program.run, command, env, directory, abandon_on_cancel=True
            )
    except TimeoutError:
        raise TemplateFailedError(
            f"{what}: took longer than {seconds:g} s, and was ended; its last output:"
            f" {hide(program.last, secrets)}",
            remedy="raise build_timeout",
        ) from None
    except OSError as error:
        raise resource_errors.told(error, f"starting {what}", starting=True) or TemplateFailedError(
            f"{what} cannot be started in {directory}: {error.strerror or error}",
            remedy="check the program's name and the directory",
        ) from error
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(program.end)
    return Finished(program.code, program.whole if keep_all else hide(program.last, secrets))


def _await_end(pid: int) -> None:
    """Wait a while for a child to end, without reaping it."""
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return
        time.sleep(_LOOK_SECONDS)


class _Program:
    """One program, which one thread starts and reads, and another may end."""

    def __init__(self, *, keep_all: bool, complaints_only: bool) -> None:
        self._keep_all = keep_all
        self._complaints_only = complaints_only
        self._output = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ended = False
        self.code = 0

    def run(self, command: str | Sequence[str], env: Mapping[str, str], directory: Path) -> None:
        """Start the program and read its output until it ends; do nothing after `end`."""
        with self._lock:
            if self._ended:
                return
            self._process = subprocess.Popen(
                descriptors.with_limit(command) if isinstance(command, str) else command,
                shell=isinstance(command, str),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if self._complaints_only else subprocess.PIPE,
                stderr=subprocess.PIPE if self._complaints_only else subprocess.STDOUT,
                env=env,
                cwd=directory,
                start_new_session=True,
            )
        process = self._process
        descriptors.restore_limit(process.pid)
        stream = process.stderr if self._complaints_only else process.stdout
        while stream is not None and (piece := os.read(stream.fileno(), _PIECE_BYTES)):
            self._output += piece
            if not self._keep_all:
                del self._output[: -4 * SHOWN_BYTES]
        with contextlib.suppress(ChildProcessError):  # it has been reaped by `end`
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    def end(self) -> None:
        """End the program and all that it started.

        The process group is signalled by its number, which the kernel may use again once the
        program was reaped and its group is empty. So the program is reaped last.
        """
        with self._lock:
            self._ended, process = True, self._process
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except (ProcessLookupError, PermissionError):  # the latter: it runs as another user
                break
            _await_end(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.code = process.wait(GRACE_SECONDS)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    @property
    def whole(self) -> str:
        """All of its output."""
        return self._output.decode("utf-8", "replace")

    @property
    def last(self) -> str:
        """The end of its output."""
        return self.whole.strip()[-SHOWN_BYTES:] or "nothing"
