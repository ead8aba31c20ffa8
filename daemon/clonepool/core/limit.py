"""What a limit is called when it is reached. Apart from the limits, so that it costs no import."""

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
