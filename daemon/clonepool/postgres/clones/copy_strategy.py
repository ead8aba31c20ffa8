"""The ways in which a server can copy a database, and the words that make it do so."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from clonepool.errors import CapabilityError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.postgres.capabilities import Capabilities

AUTO = "auto"
_STRATEGY_MAJOR = 15
_METHOD = "file_copy_method"


class Strategy(StrEnum):
    """A way of copying: page by page through the WAL, file by file, or by sharing blocks."""

    WAL_LOG = "wal_log"
    FILE_COPY = "file_copy"
    CLONE = "clone"


class Orders(NamedTuple):
    """What the server is told: words of CREATE DATABASE, and settings of its session."""

    words: str
    settings: Mapping[str, str]


def orders(strategy: Strategy, capabilities: Capabilities) -> Orders:
    """Return what makes this server copy that way."""
    if capabilities.major < _STRATEGY_MAJOR:
        return Orders("", {})
    if strategy is Strategy.WAL_LOG:
        return Orders("STRATEGY wal_log", {})
    method = "clone" if strategy is Strategy.CLONE else "copy"
    return Orders("STRATEGY file_copy", {_METHOD: method} if capabilities.file_copy_methods else {})


def candidates(wanted: str, capabilities: Capabilities, *, throwaway: bool) -> tuple[Strategy, ...]:
    """Return the strategies to choose from, the one that is used first in front.

    Args:
        wanted: "auto" or the name of one.
        capabilities: of the server. Before PostgreSQL 15 it copies files, and knows no word for it.
        throwaway: whether nothing is flushed to a disk: then copying files is the likeliest to be
            quick; elsewhere it forces checkpoints on everybody, and the server's default comes
            first.

    Raises:
        CapabilityError: the server cannot do what is wanted.
    """
    able = _able(capabilities)
    if wanted != AUTO:
        if wanted not in able:
            raise CapabilityError(
                f'copy = "{wanted}": PostgreSQL {capabilities.version_text} cannot copy that way,'
                f" only by {', '.join(able)}",
                remedy=f'set copy = "auto"{", or use PostgreSQL 18" if wanted == "clone" else ""}',
            )
        return (Strategy(wanted),)
    if throwaway:
        able.sort(key=[Strategy.FILE_COPY, Strategy.CLONE, Strategy.WAL_LOG].index)
    return tuple(able)


def _able(capabilities: Capabilities) -> list[Strategy]:
    """Return what the server can do. Whether its file system shares blocks is not seen here."""
    if capabilities.major < _STRATEGY_MAJOR:
        return [Strategy.FILE_COPY]
    able = [Strategy.WAL_LOG, Strategy.FILE_COPY]
    return [*able, Strategy.CLONE] if "clone" in capabilities.file_copy_methods else able
