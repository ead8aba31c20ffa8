"""Where things are: the daemon's socket, its state, its configuration.

Standard library only, because clients use it to find the daemon. Nothing here creates anything.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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
    directory = Path(socket_path).parent.stat()
    return directory.st_uid in {0, os.geteuid()} or not str(socket_path).startswith(
        f"{tempfile.gettempdir()}/"
    )


def default_state_dir() -> Path:
    """Return where a daemon started by this user keeps what outlives it."""
    if systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/clonepool")
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "clonepool"


def default_config() -> Path:
    """Return the configuration used when none is named: here, the system's, the shipped one."""
    for candidate in (Path("config.toml"), Path("/etc/clonepool/config.toml")):
        if candidate.exists():
            return candidate
    return shipped_config()


def shipped_config() -> Path:
    """Return the configuration that runs the demo: the installed one, or the checkout's."""
    package = Path(__file__).resolve().parent
    installed = package / "shipped" / "config.toml"
    return installed if installed.exists() else package.parents[1] / "config.toml"


def _private_tmp() -> str:
    return f"{tempfile.gettempdir()}/clonepool-{os.geteuid()}"
