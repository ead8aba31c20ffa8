"""Where the daemon's socket is.

Clients use it to find the daemon, and a test runner shall not wait for their import: `os` alone,
as `pathlib` and `tempfile` would be half of it. Nothing here creates anything.
"""

from __future__ import annotations

import os

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

    Anybody may make a directory in /tmp; a client must not take a stranger's for the daemon.
    """
    directory = os.stat(str(socket_path).rpartition("/")[0] or ".")  # noqa: PTH116 - see above
    return directory.st_uid in {0, os.geteuid()} or not str(socket_path).startswith(f"{_tmp()}/")


def _private_tmp() -> str:
    return f"{_tmp()}/clonepool-{os.geteuid()}"


def _tmp() -> str:
    return (os.environ.get("TMPDIR") or "/tmp").rstrip("/")  # noqa: S108 - its owner is looked at
