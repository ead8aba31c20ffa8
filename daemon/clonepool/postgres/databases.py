"""The databases of one instance on one server: listing, creating, sealing, renaming, dropping."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from clonepool.core.backoff import Backoff
from clonepool.errors import StatementError
from clonepool.postgres import leftovers
from clonepool.postgres.gateway import NO_SETTINGS
from clonepool.postgres.quoting import identifier, literal
from clonepool.postgres.session import STATEMENT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from clonepool.core.naming import Identity, Namer
    from clonepool.postgres.gateway import Gateway

DROP_SECONDS = 120.0
"""Time limit of DROP DATABASE."""
OBJECT_IN_USE = "55006"
DUPLICATE_DATABASE = "42P04"
WRONG_OBJECT_TYPE = "42809"
INVALID_CATALOG_NAME = "3D000"
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
"""Seconds between two tries of a copy; each pause is twice as long as the one before."""
_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.002, 0.1
"""Seconds between two looks at whether sessions that were told to end have ended."""
_OF_CLIENTS = "coalesce(backend_type, 'client backend') = 'client backend'"
"""SQL that is true of clients. An ordinary role does not see the type of other roles' backends."""

_MOST_COMMENT = 65_536
_COMMENT = f"left(shobj_description(oid, 'pg_database'), {_MOST_COMMENT})"
"""SQL of a comment. Others may have written one that is longer than the daemon's ever are."""


class Database(msgspec.Struct, frozen=True):
    """A database whose name proves that this instance made it."""

    name: str
    identity: Identity
    sealed: bool
    open: bool
    valid: bool
    comment: dict[str, Any]


async def list_ours(gateway: Gateway, namer: Namer) -> tuple[list[Database], list[str]]:
    """Return the instance's databases, and the names of others that only look like them."""
    async with gateway.control() as session:
        rows = await session.rows(
            "SELECT datname, datistemplate AND NOT datallowconn AS sealed, datallowconn AS open,"
            f" datconnlimit <> -2 AS valid, {_COMMENT} AS comment"
            " FROM pg_database ORDER BY datname"
        )
    ours, lookalikes = [], []
    for row in rows:
        identity = namer.parse(row["datname"])
        if identity is not None:
            ours.append(
                Database(
                    row["datname"],
                    identity,
                    row["sealed"],
                    row["open"],
                    row["valid"],
                    _read(row["comment"]),
                )
            )
        elif namer.resembles(row["datname"]):
            lookalikes.append(row["datname"])
    return ours, lookalikes


async def create(
    gateway: Gateway,
    name: str,
    source: str,
    options: str,
    seconds: float,
    *,
    owner: str = "",
    settings: Mapping[str, str] = NO_SETTINGS,
) -> None:
    """Copy `source` into the new database `name`.

    While a session is connected to the source (SQLSTATE 55006) this is tried again, with jitter and
    without holding a connection in between. After an error the database does not exist.

    Args:
        gateway: the way to the server.
        name: of the new database.
        source: a generation, or template0.
        options: further options of CREATE DATABASE, such as a strategy; may be empty.
        seconds: time limit of all tries together.
        owner: of the new database; empty for the daemon's own role.
        settings: of the session that copies.
    """
    if owner:
        options = f"OWNER {identifier(owner)} {options}"
    sql = f"CREATE DATABASE {identifier(name)} TEMPLATE {identifier(source)} {options}"
    deadline = anyio.current_time() + seconds
    backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
    while True:
        left = max(0.001, deadline - anyio.current_time())
        try:
            await gateway.ddl(sql, seconds=left, settings=settings)
        except StatementError as error:
            pause = backoff.next_pause()
            if error.sqlstate != OBJECT_IN_USE or anyio.current_time() + pause > deadline:
                raise
        else:
            return
        await anyio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def annotate(gateway: Gateway, name: str, facts: dict[str, Any]) -> None:
    """Write `facts` as JSON into the database's comment."""
    text = literal(json.dumps({"clonepool": 1, **facts}, sort_keys=True))
    await gateway.ddl(f"COMMENT ON DATABASE {identifier(name)} IS {text}")


async def vacuum_shared(gateway: Gateway) -> None:
    """Vacuum the shared catalogs that databases and logins are in, where autovacuum is off.

    Raises:
        StatementError, ServerUnavailableError: some of them may not be vacuumed.
    """
    await gateway.ddl(
        "VACUUM pg_authid, pg_auth_members, pg_database, pg_db_role_setting, pg_shdepend,"
        " pg_shdescription"
    )


async def read_comment(gateway: Gateway, name: str) -> dict[str, Any]:
    """Return the facts in a database's comment; none if there is no such database."""
    async with gateway.control() as session:
        rows = await session.rows(
            f"SELECT {_COMMENT} AS comment FROM pg_database WHERE datname = $1",
            name,
        )
    return _read(rows[0]["comment"]) if rows else {}


