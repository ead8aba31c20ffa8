"""Making, parking and adopting one clone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from clonepool.errors import ClonepoolError, ServerUnavailableError, StatementError
from clonepool.postgres import databases
from clonepool.postgres.clones.properties import (
    NO_PROPERTIES,
    Properties,
    give_properties,
    read_properties,
)
from clonepool.postgres.gateway import NO_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.session import Session

_QUERY_CANCELED = "57014"
_RELATIONS = """\
SELECT count(*)::int AS relations,
       count(*) FILTER (WHERE relpersistence = 'u')::int AS unlogged,
       sum(hashtextextended(concat_ws(',', c.oid, relname, relnamespace, relkind, relfilenode,
           CASE WHEN relpersistence = 'u' THEN pg_relation_size(c.oid) END), 0))::text AS digest,
       (SELECT datconnlimit <> -2 FROM pg_database WHERE datname = current_database()) AS valid
  FROM pg_catalog.pg_class c
 WHERE relpersistence <> 't'
"""


class Contents(msgspec.Struct, frozen=True):
    """What a database holds, according to pg_class.

    Attributes:
        relations: how many there are.
        digest: of their OIDs, names, kinds and files, and of the sizes of unlogged relations, which
            a crash of the server empties, in the generation too.
        properties: of the database itself.
        unlogged: how many of the relations are unlogged.
    """

    relations: int
    digest: str
    properties: Properties = NO_PROPERTIES
    unlogged: int = 0


class DamagedError(ServerUnavailableError):
    """A generation is not what it was; templates that extend it wait until it is rebuilt."""


class IncompleteCloneError(ClonepoolError):
    """A copy does not hold what its generation holds."""

    code = "clone_failed"


class TooSlowError(ServerUnavailableError):
    """A copy exceeded its time limit."""


async def read_contents(session: Session) -> Contents:
    """Read what the database of this session holds.

    Raises:
        IncompleteCloneError: a DROP DATABASE was interrupted, which made the database invalid.
    """
    (row,) = await session.rows(_RELATIONS)
    if not row["valid"]:
        raise IncompleteCloneError("the database is invalid (datconnlimit = -2)")
    properties = await read_properties(session)
    return Contents(row["relations"], row["digest"], properties, row["unlogged"])


async def make_clone(  # noqa: PLR0913 - what a clone is, and how it is copied, by name
    gateway: Gateway,
    name: str,
    generation: str,
    expected: Contents,
    *,
    options: str,
    facts: dict[str, Any],
    seconds: float,
    owner: str = "",
    settings: Mapping[str, str] = NO_SETTINGS,
) -> None:
    """Copy `generation` into `name`, check that the copy is complete, and prewarm it.

    The connection that checks the clone also prewarms it: PostgreSQL writes a database's cache file
    (`pg_internal.init`) at the first connection to it.

    Args:
        gateway: the way to the server.
        name: the clone's database name.
        generation: the sealed database's name.
        expected: what the generation holds.
        options: further options of CREATE DATABASE.
        facts: what the clone's comment says.
        seconds: time limit of the whole.
        owner: of the clone; empty for the daemon's own role.
        settings: of the session that copies.

    Raises:
        TooSlowError: it took longer than `seconds`.
        ServerUnavailableError: the server is gone.
        StatementError: the server refused.
        IncompleteCloneError: the copy is not what it should be. As after every other error, the
            database may exist, and the caller drops it.
    """
    try:
        with anyio.fail_after(seconds):
            await databases.create(
                gateway, name, generation, options, seconds, owner=owner, settings=settings
            )
            await give_properties(gateway, name, expected.properties)
            async with gateway.session(name) as session:
                found = await read_contents(session)
            await databases.annotate(gateway, name, facts)
    except TimeoutError as error:
        raise _too_slow(name, seconds) from error
    except StatementError as error:
        if error.sqlstate == _QUERY_CANCELED:
            raise _too_slow(name, seconds) from error
        raise
    if found != expected:
        raise IncompleteCloneError(f"clone {name} holds {found}, its generation {expected}")


async def park(gateway: Gateway, name: str, facts: dict[str, Any]) -> None:
    """Close a ready clone, so that it cannot be changed, then write `facts` into its comment.

    Raises:
        StatementError, ServerUnavailableError: it may be closed, but does not count as parked.
        ClonepoolError: a session on it does not end.
    """
    await databases.close(gateway, name)
    if not await databases.end_sessions(gateway, name):
        raise ClonepoolError(f"{name} cannot be parked: a session does not end")
    await databases.annotate(gateway, name, facts)


async def adopt(
    gateway: Gateway, name: str, expected: Contents, facts: dict[str, Any], seconds: float
) -> None:
    """Open a parked clone, and check that it is complete.

    The comment is replaced first, so that a clone whose adoption was interrupted does not count as
    parked any more.

    Raises:
        IncompleteCloneError: it is not; as after every other error, the caller drops it.
        StatementError, ServerUnavailableError: it is in an unknown state.
    """
    try:
        with anyio.fail_after(seconds):
            await databases.annotate(gateway, name, facts)
            await databases.unseal(gateway, name)
            async with gateway.session(name) as session:
                found = await read_contents(session)
    except TimeoutError as error:
        raise _too_slow(name, seconds) from error
    if found.digest != expected.digest or found.relations != expected.relations:
        raise IncompleteCloneError(f"parked clone {name} holds {found}, not {expected}")


def _too_slow(name: str, seconds: float) -> TooSlowError:
    return TooSlowError(
        f"making clone {name} took longer than {seconds:g} s",
        remedy="raise the template's create_timeout, or find out what the server is busy with",
    )
