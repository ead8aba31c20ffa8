"""Where a daemon that is started here keeps its state and finds its configuration.

Nothing here creates anything. Where the socket is, is in `clonepool.paths`.
"""

from __future__ import annotations

import os
from pathlib import Path

from clonepool.errors import ConfigError


def default_state_dir() -> Path:
    """Return the state directory of a daemon that is started by this user.

    Raises:
        ConfigError: the user has no home directory, and no variable names a directory.
    """
    if systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/clonepool")
    home = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".local" / "state") / "clonepool"
    except RuntimeError:
        raise ConfigError(
            "this user has no home directory to keep the state in", remedy="name one with --state"
        ) from None


def default_config() -> Path:
    """Return the file that is used when none is named: here, the system's, or the demo's."""
    for candidate in (Path("config.toml"), Path("/etc/clonepool/config.toml")):
        if candidate.exists():
            return candidate
    return shipped_config()


def shipped_config() -> Path:
    """Return the configuration of the demo: of the installed package, or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "shipped" / "config.toml"
    return installed if installed.exists() else package.parents[1] / "config.toml"
