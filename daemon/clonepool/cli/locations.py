"""Where a daemon started here keeps its state and finds its configuration. Creates nothing."""

from __future__ import annotations

import os
from pathlib import Path

from clonepool.errors import ConfigError


def default_state_dir() -> Path:
    """Return where a daemon started by this user keeps what outlives it.

    Raises:
        ConfigError: nothing says where.
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
    """Return the configuration used when none is named: here, the system's, the shipped one."""
    for candidate in (Path("config.toml"), Path("/etc/clonepool/config.toml")):
        if candidate.exists():
            return candidate
    return shipped_config()


def shipped_config() -> Path:
    """Return the configuration that runs the demo: the installed one, or the checkout's."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "shipped" / "config.toml"
    return installed if installed.exists() else package.parents[1] / "config.toml"
