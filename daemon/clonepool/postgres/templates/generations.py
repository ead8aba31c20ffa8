"""Generations on the server: found, finished, dropped.

Only a database that carries its final name is a generation, and only a whole one gets it.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from clonepool.core.naming import Identity, Kind
from clonepool.errors import ClonepoolError, StatementError
from clonepool.postgres import databases
from clonepool.postgres.clones import leftovers
from clonepool.postgres.clones.lifecycle import Contents, read_contents
from clonepool.postgres.rewind.indexes import create_functions
from clonepool.postgres.templates.analyze import QUIET, gather_statistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from clonepool.core.naming import Namer
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.roles import Roles
    from clonepool.postgres.templates.recipe import Inputs

FREEZE_SECONDS = 600.0
_MAJOR = "SELECT current_setting('server_version_num')::int / 10000"
_SET_SEQUENCE = """\
SELECT format('SELECT setval(%L, last_value, is_called) FROM %s', oid::regclass, oid::regclass)
       AS sql FROM pg_catalog.pg_class WHERE relkind = 'S'
"""
"""Afterwards the next value that is taken of it is logged; of later ones PostgreSQL logs one in
32."""
_FLUSH = (
    "SET synchronous_commit = on;"
    " SELECT pg_catalog.pg_logical_emit_message(true, 'clonepool', 'flush')"
)


class Finish(msgspec.Struct, frozen=True):
    """How a database becomes a generation.

    Attributes:
        template: whose.
        short: stands for the generation in names.
        facts: what its comment tells the next daemon.
        rewindable: whether it gets the functions by which its clones' pages are looked at.
        analyze: whether statistics are gathered.
        owner: who owns it.
        builder: the login that filled it, and is to be removed; empty for none.
    """

    template: str
    short: str
    facts: dict[str, Any]
    rewindable: bool
    analyze: bool
    owner: str = ""
    builder: str = ""


async def _nothing() -> None:
    """Do nothing."""


class Generations:
    """The generations of one instance on one server."""

    def __init__(self, gateway: Gateway, namer: Namer, roles: Roles) -> None:
        self._gateway = gateway
        self._namer = namer
        self._roles = roles

    def name(self, template: str, short: str) -> str:
        """Return the name of a generation's database."""
        return self._namer.name(Identity(Kind.GENERATION, template, short, 0))

    def temporary_name(self, template: str, short: str, serial: int) -> str:
        """Return the name under which a generation is built."""
        return self._namer.name(Identity(Kind.BUILD, template, short, serial))

    async def of(self, templates: Collection[str]) -> list[databases.Database]:
        """Return the generations of these templates that are on the server, the newest first."""
        ours, _ = await databases.list_ours(self._gateway, self._namer)
        found = [
            database
            for database in ours
            if database.identity.kind is Kind.GENERATION and database.identity.template in templates
        ]
        return sorted(found, key=built_at, reverse=True)

    async def drop_others(self, templates: Collection[str], keep: Collection[str]) -> list[str]:
        """Drop the generations of `templates` but those to `keep`; return their names."""
        gone = [each.name for each in await self.of(templates) if each.name not in keep]
        for name in gone:
            await databases.drop(self._gateway, name, sealed=True)
        return gone

    async def find(self, template: str, inputs: Inputs) -> tuple[str, Contents] | None:
        """Return the newest generation of these inputs, and what it holds.

        One that has its name and is not whole is dropped.
        """
        for database in await self.of({template}):
            short = database.identity.generation
            if database.comment.get("fingerprint") == inputs.full:
                contents = contents_of(database)
                if contents is not None:
                    return short, contents
            if short == inputs.short:
                await databases.drop(self._gateway, database.name, sealed=True)
        return None

    async def finish(
        self,
        temporary: str,
        finish: Finish,
        check: Callable[[], Awaitable[None]] = _nothing,
    ) -> Contents:
        """Make a generation of a database that is filled.

        Args:
            temporary: its name so far.
            finish: what it becomes.
            check: is called when nothing more will change, and may object by raising.

        Raises:
            ClonepoolError: it still has its temporary name, and is to be removed.
        """
        if finish.builder:
            # Programs that filled it may have left something running: it is over now.
            await databases.end_sessions(self._gateway, temporary)
        await leftovers.refuse_prepared(self._gateway, temporary)  # its locks would be in the way
        if finish.builder:
            await self._roles.take_back(temporary, finish.builder, finish.owner)
        contents = await self._freeze(
            temporary, rewindable=finish.rewindable, analyze=finish.analyze
        )
        await check()
        facts = {
            **finish.facts,
            "template": finish.template,
            "kind": "generation",
            "owner": finish.owner,
            "built_at": round(time.time(), 3),
            "contents": msgspec.to_builtins(contents),
        }
        await databases.annotate(self._gateway, temporary, facts)
        await databases.seal(self._gateway, temporary)
        await leftovers.refuse_prepared(self._gateway, temporary)
        await databases.rename(self._gateway, temporary, self.name(finish.template, finish.short))
        return contents

    async def remove(self, temporary: str) -> None:
        """Drop what became of a build that failed, also when nobody waits for it any more."""
        with anyio.move_on_after(databases.DROP_SECONDS, shield=True):
            try:
                await databases.drop(self._gateway, temporary, sealed=True)
                await self._roles.remove(temporary)
            except ClonepoolError:
                return  # the server is gone; the next start sweeps it away

    async def size(self, name: str) -> int:
        """Return what a database takes, in bytes."""
        async with self._gateway.control() as session:
            return int(await session.value("SELECT pg_database_size($1)", name))

    async def _freeze(self, database: str, *, rewindable: bool, analyze: bool) -> Contents:
        """Leave every page frozen, hinted and all-visible, statistics fresh, and read the digest.

        A row is only hinted when its commit has reached the disk, as far as the server knows. One
        that was asynchronous may not have; a synchronous one of ours, that wrote something, takes
        all before it along.
        """
        async with self._gateway.session(database) as session:
            await session.execute(QUIET)
            if rewindable:
                for statement in create_functions(await session.value(_MAJOR)):
                    with contextlib.suppress(StatementError):  # contrib is not installed
                        await session.execute(statement)
                for row in await session.rows(_SET_SEQUENCE):
                    await session.execute(row["sql"])
            await session.execute(_FLUSH)
        # In this order: ANALYZE writes into pages that VACUUM is to leave frozen.
        if analyze:
            await gather_statistics(self._gateway, database)
        async with self._gateway.session(database) as session:
            await session.execute(QUIET)
            await session.execute("VACUUM (FREEZE)", seconds=FREEZE_SECONDS)
            return await read_contents(session)


def built_at(database: databases.Database) -> float:
    """Return when a generation was built, in Unix seconds; 0 when that is not known."""
    return float(database.comment.get("built_at") or 0)


def contents_of(database: databases.Database) -> Contents | None:
    """Return what a generation holds, None when it is not whole or does not say."""
    if not (database.sealed and database.valid):
        return None
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(database.comment.get("contents"), Contents)
    return None
