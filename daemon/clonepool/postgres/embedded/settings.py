"""The embedded server's postgresql.conf: for data that is thrown away, sized to the machine."""

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

_THROWAWAY = {
    # Nothing here outlives the machine's next boot, so nothing waits for a disk.
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    # Rewinds read the log; a checkpoint, which each copy and drop brings, would take it away.
    "wal_keep_size": "128MB",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "min_wal_size": "64MB",
    "checkpoint_timeout": "1d",
    # Commits stay synchronous: it costs nothing without fsync, and VACUUM right after a
    # commit finds it hinted.
    "synchronous_commit": "on",
    # The pool's databases are short-lived; a worker in one would block its copy or drop.
    "autovacuum": "off",
    "jit": "off",
    # In the data directory, so that a killed server leaves nothing outside of it.
    "dynamic_shared_memory_type": "mmap",
}
"""The same on every machine."""


def shared_buffers_mib(memory_bytes: int) -> int:
    """Return a sixty-fourth of the memory within 64 and 256 MiB: DROP DATABASE scans them all."""
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
        port: TCP port on loopback, 0 for no TCP.
        overrides: what the configuration sets beside or instead.
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
        # What a lease would set so, the next lease would meet, and the next start.
        settings["allow_alter_system"] = "off"
    if major >= _IO_METHOD_MAJOR:
        settings["io_method"] = "sync"
    if major >= _SCRAM_ITERATIONS_MAJOR:
        # The password has 128 random bits: stretching it would only make connecting slow.
        settings["scram_iterations"] = "1"
    settings |= overrides
    lines = [
        f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in settings.items()
    ]
    return "# Written by clonepool at each start.\n" + "\n".join(lines) + "\n"
