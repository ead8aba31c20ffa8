"""Building a generation: under a temporary name, sealed, renamed last.

Only a database that carries its final name is a generation, and only a whole one gets it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio
import msgspec

from clonepool.core.naming import Identity, Kind
from clonepool.errors import ClonepoolError, StatementError, TemplateFailedError
from clonepool.postgres import databases, psql
from clonepool.postgres.clones import Contents, read_contents
from clonepool.postgres.rewind.survey import CREATE_FUNCTIONS
from clonepool.postgres.sources import SqlFile, fingerprint, generation_name, resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clonepool.core.naming import Namer
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.gateway import Gateway

FREEZE_SECONDS = 600.0


class Recipe(msgspec.Struct, frozen=True):
    """How one template is made.

    Attributes:
        sql: files and globs, relative to `directory`.
        seconds: for the whole build.
        role: who is to own it and what is in it; empty for our own role.
        rewindable: whether it gets the function by which its clones' pages are looked at.
    """

    template: str
    sql: list[str]
    directory: Path
    seconds: float
    role: str = ""
    rewindable: bool = False


class Generation(msgspec.Struct, frozen=True):
    """A sealed database and what it holds.

    Attributes:
        short: the fingerprint as it stands in names.
        size_bytes: on the server's disk.
        reused: whether an earlier daemon built it.
    """

    short: str
    database: str
    contents: Contents
    size_bytes: int
    reused: bool


class Builder:
    """Builds generations on one server.

    Args:
        gateway: the way to the server.
        namer: makes the names.
        capabilities: what decides the result beside the files.
        psql: the program.
        next_serial: gives temporary databases their numbers.
    """

    def __init__(
        self,
        gateway: Gateway,
        namer: Namer,
        capabilities: Capabilities,
        psql: Path,
        next_serial: Callable[[], int],
    ) -> None:
        self._gateway = gateway
        self._namer = namer
        self._capabilities = capabilities
        self._psql = psql
        self._next_serial = next_serial

    async def ensure(self, recipe: Recipe) -> Generation:
        """Return the generation of this recipe, built now unless it exists.

        Raises:
            TemplateFailedError: nothing of the build is left on the server.
            ServerUnavailableError: the server is gone; what is left is dropped at the next start.
        """
        files = await anyio.to_thread.run_sync(resolve, recipe.sql, recipe.directory)
        full = fingerprint(files, self._facts(recipe))
        short = generation_name(full)
        name = self._namer.name(Identity(Kind.GENERATION, recipe.template, short, 0))
        found = await self._find(name, full)
        if found is not None:
            return Generation(short, name, found, await self._size(name), reused=True)
        try:
            with anyio.fail_after(recipe.seconds):
                contents = await self._build(recipe, files, name, short, full)
        except TimeoutError:
            raise TemplateFailedError(
                f"building {recipe.template} took longer than {recipe.seconds:g} s",
                remedy="raise build_timeout",
            ) from None
        except StatementError as error:
            raise TemplateFailedError(str(error)) from error
        return Generation(short, name, contents, await self._size(name), reused=False)

    async def drop_stale(self, current: set[str], templates: set[str]) -> list[str]:
        """Drop the generations of `templates` that are not `current`; return their names."""
        ours, _ = await databases.list_ours(self._gateway, self._namer)
        stale = [
            database
            for database in ours
            if database.identity.kind is Kind.GENERATION
            and database.name not in current
            and database.identity.template in templates
        ]
        for database in stale:
            await databases.drop(self._gateway, database.name, sealed=True)
        return [database.name for database in stale]

    async def _find(self, name: str, full: str) -> Contents | None:
        """Return what an existing generation holds, or None; drop one that is not whole."""
        ours, _ = await databases.list_ours(self._gateway, self._namer)
        for database in ours:
            if database.name != name:
                continue
            facts = database.comment
            if database.sealed and database.valid and facts.get("fingerprint") == full:
                with contextlib.suppress(msgspec.ValidationError):
                    return msgspec.convert(facts.get("contents"), Contents)
            await databases.drop(self._gateway, name, sealed=True)
        return None

    async def _build(
        self, recipe: Recipe, files: list[SqlFile], name: str, short: str, full: str
    ) -> Contents:
        identity = Identity(Kind.BUILD, recipe.template, short, self._next_serial())
        temporary = self._namer.name(identity)
        try:
            await databases.create(
                self._gateway, temporary, "template0", "", recipe.seconds, owner=recipe.role
            )
            for file in files:
                await psql.run_file(
                    self._psql,
                    self._gateway.endpoint,
                    temporary,
                    file.path.resolve(),
                    seconds=recipe.seconds,
                    role=recipe.role,
                )
            contents = await self._freeze(temporary, rewindable=recipe.rewindable)
            facts = {"template": recipe.template, "fingerprint": full, "kind": "generation"}
            await databases.annotate(
                self._gateway, temporary, {**facts, "contents": msgspec.to_builtins(contents)}
            )
            await databases.seal(self._gateway, temporary)
            await databases.rename(self._gateway, temporary, name)
        except BaseException:
            await self._remove(temporary)
            raise
        return contents

    async def _freeze(self, database: str, *, rewindable: bool) -> Contents:
        """Leave every page frozen, hinted and all-visible, statistics fresh, and read the digest.

        The checkpoint makes commits that were asynchronous known as committed to the VACUUM; it
        needs rights that an ordinary role lacks, and psql's sessions commit synchronously anyway.
        """
        async with self._gateway.session(database) as session:
            await session.execute(
                "SET client_min_messages = error; SET default_transaction_read_only = off"
            )
            if rewindable:
                for statement in CREATE_FUNCTIONS:
                    with contextlib.suppress(StatementError):  # contrib is not installed
                        await session.execute(statement)
            if self._capabilities.superuser:
                await session.execute("CHECKPOINT", seconds=FREEZE_SECONDS)
            # In this order: ANALYZE writes into pages that VACUUM is to leave frozen.
            await session.execute("ANALYZE", seconds=FREEZE_SECONDS)
            await session.execute("VACUUM (FREEZE)", seconds=FREEZE_SECONDS)
            return await read_contents(session)

    async def _remove(self, temporary: str) -> None:
        with anyio.move_on_after(databases.DROP_SECONDS, shield=True):
            try:
                await databases.drop(self._gateway, temporary, sealed=True)
            except ClonepoolError:
                return  # the server is gone; the next start sweeps it away

    async def _size(self, name: str) -> int:
        async with self._gateway.control() as session:
            return int(await session.value("SELECT pg_database_size($1)", name))

    def _facts(self, recipe: Recipe) -> dict[str, object]:
        return {
            "major": self._capabilities.major,
            "encoding": self._capabilities.encoding,
            "locale": self._capabilities.locale,
            "role": recipe.role or self._gateway.endpoint.user,
            "rewindable": recipe.rewindable,
        }
