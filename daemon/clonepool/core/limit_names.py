"""What a limit is called when it is reached.

Not in `limits`, whose import of msgspec would cost the client and every command.
"""

from __future__ import annotations

from enum import StrEnum


class Limit(StrEnum):
    """What keeps a pool from making a clone that it wants; metrics have it as a label."""

    TEMPLATE = "max_clones"
    POOL = "pool.max_clones"
    SERVER = "server"
    STORAGE = "storage"
    CONNECTIONS = "max_connections"
    FILES = "files"
    MEMORY = "memory"
    PROCESSES = "processes"
