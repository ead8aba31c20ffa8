"""The server process: starting, finding, adopting, and stopping it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from clonepool import descriptors, resource_errors, trusted_files
from clonepool.errors import EmbeddedServerError, ServerUnavailableError, StatementError
from clonepool.postgres.embedded import failure_causes
from clonepool.postgres.embedded.process import (
    Process,
    hold,
    is_alive,
    parent_of,
    raise_if_exhausted,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.errors import ClonepoolError
    from clonepool.postgres.embedded.account import Account
    from clonepool.postgres.embedded.binaries import Binaries
    from clonepool.postgres.embedded.storage import Storage

START_SECONDS = 60.0
"""Time that a server has to accept a connection."""
STOP_SECONDS = 5.0
"""Time that a server has to end after each signal."""
RETIRE_SECONDS = 2.0
"""Time that a server without clients has to end."""
_POLL_SECONDS = 0.02
"""Seconds between two checks whether a server has started or ended."""
_LOG_LINES = 5
"""Number of lines of the server's log that an error shows."""
_UNINFORMATIVE = ("LOG:  skipping missing configuration file", "LOG:  database system is shut down")


class UnusableClusterError(EmbeddedServerError):
    """The server does not start on its data, or refuses the daemon; a new cluster may work."""


class Postmaster:
    """One server process, which this daemon or an earlier one started.

    Args:
        process: the process.

    Attributes:
        pid: its process id.
        late: whether it ran, but did not accept a connection in time.
    """

    def __init__(self, process: subprocess.Popen[bytes] | Process) -> None:
        self.pid = process.pid
        self.late = False
        self._process = process

    def alive(self) -> bool:
        """Say whether the process still runs."""
        if isinstance(self._process, Process):
            return self._process.alive()
        return self._process.poll() is None

    async def stop(self) -> None:
        """Stop the server in fast mode; if that takes too long, immediately."""
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            self._send(number)
            if await self._ends_within(STOP_SECONDS):
                return

    async def retire(self) -> bool:
        """Stop the server in smart mode: when no client is connected any more.

        Returns:
            Whether it has ended; clients may still be connected.
        """
        self._send(signal.SIGTERM)
        return await self._ends_within(RETIRE_SECONDS)

    def _send(self, number: signal.Signals) -> None:
        if isinstance(self._process, Process):
            self._process.send(number)
        else:
            self._process.send_signal(number)  # does nothing if it was reaped

    async def _ends_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            while self.alive():
                await anyio.sleep(_POLL_SECONDS)
            return True
        return False


def find_running(storage: Storage) -> Postmaster | None:
    """Return the server that an earlier daemon left running on this data directory.

    A postmaster.pid is removed if its process is gone or is another program, because PostgreSQL
    would refuse to start if the number is in use again. It is also removed if the server cannot
    have written it (a lease may have put a link or a FIFO there), and the server is looked for
    among all processes: two servers on the same data would damage it.

    Raises:
        EmbeddedServerError: the file can be neither read nor removed.
        ResourceError: a resource of the machine is exhausted, so it is not known; nothing was
            removed.
    """
    path = storage.data / "postmaster.pid"
    try:
        return _find_running(storage, path)
    except OSError as error:
        raise _unusable(path, error) from error


