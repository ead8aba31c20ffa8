"""Building a generation: under a temporary name, sealed, renamed last.

Only a database that carries its final name is a generation, and only a whole one gets it.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from clonepool.config import DumpSection
from clonepool.core.naming import Identity, Kind
from clonepool.errors import ClonepoolError, StatementError, TemplateFailedError
from clonepool.postgres import databases, escapes, programs, psql
from clonepool.postgres.clones import Contents, read_contents
from clonepool.postgres.commands import run_command
from clonepool.postgres.dumps import Restorer
from clonepool.postgres.gateway import identifier, literal
from clonepool.postgres.lock import BuildLock
from clonepool.postgres.properties import Properties, elements, give_properties, properties_of
from clonepool.postgres.recipe import Generation, Inputs, Recipe, add_options, is_url, read_files
from clonepool.postgres.rewind.survey import CREATE_FUNCTIONS
from clonepool.postgres.sources import Digests, generation_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.config import DatabaseSection
    from clonepool.core.naming import Namer
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.gateway import Gateway

FREEZE_SECONDS = 600.0
MOST_TRIES = 3
"""So often a build begins anew because a source was changed while it was under way."""


class Step(msgspec.Struct, frozen=True):
    """Where a build is.

    Attributes:
        what: is done now, such as a file's name.
        number: of the step, from 1.
        steps: how many there are.
        seconds: since the build began.
    """

    what: str
    number: int
    steps: int
    seconds: float


class _ChangedMeanwhileError(ClonepoolError):
    """What was built is neither what the sources were nor what they are."""

    code = "template_changed"


class Builder:
    """Builds generations on one server.

    Args:
        gateway: the way to the server.
        namer: makes the names.
        capabilities: what decides the result beside the files.
        psql: the program; PostgreSQL's others are beside it.
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
        self._digests = Digests()
        self.tried: dict[str, str] = {}
        """By template: the fingerprint that was last built or found, or was to be."""

    async def inputs(self, recipe: Recipe) -> Inputs:
        """Look at everything that decides what a template holds.

        Raises:
            TemplateFailedError: something is missing.
            ServerUnavailableError: the server does not say.
        """
        files = await anyio.to_thread.run_sync(read_files, recipe, self._digests)
        return await add_options(files, recipe, self._gateway, self._capabilities)

    async def ensure(
        self,
        recipe: Recipe,
        tell: Callable[[Step], None] = lambda _: None,
        *,
        anew: bool = False,
    ) -> Generation:
        """Return the generation of this recipe, built now unless it exists.

        Args:
            recipe: what it is made from.
            tell: is told of each step of a build.
            anew: build it in any case, for inputs that cannot be seen, such as a database.

        Raises:
            TemplateFailedError: nothing of the build is left on the server.
            ServerUnavailableError: the server is gone; what is left is dropped at the next start.
        """
        try:
            with anyio.fail_after(recipe.section.build_timeout):
                for _ in range(MOST_TRIES):
                    with contextlib.suppress(_ChangedMeanwhileError):
                        return await self._ensure_once(recipe, tell, anew=anew)
        except TimeoutError:
            raise TemplateFailedError(
                f"building {recipe.template} took longer than {recipe.section.build_timeout:g} s",
                remedy="raise build_timeout",
            ) from None
        except StatementError as error:
            raise TemplateFailedError(str(error)) from error
        raise TemplateFailedError(
            f"what {recipe.template} is made from changed during each of {MOST_TRIES} builds",
            remedy="let the command not write into files that it watches",
        )

    async def _ensure_once(
        self, recipe: Recipe, tell: Callable[[Step], None], *, anew: bool
    ) -> Generation:
        inputs = await self.inputs(recipe)
        self.tried[recipe.template] = inputs.full
        async with BuildLock(self._gateway, f"{recipe.template} {inputs.full}"):
            found = None if anew else await self._find(recipe.template, inputs)
            # Built anew it may hold something else: its clones are not to be taken for old ones.
            number = f" {self._next_serial()}" if anew else ""
            short = generation_name(inputs.full + number)
            short, contents = found or (
                short,
                await self._build(recipe, inputs, short, tell),
            )
        name = self._name(recipe.template, short)
        return Generation(
            short,
            inputs.full,
            name,
            contents,
            await self._size(name),
            reused=found is not None,
            inputs=inputs.entries,
        )

    def _name(self, template: str, short: str) -> str:
        return self._namer.name(Identity(Kind.GENERATION, template, short, 0))

    async def generations(self, templates: set[str]) -> list[databases.Database]:
        """Return the generations of these templates that are on the server."""
        ours, _ = await databases.list_ours(self._gateway, self._namer)
        return [
            database
            for database in ours
            if database.identity.kind is Kind.GENERATION and database.identity.template in templates
        ]

    async def drop_stale(self, current: set[str], templates: set[str]) -> list[str]:
        """Drop the generations of `templates` that are not `current`; return their names."""
        stale = [each.name for each in await self.generations(templates)]
        gone = [name for name in stale if name not in current]
        for name in gone:
            await databases.drop(self._gateway, name, sealed=True)
        return gone

    async def _find(self, template: str, inputs: Inputs) -> tuple[str, Contents] | None:
        """Return the newest generation of these inputs, and what it holds.

        One that has its name and is not whole is dropped.
        """
        there = await self.generations({template})
        there.sort(key=lambda each: int(each.comment.get("built_at") or 0), reverse=True)
        for database in there:
            facts, short = database.comment, database.identity.generation
            if facts.get("fingerprint") == inputs.full and database.sealed and database.valid:
                with contextlib.suppress(msgspec.ValidationError):
                    return short, msgspec.convert(facts.get("contents"), Contents)
            if short == inputs.short:
                await databases.drop(self._gateway, database.name, sealed=True)
        return None

    async def _build(
        self, recipe: Recipe, inputs: Inputs, short: str, tell: Callable[[Step], None]
    ) -> Contents:
        identity = Identity(Kind.BUILD, recipe.template, short, self._next_serial())
        temporary = self._namer.name(identity)
        try:
            steps = self._steps(recipe, inputs, temporary)
            began = time.monotonic()
            for number, (what, step) in enumerate(steps, 1):
                tell(Step(what, number, len(steps) + 1, time.monotonic() - began))
                await step()
            tell(Step("sealing", len(steps) + 1, len(steps) + 1, time.monotonic() - began))
            contents = await self._freeze(temporary, recipe)
            await self._check_unchanged(recipe, inputs)
            await databases.annotate(
                self._gateway,
                temporary,
                {
                    "template": recipe.template,
                    "fingerprint": inputs.full,
                    "kind": "generation",
                    "built_at": int(time.time()),
                    "contents": msgspec.to_builtins(contents),
                    "inputs": inputs.entries,
                },
            )
            await databases.seal(self._gateway, temporary)
            await databases.rename(self._gateway, temporary, self._name(recipe.template, short))
        except BaseException:
            await self._remove(temporary)
            raise
        return contents

    async def _check_unchanged(self, recipe: Recipe, inputs: Inputs) -> None:
        if (await self.inputs(recipe)).full != inputs.full:
            raise _ChangedMeanwhileError("its sources were changed meanwhile")

    def _steps(
        self, recipe: Recipe, inputs: Inputs, database: str
    ) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """Return what is to be done, in order, each with what people are told."""
        section, directory = recipe.section, recipe.directory
        seconds = section.build_timeout
        steps: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("creating the database", lambda: self._create(recipe, database))
        ]
        if recipe.origin and is_url(recipe.origin.source):
            origin = recipe.origin
            steps.append(("copying the database", lambda: self._fetch(origin, recipe, database)))
        if section.extensions:
            steps.append(("extensions", lambda: self._extend(section.extensions, database)))
        if recipe.dump:
            dump = recipe.dump
            steps.append((dump.file, lambda: self._restore(dump, recipe, database)))
        steps += [
            (file.name, partial(self._run, file.path, recipe, database)) for file in inputs.sql
        ]
        if recipe.command:
            command, login = recipe.command, recipe.login or self._gateway.endpoint
            steps.append(
                (
                    "command",
                    lambda: run_command(command, login, database, directory, seconds=seconds),
                )
            )
        if section.settings:
            steps.append(("settings", lambda: self._set(section.settings, database)))
        return steps

    async def _create(self, recipe: Recipe, database: str) -> None:
        """Make the database: empty, or a copy of another of the same server."""
        section, seconds = recipe.section, recipe.section.build_timeout
        source, options = "template0", ""
        given = None
        if recipe.lower is not None:
            source, given = recipe.lower.database, recipe.lower.contents.properties
        elif recipe.origin and not is_url(recipe.origin.source):
            source = recipe.origin.source
            given = await self._prepare_origin(recipe.origin)
        if section.encoding:
            options += f" ENCODING {literal(section.encoding)}"
        if section.locale:
            options += f" LOCALE {literal(section.locale)}"
        try:
            await databases.create(
                self._gateway, database, source, options, seconds, owner=section.role
            )
        except StatementError as error:
            remedy = ""
            if error.sqlstate == databases.OBJECT_IN_USE:
                remedy = "end them, or set database.end_sessions"
            raise TemplateFailedError(str(error), remedy=remedy) from error
        if given is not None:
            await give_properties(self._gateway, database, given)

    async def _prepare_origin(self, origin: DatabaseSection) -> Properties:
        """Read what a copy of a database lacks; end sessions on it only if told to."""
        if origin.end_sessions:
            await databases.end_sessions(self._gateway, origin.source, clients_only=True)
        async with self._gateway.control() as session:
            return await properties_of(session, origin.source)

    async def _fetch(self, origin: DatabaseSection, recipe: Recipe, database: str) -> None:
        """Dump another server's database and restore it here."""
        seconds = recipe.section.build_timeout
        with tempfile.TemporaryDirectory(prefix="clonepool-copy-") as scratch:
            dump = Path(scratch) / "database.dump"
            done = await programs.run(
                [
                    str(self._psql.with_name("pg_dump")),
                    "--format=custom",
                    f"--file={dump}",
                    f"--dbname={origin.source}",
                    "--no-password",
                ],
                env={**programs.inherited(), "LC_ALL": "C", "PGAPPNAME": "clonepool"},
                directory=Path(scratch),
                seconds=seconds,
                what="pg_dump",
            )
            if done.code:
                raise TemplateFailedError(
                    f"database: {done.output}", remedy="see that the URL is right and reachable"
                )
            await self._restorer(recipe).restore(
                dump, DumpSection(str(dump)), database, seconds=seconds
            )

    async def _extend(self, extensions: list[str], database: str) -> None:
        """Create extensions as our own role: most want a superuser."""
        async with self._gateway.session(database) as session:
            for extension in extensions:
                await session.execute(
                    f"CREATE EXTENSION IF NOT EXISTS {identifier(extension)} CASCADE",
                    seconds=FREEZE_SECONDS,
                )

    async def _restore(self, dump: DumpSection, recipe: Recipe, database: str) -> None:
        await self._restorer(recipe).restore(
            recipe.directory / dump.file,
            dump,
            database,
            seconds=recipe.section.build_timeout,
        )

    def _restorer(self, recipe: Recipe) -> Restorer:
        return Restorer(self._gateway, self._psql, self._gateway.endpoint, recipe.section.role)

    async def _run(self, file: Path, recipe: Recipe, database: str) -> None:
        await anyio.to_thread.run_sync(escapes.check_stays, file)
        await psql.run_file(
            self._psql,
            self._gateway.endpoint,
            database,
            file,
            seconds=recipe.section.build_timeout,
            role=recipe.section.role,
        )

    async def _set(self, settings: dict[str, str], database: str) -> None:
        """Give the database settings of its own; clones get them too."""
        async with self._gateway.control() as session:
            for name, value in settings.items():
                variable = ".".join(identifier(part) for part in name.split("."))
                await session.execute(
                    f"ALTER DATABASE {identifier(database)} SET {variable} = {_value(name, value)}"
                )

    async def _freeze(self, database: str, recipe: Recipe) -> Contents:
        """Leave every page frozen, hinted and all-visible, statistics fresh, and read the digest.

        The checkpoint makes commits that were asynchronous known as committed to the VACUUM; it
        needs rights that an ordinary role lacks, and psql's sessions commit synchronously anyway.
        """
        async with self._gateway.session(database) as session:
            await session.execute(
                "SET client_min_messages = error; SET default_transaction_read_only = off"
            )
            if recipe.rewindable:
                for statement in CREATE_FUNCTIONS:
                    with contextlib.suppress(StatementError):  # contrib is not installed
                        await session.execute(statement)
            if self._capabilities.superuser:
                await session.execute("CHECKPOINT", seconds=FREEZE_SECONDS)
            # In this order: ANALYZE writes into pages that VACUUM is to leave frozen.
            if recipe.section.analyze:
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


def _value(name: str, value: str) -> str:
    """Return a setting's value for SQL; lists of names stay lists."""
    return ", ".join(map(literal, elements(name, value))) or "''"
