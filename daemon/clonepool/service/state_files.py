"""Files of the state directory: locks held by a living process, secret, serials, runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from typing import TYPE_CHECKING, NamedTuple

from clonepool import resource_errors, trusted_files
from clonepool.errors import AlreadyRunningError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SERIALS_OF_A_RUN = 1 << 20
"""Serials that one run of a daemon may use before the next could meet them."""


def hold_lock(path: Path, *, directory_mode: int, taken: str, remedy: str) -> int:
    """Lock a file and return its descriptor; the file and its directory are made if missing.

    Args:
        path: of the lock file.
        directory_mode: of directories that have to be made.
        taken: the message of the error when another process holds it.
        remedy: what to do then, and when the directory cannot be used.

    Raises:
        AlreadyRunningError: another process holds it.
        ConfigError: the directory or the file cannot be made, or the file is another user's.
    """
    try:
        path.parent.mkdir(mode=directory_mode, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        failure = ConfigError(f"{path.parent} cannot be used: {error.strerror}", remedy=remedy)
        raise resource_errors.told(error, str(path)) or failure from error
    owner = os.fstat(descriptor).st_uid
    if owner not in trusted_files.ours():
        os.close(descriptor)
        raise ConfigError(f"{path} belongs to another user (id {owner})", remedy=remedy)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunningError(taken, remedy=remedy) from None
    return descriptor


def reserve_serials(path: Path, first: int) -> int:
    """Return a serial to start with, above all that earlier daemons of this directory used.

    The clock is not enough: it can be set back.

    Args:
        path: of the file that remembers.
        first: the least serial to return.

    Raises:
        ResourceError: the machine is short of something, and the serial is not known.
    """
    try:
        start = max(first, int(trusted_files.read_own(path, trusted_files.ours())))
    except OSError as error:
        short = resource_errors.told(error, str(path))
        if short is not None:
            raise short from error
        start = first
    except ValueError:
        start = first
    with contextlib.suppress(OSError):
        trusted_files.replace_own(path, str(start + SERIALS_OF_A_RUN).encode())
    return start


class Runs(NamedTuple):
    """Random words that name this run of the daemon and the one before on the same directory."""

    own: str
    former: str


def begin_run(path: Path) -> Runs:
    """Return the words of the runs, and write this one down for the next.

    Raises:
        ConfigError: the file cannot be used.
    """
    former, own = "", secrets.token_hex(8)
    try:
        with contextlib.suppress(FileNotFoundError):
            former = trusted_files.read_own(path, trusted_files.ours()).decode("ascii", "replace")
        trusted_files.replace_own(path, own.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}") from error
    return Runs(own, former)


def load_secret(path: Path) -> bytes:
    """Return the secret that passwords of this daemon's roles are derived from; make it if missing.

    Raises:
        ConfigError: the file cannot be used.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return trusted_files.read_own(path, trusted_files.ours())
        fresh = secrets.token_bytes(32)
        trusted_files.replace_own(path, fresh)
    except OSError as error:
        failure = ConfigError(f"{path} cannot be used: {error.strerror}")
        raise resource_errors.told(error, str(path)) or failure from error
    return fresh