def _find_running(storage: Storage, path: Path) -> Postmaster | None:
    try:
        pid = _first_number(trusted_files.read_own(path, storage.owners()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except trusted_files.UntrustedFileError:
        found = search(storage)
    else:
        found = None if pid is None else _held(storage, pid)
        if found is not None:
            return found
    if found is None:
        trusted_files.unlink_in(storage.socket, ".s.PGSQL.")  # its lock file names the same process
    path.unlink()
    return found


def search(storage: Storage) -> Postmaster | None:
    """Return the process that works in the data directory and whose parent does not.

    Raises:
        OSError: a resource of the machine is exhausted, so it is not known.
    """
    processes = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    found = {pid for pid in processes if _is_server_of(storage, pid)}
    first = next((pid for pid in sorted(found) if parent_of(pid) not in found), None)
    return None if first is None else _held(storage, first)


async def start(
    storage: Storage, binaries: Binaries, account: Account, probe: Callable[[], Awaitable[None]]
) -> Postmaster:
    """Start a server that outlives the daemon, in a session of its own, and wait until it is ready.

    Args:
        storage: with a cluster in it.
        binaries: of the cluster's version.
        account: that runs it.
        probe: connects once; raises while the server is not ready.

    Raises:
        EmbeddedServerError: it did not start; shows the last lines of the server's log.
    """
    began = anyio.current_time()
    child, began_at = _spawn(storage, binaries, account)
    postmaster = Postmaster(child)
    if not await await_ready(postmaster, probe):
        waited = f"{anyio.current_time() - began:.1f} s"
        output = _log_tail(storage, began_at)
        otherwise = f"its log is {storage.log}"
        if postmaster.late:
            raise EmbeddedServerError(
                f"the server accepted no connection within {waited}, and was ended: {output}",
                remedy=failure_causes.remedy(output, None, otherwise),
            )
        # A server that was killed, by the kernel for example, does not show that its data is bad.
        killed = child.returncode == -signal.SIGKILL
        kind = EmbeddedServerError if killed else UnusableClusterError
        raise kind(
            f"the server ended after {waited} {failure_causes.ending(child.returncode)}: {output}",
            remedy=failure_causes.remedy(output, child.returncode, otherwise),
        )
    return postmaster


def forget_alter_system(storage: Storage) -> bool:
    """Delete what ALTER SYSTEM wrote; say whether there was anything."""
    path = storage.data / "postgresql.auto.conf"
    try:
        path.unlink()
    except OSError:
        return False
    return True


async def await_ready(postmaster: Postmaster, probe: Callable[[], Awaitable[None]]) -> bool:
    """Wait until a server accepts a connection.

    Returns:
        False if its process ended or time is up. Then, and after an error or a cancellation, the
        process does not run any more.

    Raises:
        EmbeddedServerError: it refuses the daemon.
    """
    try:
        with anyio.move_on_after(START_SECONDS):
            if await _answers(postmaster, probe):
                return True
        postmaster.late = postmaster.alive()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await postmaster.stop()
        raise
    await postmaster.stop()
    return False


def _spawn(
    storage: Storage, binaries: Binaries, account: Account
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process; return it, and the position in the log where its lines begin."""
    command: list[str | Path] = [binaries.program("postgres"), "-D", storage.data]
    command += [f"--config_file={storage.settings}", f"--hba_file={storage.access}"]
    command += [f"--ident_file={storage.identities}"]
    forget_alter_system(storage)
    try:
        with open(storage.log, "ab", opener=_private) as log:
            began_at = log.tell()
            child = subprocess.Popen(
                descriptors.wrapped(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                **account.popen_arguments(),
            )
    except OSError as error:
        failure = EmbeddedServerError(f"the server cannot be started: {error}")
        raise (
            resource_errors.told(error, "starting the server", starting=True) or failure
        ) from error
    return child, began_at


async def _answers(postmaster: Postmaster, probe: Callable[[], Awaitable[None]]) -> bool:
    """Wait until the server accepts a connection; False if its process ends."""
    while postmaster.alive():
        try:
            await probe()
        except ServerUnavailableError:
            await anyio.sleep(_POLL_SECONDS)
        except StatementError as error:
            raise UnusableClusterError(f"the server refuses the daemon: {error}") from error
        else:
            return True
    return False


def _private(path: str, flags: int) -> int:
    """Open a file that only the daemon's user can read: the log contains statements of leases."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _log_tail(storage: Storage, began_at: int) -> str:
    """Return the last lines that this start wrote, without times and process ids."""
    try:
        with trusted_files.open_own(storage.log, trusted_files.ours()) as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(began_at, end - trusted_files.MOST_BYTES))
            written = log.read().decode("utf-8", "replace")
    except OSError as error:
        return f"its log cannot be read: {error}"
    lines = [re.sub(r"^.*?\] +", "", line).strip() for line in written.splitlines()]
    shown = [line for line in lines if line and not line.startswith(_UNINFORMATIVE)]
    return " / ".join(shown[-_LOG_LINES:]) or "it wrote nothing"


def _unusable(path: Path, error: OSError) -> ClonepoolError:
    return resource_errors.told(error, str(path)) or EmbeddedServerError(
        f"{path} cannot be used: {error.strerror}",
        remedy="end the server that runs on that data, if there is one, and remove the file",
    )


def _first_number(written: bytes) -> int | None:
    try:
        return int(written.split(b"\n", 1)[0])
    except ValueError:
        return None


def _held(storage: Storage, pid: int) -> Postmaster | None:
    process = hold(pid, lambda pid: _is_server_of(storage, pid))
    return None if process is None else Postmaster(process)


def _is_server_of(storage: Storage, pid: int) -> bool:
    """Say whether a process works in the data directory, as a user that may write there."""
    try:
        owner = os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116 - one call for each process there is
    except OSError as error:
        raise_if_exhausted(error)
        return False
    return (
        owner in storage.owners()
        and is_alive(pid)
        and _working_directory(pid) == storage.data.resolve()
    )


def _working_directory(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError as error:
        raise_if_exhausted(error)
        return None
