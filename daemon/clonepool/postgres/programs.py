"""Programs that work on a template's database: run with a deadline, their complaints kept short.

Each runs in a process group of its own, which is ended as a whole when time is up or the build is
given up: what a shell started would go on writing to the database otherwise.
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
"""Of the end of what a program said."""
GRACE_SECONDS = 2.0
_LOOK_SECONDS = 0.005
_PIECE_BYTES = 65_536


class Finished(NamedTuple):
    """What a program left.

    Attributes:
        code: its exit code; minus the signal that ended it.
        output: what it said on both of its streams, the last of it; the password that it was
            given is taken out.
    """

    code: int
    output: str


def inherited() -> dict[str, str]:
    """Return our own environment without what would send a program to another server."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PG") or "SSL" in k}


def environment(endpoint: Endpoint, database: str, options: str = "") -> dict[str, str]:
    """Return what PostgreSQL's own programs need, complaints in English among it.

    Args:
        endpoint: of the server, and as whom to log in.
        database: where to work.
        options: further ones for the server, as in PGOPTIONS.
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

    In a thread, by the standard library: uvloop takes 6 ms more to start one, and a template can
    have hundreds of files.

    Args:
        command: arguments, or a line for the shell.
        env: all of its environment.
        directory: where it runs.
        seconds: how long it may take.
        what: names it in errors.
        keep_all: return all that it said, not only the last of it.
        complaints_only: leave out what it said on its standard output.
        secrets: left out of what it said last, beside the password for the server.

    Raises:
        TemplateFailedError: it cannot be started, or took too long; it is ended then.
        ResourceError: the machine is short of what it takes to start it.
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
            f"{what}: took longer than {seconds:g} s, and was ended; it said last:"
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
    """Give a child some time to end, and leave it to be waited for."""
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return
        time.sleep(_LOOK_SECONDS)


class _Program:
    """One program, started and heard in a thread, and ended by another if need be."""

    def __init__(self, *, keep_all: bool, complaints_only: bool) -> None:
        self._keep_all = keep_all
        self._complaints_only = complaints_only
        self._heard = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ended = False
        self.code = 0

    def run(self, command: str | Sequence[str], env: Mapping[str, str], directory: Path) -> None:
        """Start it and listen until it ends; not at all when it is to be ended already."""
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
            self._heard += piece
            if not self._keep_all:
                del self._heard[: -4 * SHOWN_BYTES]
        with contextlib.suppress(ChildProcessError):  # it was ended meanwhile
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    def end(self) -> None:
        """See that nothing of it goes on, whatever it started.

        Its group is signalled by its number, which the kernel gives to others once the program was
        waited for and its group is empty. So it is waited for last.
        """
        with self._lock:
            self._ended, process = True, self._process
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except (ProcessLookupError, PermissionError):  # the latter: it has become another user
                break
            _await_end(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.code = process.wait(GRACE_SECONDS)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    @property
    def whole(self) -> str:
        """All that it said."""
        return self._heard.decode("utf-8", "replace")

    @property
    def last(self) -> str:
        """The last of it."""
        return self.whole.strip()[-SHOWN_BYTES:] or "nothing"
