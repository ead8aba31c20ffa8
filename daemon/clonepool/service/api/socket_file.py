"""The socket in the file system: its path, its lock, and when a file there may be replaced."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from clonepool.errors import ConfigError
from clonepool.paths import anybody_may_replace, foreign_owners
from clonepool.service.state_files import hold_lock

SOCKET_MODE = 0o660
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
_LONGEST_ADDRESS = 107
"""Bytes that the path in a socket's address may have."""
_REMEDY = "name another place with --socket"


def bind_and_listen(path: Path, backlog: int) -> socket.socket:
    """Make the socket; a dead one is replaced, nothing else is.

    The socket listens before it gets its name: no connection is refused because it came in between.

    Raises:
        ConfigError: the place cannot be used.
    """
    bound = socket.socket(socket.AF_UNIX)
    old_mask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        if path.is_socket():
            path.unlink()
        _bind_and_listen(bound, path, backlog)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"the socket {path} cannot be made: {error.strerror or error}", remedy=_REMEDY
        ) from error
    finally:
        os.umask(old_mask)
    return bound


def take_lock(path: Path) -> int:
    """Hold `<socket>.lock` and return its file descriptor: a live socket is never taken over.

    Raises:
        AlreadyRunningError: another daemon has the lock.
        ConfigError: the directory cannot be used, or others could replace the socket with their
            own; nothing is made in it then.
    """
    _check_directory(path.parent)
    lock = hold_lock(
        path.with_name(f"{path.name}.lock"),
        directory_mode=0o755,
        taken=f"another daemon listens on {path}",
        remedy=_REMEDY,
    )
    try:
        _check_directory(path.parent)  # again: others may have made it since
    except ConfigError:
        os.close(lock)
        raise
    return lock


def longest_backlog() -> int | None:
    """Return how many connections the kernel lets wait at most; None when that is not known."""
    try:
        return int(_SOMAXCONN.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _bind_and_listen(bound: socket.socket, path: Path, backlog: int) -> None:
    if os.path.lexists(path):
        taken = f"{os.strerror(errno.EADDRINUSE)} by something that is not a socket"
        raise OSError(errno.EADDRINUSE, taken)
    new = path.with_name(f"{path.name}.new")
    if len(os.fsencode(new)) > _LONGEST_ADDRESS:
        new = path
    elif new.is_socket():
        new.unlink()  # a daemon was killed at this very place, while it held the lock as we do
    bound.bind(str(new))
    bound.listen(backlog)
    if new != path:
        new.rename(path)


def _check_directory(directory: Path) -> None:
    """Check a directory that exists; one that does not will be ours."""
    try:
        strangers, open_to_all = foreign_owners(str(directory)), anybody_may_replace(str(directory))
    except OSError:
        return  # making the lock file in it tells why it cannot be used
    if strangers:
        raise ConfigError(f"{directory} belongs to another user", remedy=_REMEDY)
    if open_to_all:
        raise ConfigError(f"{directory}: any user may replace files there", remedy=_REMEDY)
