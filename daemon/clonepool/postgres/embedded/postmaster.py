"""The server process: started, adopted, watched while it starts, stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from clonepool.errors import EmbeddedServerError, ServerUnavailableError, StatementError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.postgres.embedded.account import Account
    from clonepool.postgres.embedded.binaries import Binaries
    from clonepool.postgres.embedded.storage import Storage

START_SECONDS = 60.0
STOP_SECONDS = 5.0
_POLL_SECONDS = 0.02
_LOG_LINES = 5


class UnusableClusterError(EmbeddedServerError):
    """The server does not start on its data, or does not let us in: another cluster may do."""


class Postmaster:
    """One server process, ours by birth or by adoption.

    Attributes:
        late: whether it ran, and did not let us in in time.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.late = False
        self._child = child

    def alive(self) -> bool:
        """Say whether the process still runs."""
        if self._child is not None:
            return self._child.poll() is None
        return _is_alive(self.pid)

    async def stop(self) -> None:
        """Shut down fast: sessions ended, data written. After a while, at once."""
        for wish in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if self.alive():
                os.kill(self.pid, wish)
            with anyio.move_on_after(STOP_SECONDS):
                while self.alive():
                    await anyio.sleep(_POLL_SECONDS)
                return


def find_running(storage: Storage) -> Postmaster | None:
    """Return the server that an earlier daemon left running on this data directory.

    A postmaster.pid whose process is gone, or is another program by now, is removed: PostgreSQL
    itself would refuse to start if the number happened to be in use again.

    Raises:
        EmbeddedServerError: the file cannot be understood.
    """
    path = storage.data / "postmaster.pid"
    try:
        first = path.read_text(encoding="utf-8").splitlines()[:1]
    except FileNotFoundError:
        return None
    try:
        pid = int(first[0])
    except (IndexError, ValueError):
        path.unlink()
        return None
    if _is_alive(pid) and _working_directory(pid) == storage.data.resolve():
        return Postmaster(pid, None)
    path.unlink()
    for lock in storage.socket.glob(".s.PGSQL.*"):
        lock.unlink(missing_ok=True)  # names the same process
    return None


async def start(
    storage: Storage, binaries: Binaries, account: Account, probe: Callable[[], Awaitable[None]]
) -> Postmaster:
    """Start a server in a session of its own, so that it survives the daemon, and await it.

    Args:
        storage: with a cluster on it.
        binaries: of the cluster's version.
        account: who runs it.
        probe: connects once; raises while the server is not there yet.

    Raises:
        EmbeddedServerError: with the last lines of the server's log.
    """
    child, began_at = _spawn(storage, binaries, account)
    postmaster = Postmaster(child.pid, child)
    if not await await_ready(postmaster, probe):
        said = _log_tail(storage, began_at)
        if postmaster.late:
            raise EmbeddedServerError(f"the server did not start in {START_SECONDS:g} s: {said}")
        raise UnusableClusterError(f"the server ended while it started: {said}")
    return postmaster


def forget_alter_system(storage: Storage) -> bool:
    """Delete what ALTER SYSTEM wrote; say whether there was something."""
    path = storage.data / "postgresql.auto.conf"
    try:
        path.unlink()
    except OSError:
        return False
    return True


async def await_ready(postmaster: Postmaster, probe: Callable[[], Awaitable[None]]) -> bool:
    """Wait until a server lets us in, ours or one that an earlier daemon left.

    Returns:
        False when its process ended or time is up. Then, and after an error or a cancellation,
        the process does not run any more.

    Raises:
        EmbeddedServerError: it refuses us.
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
    """Start the process; return it, and where in the log its own lines begin."""
    command: list[str | Path] = [binaries.program("postgres"), "-D", storage.data]
    command += [f"--config_file={storage.settings}", f"--hba_file={storage.access}"]
    command += [f"--ident_file={storage.identities}"]
    forget_alter_system(storage)
    with open(storage.log, "ab", opener=_private) as log:
        began_at = log.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            **account.popen_arguments(),
        )
    return child, began_at


async def _answers(postmaster: Postmaster, probe: Callable[[], Awaitable[None]]) -> bool:
    """Wait until the server lets us in; False when its process ends instead."""
    while postmaster.alive():
        try:
            await probe()
        except ServerUnavailableError:
            await anyio.sleep(_POLL_SECONDS)
        except StatementError as error:
            raise UnusableClusterError(f"the server refuses us: {error}") from error
        else:
            return True
    return False


def _private(path: str, flags: int) -> int:
    """Open for the daemon's user alone: the log has the statements of whoever leases."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _log_tail(storage: Storage, began_at: int) -> str:
    """Return the last lines that this start wrote, without their times and process ids."""
    try:
        written = storage.log.read_bytes()[began_at:].decode("utf-8", "replace")
    except OSError as error:
        return f"its log cannot be read: {error}"
    lines = [re.sub(r"^.*?\] +", "", line).strip() for line in written.splitlines()]
    return " / ".join([line for line in lines if line][-_LOG_LINES:]) or f"see {storage.log}"


def _is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _working_directory(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None
