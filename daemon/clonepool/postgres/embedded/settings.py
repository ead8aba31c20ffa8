"""The embedded server's postgresql.conf, for data that is not durable, sized to the machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIB = 1024 * 1024
DEFAULT_PORT = 5432
_ALTER_SYSTEM_MAJOR = 17
_IO_METHOD_MAJOR = 18
_SCRAM_ITERATIONS_MAJOR = 16
_SMALLEST_BUFFERS_MIB = 64
_LARGEST_BUFFERS_MIB = 256
"""Limits of shared_buffers in MiB."""

_THROWAWAY = {
    # The data does not outlive the next boot of the machine, so nothing is flushed.
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    # Rewinds read the WAL, which a checkpoint would remove; each copy and drop causes one.
    "wal_keep_size": "128MB",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "min_wal_size": "64MB",
    "checkpoint_timeout": "1d",
    # Without fsync, synchronous commits cost nothing, and VACUUM can set hint bits right after a
    # commit.
    "synchronous_commit": "on",
    # The databases are short-lived, and a worker in one would delay its copy or drop.
    "autovacuum": "off",
    "jit": "off",
    # In the data directory, so that a server that was killed leaves nothing elsewhere.
    "dynamic_shared_memory_type": "mmap",
}
"""Settings that do not depend on the machine."""


def shared_buffers_mib(memory_bytes: int) -> int:
    """Return 1/64 of the memory, between 64 and 256 MiB: DROP DATABASE scans all buffers."""
    share = memory_bytes // 64 // MIB
    return max(_SMALLEST_BUFFERS_MIB, min(share, _LARGEST_BUFFERS_MIB))


def machine_memory_bytes() -> int:
    """Return the memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def render(
    *,
    major: int,
    memory_bytes: int,
    max_connections: int,
    socket: Path,
    port: int,
    overrides: Mapping[str, str],
) -> str:
    """Return the whole postgresql.conf.

    Args:
        major: the server's version.
        memory_bytes: of the machine.
        max_connections: as the server's setting of that name.
        socket: directory of the Unix socket.
        port: TCP port on loopback; 0 for no TCP.
        overrides: further settings of the configuration, which take precedence.
    """
    settings: dict[str, str] = {
        **_THROWAWAY,
        "shared_buffers": f"{shared_buffers_mib(memory_bytes)}MB",
        "max_connections": str(max_connections),
        "superuser_reserved_connections": "5",
        "bgwriter_lru_maxpages": "0",
        "wal_writer_delay": "10s",
        "bgwriter_delay": "10s",
        "listen_addresses": "127.0.0.1" if port else "",
        "port": str(port or DEFAULT_PORT),
        "unix_socket_directories": str(socket),
        "unix_socket_permissions": "0777",
        "password_encryption": "scram-sha-256",
        "logging_collector": "off",
        "log_line_prefix": "%m [%p] %a %d ",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "lc_messages": "C",
    }
    if major >= _ALTER_SYSTEM_MAJOR:
        # What a lease set this way would affect later leases and later starts.
        settings["allow_alter_system"] = "off"
    if major >= _IO_METHOD_MAJOR:
        settings["io_method"] = "sync"
    if major >= _SCRAM_ITERATIONS_MAJOR:
        # Passwords have 160 random bits: stretching them would only make connecting slow.
        settings["scram_iterations"] = "1"
    settings |= overrides
    lines = [
        f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in settings.items()
    ]
    return "# Written by clonepool at each start.\n" + "\n".join(lines) + "\n"
