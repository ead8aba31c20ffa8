"""Generations on the server: finding, finishing and dropping them.

A database is a generation if it has a generation's name, which it is given only when it is
complete.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from clonepool.core.naming import Identity, Kind
from clonepool.errors import ClonepoolError, StatementError
from clonepool.postgres import databases, leftovers
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
"""Time limit of VACUUM FREEZE."""
_MAJOR = "SELECT current_setting('server_version_num')::int / 10000"
_SET_SEQUENCE = """\
SELECT format('SELECT setval(%L, last_value, is_called) FROM %s', oid::regclass, oid::regclass)
       AS sql FROM pg_catalog.pg_class WHERE relkind = 'S'
"""
"""Query of statements that set each sequence to what it is, so that its next value will be logged.
Of further values, PostgreSQL logs one in 32."""
_FLUSH = (
    "SET synchronous_commit = on;"
    " SELECT pg_catalog.pg_logical_emit_message(true, 'clonepool', 'flush')"
)


class Finish(msgspec.Struct, frozen=True):
    """How a database becomes a generation.

    Attributes:
        template: its template's name.
        short: stands for the generation in names.
        facts: what its comment tells the next daemon.
        rewindable: whether it gets the functions with which its clones are verified.
        analyze: whether statistics are gathered.
        owner: the role that owns it; empty for the daemon's own.
        builder: the login that filled it, which is removed; empty for none.
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
        """Drop the generations of `templates` except those to `keep`; return their names."""
        gone = [each.name for each in await self.of(templates) if each.name not in keep]
        for name in gone:
            await databases.drop(self._gateway, name, sealed=True)
        return gone

    async def find(self, template: str, inputs: Inputs) -> tuple[str, Contents] | None:
        """Return the newest generation of these inputs, and what it holds.

        One that has its name and is not complete is dropped.
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
        """Turn a database that is filled into a generation.

        Args:
            temporary: its name so far.
            finish: how.
            check: called when the contents will not change any more; raises to refuse them.

        Raises:
            ClonepoolError: the database still has its temporary name; the caller removes it.
        """
        if finish.builder:
            # Programs that filled it may have left sessions.
            await databases.end_sessions(self._gateway, temporary)
        await leftovers.refuse_prepared(self._gateway, temporary)  # it would hold locks
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
        """Drop the database of a build that failed, even if this task is cancelled."""
        with anyio.move_on_after(databases.DROP_SECONDS, shield=True):
            try:
                await databases.drop(self._gateway, temporary, sealed=True)
                await self._roles.remove(temporary)
            except ClonepoolError:
                return  # the server is gone; the next start removes the database

    async def size(self, name: str) -> int:
        """Return the size of a database in bytes."""
        async with self._gateway.control() as session:
            return int(await session.value("SELECT pg_database_size($1)", name))

    async def _freeze(self, database: str, *, rewindable: bool, analyze: bool) -> Contents:
        """Freeze all rows, set hint bits and visibility, gather statistics, and read the contents.

        Hint bits are set only for commits that are flushed. Asynchronous commits may not be, so a
        synchronous commit that wrote something comes first, which flushes all before it.
        """
        async with self._gateway.session(database) as session:
            await session.execute(QUIET)
            if rewindable:
                for statement in create_functions(await session.value(_MAJOR)):
                    with contextlib.suppress(StatementError):  # amcheck is not installed
                        await session.execute(statement)
                for row in await session.rows(_SET_SEQUENCE):
                    await session.execute(row["sql"])
            await session.execute(_FLUSH)
        # ANALYZE comes first, because it writes to pages that VACUUM then freezes.
        if analyze:
            await gather_statistics(self._gateway, database)
        async with self._gateway.session(database) as session:
            await session.execute(QUIET)
            await session.execute("VACUUM (FREEZE)", seconds=FREEZE_SECONDS)
            return await read_contents(session)


def built_at(database: databases.Database) -> float:
    """Return when a generation was built, in Unix seconds; 0 if that is not known."""
    return float(database.comment.get("built_at") or 0)


def contents_of(database: databases.Database) -> Contents | None:
    """Return what a generation holds; None if it is not complete or its comment does not say."""
    if not (database.sealed and database.valid):
        return None
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(database.comment.get("contents"), Contents)
    return None