async def seal(gateway: Gateway, name: str) -> None:
    """Make a database a template without connections allowed, and end the sessions on it."""
    await gateway.ddl(
        f"ALTER DATABASE {identifier(name)} WITH ALLOW_CONNECTIONS false IS_TEMPLATE true"
    )
    await end_sessions(gateway, name)


async def close(gateway: Gateway, name: str) -> None:
    """Refuse new connections to a database; open sessions stay."""
    await gateway.ddl(f"ALTER DATABASE {identifier(name)} WITH ALLOW_CONNECTIONS false")


async def unseal(gateway: Gateway, name: str) -> None:
    """Let clients connect to a database again; it is no longer a template."""
    await gateway.ddl(
        f"ALTER DATABASE {identifier(name)} WITH ALLOW_CONNECTIONS true IS_TEMPLATE false"
    )


async def rename(gateway: Gateway, name: str, new_name: str) -> None:
    """Give a sealed database its final name."""
    await gateway.ddl(f"ALTER DATABASE {identifier(name)} RENAME TO {identifier(new_name)}")


async def drop(gateway: Gateway, name: str, *, sealed: bool = False) -> None:
    """Drop a database of the instance and end its sessions; it may be gone already.

    What a lease may have left that prevents this is removed first: the template flag, prepared
    transactions, replication slots, subscriptions.
    """
    try:
        if sealed:
            await _unmark_template(gateway, name)
        await _force_drop(gateway, name)
    except StatementError as error:
        if error.sqlstate == INVALID_CATALOG_NAME:
            return
        if error.sqlstate == WRONG_OBJECT_TYPE:
            await _unmark_template(gateway, name)
        elif error.sqlstate == OBJECT_IN_USE:
            await leftovers.clear(gateway, name)
        else:
            raise
        await _force_drop(gateway, name)


async def _force_drop(gateway: Gateway, name: str) -> None:
    await gateway.ddl(
        f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)", seconds=DROP_SECONDS
    )


async def _unmark_template(gateway: Gateway, name: str) -> None:
    """Take the template flag off a database, so that it can be dropped.

    A database whose drop was interrupted is no longer a template, and cannot be altered.
    """
    async with gateway.control() as session:
        marked = await session.rows(
            "SELECT FROM pg_database WHERE datname = $1 AND datistemplate", name
        )
    if marked:
        await gateway.ddl(f"ALTER DATABASE {identifier(name)} WITH IS_TEMPLATE false")


async def sessions(gateway: Gateway, name: str, but: int = 0) -> list[dict[str, Any]]:
    """Return the sessions on a database, and those of its login elsewhere.

    Each has pid, application_name, state and query.

    Args:
        gateway: the way to the server.
        name: of the database.
        but: process id of a backend to leave out.
    """
    async with gateway.control() as session:
        return await session.rows(
            "SELECT pid, coalesce(application_name, '') AS application_name,"
            " coalesce(state, '') AS state, left(coalesce(query, ''), 500) AS query"
            " FROM pg_stat_activity"
            f" WHERE (datname = $1 OR usename = $1) AND pid <> $2 AND {_OF_CLIENTS}",
            name,
            but,
        )


async def end_sessions(
    gateway: Gateway,
    name: str,
    *,
    seconds: float = STATEMENT_SECONDS,
    clients_only: bool = False,
    but: int = 0,
) -> bool:
    """End all sessions on a database and wait until they are gone; say whether they are.

    Sessions of its login, which has the same name, are ended on whichever database they are.

    Args:
        gateway: the way to the server.
        name: of the database.
        seconds: how long to wait.
        clients_only: whether to leave the server's own workers, which an ordinary role cannot end.
        but: process id of a backend to leave.
    """
    which = "(datname = $1 OR usename = $1) AND pid <> $2"
    if clients_only:
        which += f" AND {_OF_CLIENTS}"
    backoff = Backoff(_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS)
    with anyio.move_on_after(seconds):
        while True:
            async with gateway.control() as session:
                left = await session.rows(
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which}",
                    name,
                    but,
                )
            if not left:
                return True
            await anyio.sleep(backoff.next_pause())
    return False


async def awaited_databases(gateway: Gateway, names: Collection[str]) -> list[str]:
    """Return those of these databases for which a session waits to use them alone."""
    async with gateway.control() as session:
        rows = await session.rows(
            "SELECT DISTINCT datname FROM pg_locks JOIN pg_database d ON d.oid = objid"
            " WHERE locktype = 'object' AND classid = 'pg_database'::regclass"
            " AND mode IN ('ShareLock', 'AccessExclusiveLock') AND datname = ANY ($1)",
            sorted(names),
        )
    return [row["datname"] for row in rows]


def _read(comment: str | None) -> dict[str, Any]:
    """Return the facts in a comment; none if it is not one of ours."""
    try:
        facts = json.loads(comment or "{}")
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("clonepool") == 1 else {}
