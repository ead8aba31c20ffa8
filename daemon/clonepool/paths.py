"""Where the daemon's socket is, and whether its place can be trusted.

Clients import this, and test runners should not wait for that: it needs only `os`, as `pathlib`
and `tempfile` would double the client's import time. Nothing here creates anything.
"""

from __future__ import annotations

import os
import stat

SOCKET_VARIABLE = "CLONEPOOL_SOCKET"
SOCKET_NAME = "clonepool.sock"


def socket_candidates(explicit: str | None = None) -> list[str]:
    """Return the paths at which the daemon's socket may be; the first that exists is used.

    If `explicit` or else `CLONEPOOL_SOCKET` is set, that is the only one. Otherwise they are in the
    user's runtime directory, in the system's, and in a private one below the temporary directory.
    """
    named = explicit or os.environ.get(SOCKET_VARIABLE)
    if named:
        return [named]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = [f"{runtime}/clonepool/{SOCKET_NAME}"] if runtime else []
    return [*own, f"/run/clonepool/{SOCKET_NAME}", f"{_private_tmp()}/{SOCKET_NAME}"]


def default_socket(explicit: str | None = None) -> str:
    """Return the path on which a daemon started by this user listens."""
    candidates = socket_candidates(explicit)
    if len(candidates) == 1:
        return candidates[0]
    if systemd := os.environ.get("RUNTIME_DIRECTORY"):
        return f"{systemd.split(':')[0]}/{SOCKET_NAME}"
    if os.geteuid() == 0:
        return f"/run/clonepool/{SOCKET_NAME}"
    return candidates[0] if os.environ.get("XDG_RUNTIME_DIR") else candidates[-1]


def is_trusted(socket_path: str) -> bool:
    """Return whether the socket's directory belongs to this user or to the system.

    Any user can make a directory in /tmp, or a link there that leads to a directory of root's, such
    as /tmp itself, with a socket of the user's own in it. A client must not use such a socket.
    """
    if not str(socket_path).startswith(f"{_tmp()}/"):
        return True
    return not foreign_owners(str(socket_path).rpartition("/")[0])


def foreign_owners(directory: str) -> set[int]:
    """Return the ids of users, other than this one and root, that could replace the directory.

    Raises:
        OSError: there is no such directory.
    """
    looks = (os.lstat(directory), os.stat(directory))  # noqa: PTH116 - see above
    return {status.st_uid for status in looks} - {0, os.geteuid()}


def anybody_may_replace(directory: str) -> bool:
    """Return whether any user may replace files in the directory; /tmp is sticky and not of these.

    Raises:
        OSError: there is no such directory.
    """
    mode = os.stat(directory).st_mode  # noqa: PTH116 - see above
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _private_tmp() -> str:
    return f"{_tmp()}/clonepool-{os.geteuid()}"


def _tmp() -> str:
    return (os.environ.get("TMPDIR") or "/tmp").rstrip("/")  # noqa: S108 - its owner is looked at
