"""Where the daemon's socket is.

Clients use it to find the daemon, and a test runner shall not wait for their import: `os` alone,
as `pathlib` and `tempfile` would be half of it. Nothing here creates anything.
"""

from __future__ import annotations

import os
import stat

SOCKET_VARIABLE = "CLONEPOOL_SOCKET"
SOCKET_NAME = "clonepool.sock"


def socket_candidates(explicit: str | None = None) -> list[str]:
    """Return where a daemon's socket may be, the first that exists being meant.

    `explicit`, else `CLONEPOOL_SOCKET`, is the only candidate when given; else the user's runtime
    directory, the system's, and a private directory under the temporary one.
    """
    named = explicit or os.environ.get(SOCKET_VARIABLE)
    if named:
        return [named]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = [f"{runtime}/clonepool/{SOCKET_NAME}"] if runtime else []
    return [*own, f"/run/clonepool/{SOCKET_NAME}", f"{_private_tmp()}/{SOCKET_NAME}"]


def default_socket(explicit: str | None = None) -> str:
    """Return where a daemon started by this user listens; systemd's directory if it made one."""
    candidates = socket_candidates(explicit)
    if len(candidates) == 1:
        return candidates[0]
    if systemd := os.environ.get("RUNTIME_DIRECTORY"):
        return f"{systemd.split(':')[0]}/{SOCKET_NAME}"
    if os.geteuid() == 0:
        return f"/run/clonepool/{SOCKET_NAME}"
    return candidates[0] if os.environ.get("XDG_RUNTIME_DIR") else candidates[-1]


def is_trusted(socket_path: str) -> bool:
    """Say whether the socket's directory belongs to this user or to the system.

    Anybody may make a directory in /tmp, or a link there that leads to one of root's (to /tmp, say,
    where a socket of theirs is); a client must not take a stranger's for the daemon.
    """
    if not str(socket_path).startswith(f"{_tmp()}/"):
        return True
    return not foreign_owners(str(socket_path).rpartition("/")[0])


def foreign_owners(directory: str) -> set[int]:
    """Return who else than this user and root could put another directory in its place.

    Raises:
        OSError: there is no such directory.
    """
    looks = (os.lstat(directory), os.stat(directory))  # noqa: PTH116 - see above
    return {status.st_uid for status in looks} - {0, os.geteuid()}


def anybody_may_replace(directory: str) -> bool:
    """Say whether any user may remove and make files there; not so in one like /tmp.

    Raises:
        OSError: there is no such directory.
    """
    mode = os.stat(directory).st_mode  # noqa: PTH116 - see above
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _private_tmp() -> str:
    return f"{_tmp()}/clonepool-{os.geteuid()}"


def _tmp() -> str:
    return (os.environ.get("TMPDIR") or "/tmp").rstrip("/")  # noqa: S108 - its owner is looked at
