"""The strategies by which a server can copy a database, and the SQL that selects each.

Which of them is used is decided in `core.copy_choice`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from clonepool.core.copy_choice import Strategy
from clonepool.errors import CapabilityError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.postgres.capabilities import Capabilities

AUTO = "auto"
_STRATEGY_MAJOR = 15
"""First version in which CREATE DATABASE has the option STRATEGY; older ones copy files."""
_METHOD = "file_copy_method"


class CopyOptions(NamedTuple):
    """What makes the server copy in one way: options of CREATE DATABASE, settings of its session.

    Each copy by files sets the method, because a kept session still has that of an earlier copy.
    """

    options: str
    settings: Mapping[str, str]


def copy_options(strategy: Strategy, capabilities: Capabilities) -> CopyOptions:
    """Return what makes this server copy by a strategy."""
    if capabilities.major < _STRATEGY_MAJOR:
        return CopyOptions("", {})
    if strategy is Strategy.WAL_LOG:
        return CopyOptions("STRATEGY wal_log", {})
    method = "clone" if strategy is Strategy.CLONE else "copy"
    settings = {_METHOD: method} if capabilities.file_copy_methods else {}
    return CopyOptions("STRATEGY file_copy", settings)


def candidates(wanted: str, capabilities: Capabilities, *, throwaway: bool) -> tuple[Strategy, ...]:
    """Return the strategies to choose from, the likeliest first.

    Args:
        wanted: "auto", or the name of a strategy.
        capabilities: of the server.
        throwaway: whether the server flushes nothing to disk. Copying files is then likely to be
            the quickest; elsewhere it forces a checkpoint, and the server's default comes first.

    Raises:
        CapabilityError: the server cannot copy as wanted.
    """
    possible = _possible(capabilities)
    if wanted != AUTO:
        if wanted not in possible:
            raise CapabilityError(
                f'copy = "{wanted}": PostgreSQL {capabilities.version_text} cannot copy that way,'
                f" only by {', '.join(possible)}",
                remedy=f'set copy = "auto"{", or use PostgreSQL 18" if wanted == "clone" else ""}',
            )
        return (Strategy(wanted),)
    if throwaway:
        possible.sort(key=[Strategy.FILE_COPY, Strategy.CLONE, Strategy.WAL_LOG].index)
    return tuple(possible)


def _possible(capabilities: Capabilities) -> list[Strategy]:
    """Return the strategies that the server knows.

    Whether its file system can share blocks is not known here. Where it cannot, the kernel copies
    the blocks, and nothing fails.
    """
    if capabilities.major < _STRATEGY_MAJOR:
        return [Strategy.FILE_COPY]
    possible = [Strategy.WAL_LOG, Strategy.FILE_COPY]
    return [*possible, Strategy.CLONE] if "clone" in capabilities.file_copy_methods else possible
