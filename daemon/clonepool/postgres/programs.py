"""Programs that work on a template's database: run with a deadline, their complaints kept short.

Each runs in a process group of its own, which is ended as a whole when time is up or the build is
given up: what a shell started would go on writing to the database otherwise.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import anyio

from clonepool.errors import TemplateFailedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from clonepool.postgres.endpoint import Endpoint

SHOWN_BYTES = 2_000
"""Of the end of what a program said."""
GRACE_SECONDS = 2.0


class Finished(NamedTuple):
    """What a program left.

    Attributes:
        code: its exit code; minus the signal that ended it.
        output: what it said on both of its streams, the last of it.
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
) -> Finished:
    """Run a program to its end.

    Args:
        command: arguments, or a line for the shell.
        env: all of its environment.
        directory: where it runs.
        seconds: how long it may take.
        what: names it in errors.
        keep_all: return all that it said, not only the last of it.

    Raises:
        TemplateFailedError: it cannot be started, or took too long; it is ended then.
    """
    try:
        process = await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=directory,
            start_new_session=True,
        )
    except OSError as error:
        raise TemplateFailedError(
            f"{what} cannot be started in {directory}: {error.strerror or error}",
            remedy="check the program's name and the directory",
        ) from error
    said = bytearray()
    try:
        with anyio.fail_after(seconds):
            await _listen(process, said, keep_all=keep_all)
            code = await process.wait()
    except TimeoutError:
        raise TemplateFailedError(
            f"{what}: took longer than {seconds:g} s, and was ended; it said last: {_shown(said)}",
            remedy="raise build_timeout",
        ) from None
    finally:
        await _end(process)
    return Finished(code, said.decode("utf-8", "replace") if keep_all else _shown(said))


async def _listen(process: anyio.abc.Process, said: bytearray, *, keep_all: bool) -> None:
    if process.stdout is not None:
        async for piece in process.stdout:
            said += piece
            if not keep_all:
                del said[: -4 * SHOWN_BYTES]


async def _end(process: anyio.abc.Process) -> None:
    """See that nothing of it goes on, whatever it started."""
    with anyio.CancelScope(shield=True):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            with anyio.move_on_after(GRACE_SECONDS):
                await process.wait()
        await process.aclose()


def _shown(said: bytearray) -> str:
    return said.decode("utf-8", "replace").strip()[-SHOWN_BYTES:] or "nothing"
