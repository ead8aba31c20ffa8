"""Making one clone: copied, verified complete, prewarmed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from clonepool.errors import ClonepoolError, ServerUnavailableError, StatementError
from clonepool.postgres import databases
from clonepool.postgres.clones.properties import (
    NONE,
    Properties,
    give_properties,
    read_properties,
)
from clonepool.postgres.gateway import NO_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.postgres.gateway import Gateway, Session

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
    """What a database holds, told by its catalog.

    Attributes:
        relations: how many.
        digest: of their OIDs, names, kinds and files, and of the sizes of unlogged ones: a crash of
            the server empties those, in the generation too.
        properties: what belongs to the database and is not in it.
        unlogged: how many relations are.
    """

    relations: int
    digest: str
    properties: Properties = NONE
    unlogged: int = 0


class DamagedError(ServerUnavailableError):
    """A generation is not what it was; what was to be built on it waits until it is made anew."""


class IncompleteCloneError(ClonepoolError):
    """A copy does not hold what its generation holds."""

    code = "clone_failed"


class TooSlowError(ServerUnavailableError):
    """A copy took longer than it may."""


async def read_contents(session: Session) -> Contents:
    """Read what the database of this session holds.

    Raises:
        IncompleteCloneError: an interrupted DROP left the database good for nothing.
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
    """Copy `generation` into `name`, whole or not at all, and warm it up.

    The one connection that verifies the clone is also what prewarms it: PostgreSQL builds a
    database's caches (`pg_internal.init`) on its first connection.

    Args:
        gateway: the way to the server.
        name: the clone's database name.
        generation: the sealed database's name.
        expected: what the generation holds.
        options: further words of CREATE DATABASE.
        facts: what the clone's comment tells people.
        seconds: for all of it.
        owner: of the clone; empty for our own role.
        settings: of the session that copies.

    Raises:
        TooSlowError: it took longer than `seconds`.
        ServerUnavailableError: the server is gone.
        StatementError: the server refused.
        IncompleteCloneError: the copy is not what it should be. The database may then exist and
            is to be dropped, as after every other error.
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
        if error.sqlstate == "57014":
            raise _too_slow(name, seconds) from error
        raise
    if found != expected:
        raise IncompleteCloneError(f"clone {name} holds {found}, its generation {expected}")


async def park(gateway: Gateway, name: str, facts: dict[str, Any]) -> None:
    """Seal a clone that is ready, so that nobody can change it, then write down that it is.

    Raises:
        StatementError, ServerUnavailableError: it may be sealed; it does not count as parked.
        ClonepoolError: somebody is connected to it and does not go.
    """
    await databases.close(gateway, name)
    if not await databases.end_sessions(gateway, name):
        raise ClonepoolError(f"{name} cannot be parked: a session does not end")
    await databases.annotate(gateway, name, facts)


async def adopt(
    gateway: Gateway, name: str, expected: Contents, facts: dict[str, Any], seconds: float
) -> None:
    """Open a parked clone and see that it is what its generation is.

    The mark goes first: if this is interrupted, nobody takes the clone for a parked one again.

    Raises:
        IncompleteCloneError: it is not; as after every other error it is to be dropped.
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
        remedy="raise the template's create_timeout, or look at what the server is busy with",
    )
