"""Quoting of names and strings for SQL."""

from __future__ import annotations


def identifier(name: str) -> str:
    """Return `name` quoted for use in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return `text` as an SQL string, for statements that take no parameters."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
