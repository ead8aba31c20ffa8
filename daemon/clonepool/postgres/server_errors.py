"""Translates asyncpg's errors into clonepool's, in one place."""

from __future__ import annotations

from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

import asyncpg

from clonepool import resource_errors
from clonepool.core.limits import Limit
from clonepool.errors import ResourceError, ServerUnavailableError, StatementError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_EXHAUSTED = {"53100": Limit.STORAGE, "53300": Limit.CONNECTIONS}
"""Limits that are reached, by SQLSTATE."""
_UNDEFINED_FILE = "58P01"
"""SQLSTATE of a missing file, such as a library: the statement's fault, not the server's."""
CONNECT_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "": "make sure that the server runs, and that `server` says where",
        "28000": "let the daemon's role in: a line for it in pg_hba.conf, for all databases, then"
        " SELECT pg_reload_conf()",
        "28P01": "check the password: in the URL, PGPASSWORD or the file that PGPASSFILE names",
        "3D000": "name an existing database in the URL, such as postgres",
        "53300": "raise the server's max_connections, or end sessions",
    }
)
_GONE_CLASSES = ("08", "53", "57P", "58")
"""Beginnings of SQLSTATEs that mean that the server is gone or out of resources."""
_NO_REMEDIES: Mapping[str, str] = MappingProxyType({})


def is_unavailable(sqlstate: str) -> bool:
    """Say whether the SQLSTATE means that the server is gone or out of resources."""
    return sqlstate.startswith(_GONE_CLASSES) and sqlstate != _UNDEFINED_FILE


@contextmanager
def translated(doing: str, remedies: Mapping[str, str] = _NO_REMEDIES) -> Iterator[None]:
    """Turn asyncpg's errors into clonepool's.

    Args:
        doing: what is being done, for the message.
        remedies: texts by SQLSTATE; the one by an empty key is for a missing answer.

    Raises:
        ResourceError: the server's disk is full, its connections are used up, or this machine is
            short of file descriptors or memory.
        ServerUnavailableError: the server cannot be reached, has closed the connection, is out of
            other resources, or too slow.
        StatementError: the server refused, with its SQLSTATE.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        sqlstate = error.sqlstate or "XX000"
        message, remedy = f"{doing}: {error} (SQLSTATE {sqlstate})", remedies.get(sqlstate, "")
        if sqlstate in _EXHAUSTED:
            limit = _EXHAUSTED[sqlstate]
            raise ResourceError(message, limit=limit, remedy=remedy) from error
        if is_unavailable(sqlstate):
            raise ServerUnavailableError(message, remedy=remedy) from error
        raise StatementError(message, sqlstate=sqlstate, remedy=remedy) from error
    except TimeoutError as error:
        remedy = remedies.get("", "")
        raise ServerUnavailableError(f"{doing}: no answer in time", remedy=remedy) from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        short = resource_errors.told(error, doing)
        away = ServerUnavailableError(f"{doing}: {error}", remedy=remedies.get("", ""))
        raise short or away from error
