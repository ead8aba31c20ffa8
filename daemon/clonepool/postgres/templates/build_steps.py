"""The steps of a build: how each kind of source is put into the database, and in which order."""

from __future__ import annotations

import secrets
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import msgspec

from clonepool import trusted_files
from clonepool.config import DumpSection
from clonepool.errors import StatementError, TemplateFailedError
from clonepool.postgres import databases, programs
from clonepool.postgres.clones.lifecycle import DamagedError, read_contents
from clonepool.postgres.clones.properties import (
    Properties,
    elements,
    give_properties,
    properties_of,
)
from clonepool.postgres.endpoint import ENCODING_REMEDY, UnreadableUrlError, without_secrets
from clonepool.postgres.gateway import OWN_NAMES
from clonepool.postgres.quoting import identifier, literal
from clonepool.postgres.roles import Rights
from clonepool.postgres.templates.commands import run_command
from clonepool.postgres.templates.dumps import Restorer
from clonepool.postgres.templates.psql import guard, runner
from clonepool.postgres.templates.recipe import Generation, Inputs, Recipe, is_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from clonepool.config import DatabaseSection
    from clonepool.postgres.endpoint import Endpoint
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.roles import Roles

    Task = tuple[str, Callable[[], Awaitable[None]]]

EXTENSION_SECONDS = 600.0
"""Time limit of creating one extension."""


@contextmanager
def _template_failures(sqlstate: str, remedy: str) -> Iterator[None]:
    """Turn what the server refuses into TemplateFailedError, with a remedy for one SQLSTATE."""
    try:
        yield
    except StatementError as error:
        found = remedy if error.sqlstate == sqlstate else ""
        raise TemplateFailedError(str(error), remedy=found) from error


class Steps:
    """Puts sources into databases.

    Args:
        gateway: the way to the server.
        roles: on it.
        clients: the server's endpoint for programs, which log in as its role if there are no
            logins.
        psql: the program; PostgreSQL's other programs are in its directory.
    """

    def __init__(self, gateway: Gateway, roles: Roles, clients: Endpoint, psql: Path) -> None:
        self._gateway = gateway
        self._roles = roles
        self._clients = clients
        self._psql = psql

    def of(self, recipe: Recipe, inputs: Inputs, database: str, login: Endpoint) -> list[Task]:
        """Return the steps in order, each with a description.

        Args:
            recipe: what the database is made from.
            inputs: what was found of the recipe's sources.
            database: its name while it is built.
            login: the endpoint with which it is filled; what `login` returned.
        """
        section, directory = recipe.section, recipe.directory
        seconds = section.build_timeout
        steps: list[Task] = [
            ("creating the database", lambda: self._create(recipe, database, login))
        ]
        if recipe.origin and is_url(recipe.origin.source):
            origin = recipe.origin
            steps.append(
                ("copying the database", lambda: self._fetch(origin, recipe, database, login))
            )
        if section.extensions:
            steps.append(("extensions", lambda: self._extend(section.extensions, database)))
        if recipe.dump:
            dump = recipe.dump
            steps.append((dump.file, lambda: self._restore(dump, recipe, database, login)))
        steps += [
            (file.name, partial(self._run, file.path, recipe, database, login))
            for file in inputs.sql
        ]
        if recipe.command:
            command = recipe.command
            steps.append(
                (
                    "command",
                    lambda: run_command(command, login, database, directory, seconds=seconds),
                )
            )
        if section.settings:
            steps.append(("settings", lambda: self._set(section.settings, database)))
        return steps

    def login(self, recipe: Recipe, database: str) -> Endpoint:
        """Return the endpoint to fill a database with: its own login, with a new password."""
        if not recipe.ownership.has_logins:
            return self._clients
        password = secrets.token_urlsafe(24)
        return msgspec.structs.replace(self._clients, user=database, password=password)

    async def _create(self, recipe: Recipe, database: str, login: Endpoint) -> None:
        """Create the database, empty or a copy of another of the same server, and its login."""
        section, seconds = recipe.section, recipe.section.build_timeout
        source, options = "template0", ""
        properties = None
        if recipe.lower is not None:
            source, properties = recipe.lower.database, recipe.lower.contents.properties
        elif recipe.origin and not is_url(recipe.origin.source):
            source = recipe.origin.source
            properties = await self._prepare_origin(recipe.origin)
        if section.encoding:
            options += f" ENCODING {literal(section.encoding)}"
        if section.locale:
            options += f" LOCALE {literal(section.locale)}"
        with _template_failures(databases.OBJECT_IN_USE, "end them, or set database.end_sessions"):
            await databases.create(
                self._gateway, database, source, options, seconds, owner=recipe.ownership.owner
            )
        if recipe.lower is not None:
            await self._check_copy(database, recipe.lower)
        if properties is not None:
            await give_properties(self._gateway, database, properties)
        if recipe.ownership.has_logins:
            await self._roles.create_builder(database, recipe.ownership, login.password)
        if recipe.lower is not None and recipe.lower.owner != recipe.ownership.owner:
            await self._roles.hand_over(database, recipe.lower.owner, recipe.ownership.owner)

    async def _check_copy(self, database: str, lower: Generation) -> None:
        """Check that the generation that is extended is complete: a crash empties unlogged tables.

        Raises:
            DamagedError: it is not.
        """
        async with self._gateway.session(database, OWN_NAMES) as session:
            found = await read_contents(session)
        if (found.relations, found.digest) != (lower.contents.relations, lower.contents.digest):
            raise DamagedError(f"{lower.database} does not hold what it did when it was built")

    async def _prepare_origin(self, origin: DatabaseSection) -> Properties:
        """Read the properties that a copy lacks; end sessions on the origin if configured."""
        if origin.end_sessions:
            await databases.end_sessions(self._gateway, origin.source, clients_only=True)
        async with self._gateway.control() as session:
            return await properties_of(session, origin.source)

    async def _fetch(
        self, origin: DatabaseSection, recipe: Recipe, database: str, login: Endpoint
    ) -> None:
        """Dump another server's database and restore it here.

        Every user of the machine can read a program's arguments, so passwords are passed otherwise.
        """
        try:
            url, secrets = without_secrets(origin.source)
        except UnreadableUrlError as error:
            raise TemplateFailedError(f"database: {error}", remedy=ENCODING_REMEDY) from None
        seconds = recipe.section.build_timeout
        with tempfile.TemporaryDirectory(prefix="clonepool-copy-") as scratch:
            dump = Path(scratch) / "database.dump"
            done = await programs.run(
                [
                    str(self._psql.with_name("pg_dump")),
                    "--format=custom",
                    f"--file={dump}",
                    f"--dbname={url}",
                    "--no-password",
                ],
                env={
                    **programs.inherited(),
                    **_secret_variables(secrets, Path(scratch)),
                    "LC_ALL": "C",
                    "PGAPPNAME": "clonepool",
                },
                directory=Path(scratch),
                seconds=seconds,
                what="pg_dump",
            )
            if done.code:
                raise TemplateFailedError(
                    f"database: {done.output}",
                    remedy="check that the URL is right and the server can be reached",
                )
            await self._restorer(recipe, login).restore(
                dump, DumpSection(str(dump)), database, seconds=seconds
            )

    async def _extend(self, extensions: list[str], database: str) -> None:
        """Create extensions as the daemon's own role: most require a superuser."""
        # They go into the schema that the database's own search_path names. No other statement runs
        # in this session, whose names could mean something else with that search_path.
        async with self._gateway.session(database, OWN_NAMES) as session:
            for extension in extensions:
                await session.execute(
                    f"CREATE EXTENSION IF NOT EXISTS {identifier(extension)} CASCADE",
                    seconds=EXTENSION_SECONDS,
                )

    async def _restore(
        self, dump: DumpSection, recipe: Recipe, database: str, login: Endpoint
    ) -> None:
        await self._restorer(recipe, login).restore(
            recipe.directory / dump.file,
            dump,
            database,
            seconds=recipe.section.build_timeout,
        )

    def _restorer(self, recipe: Recipe, login: Endpoint) -> Restorer:
        confined = recipe.ownership.has_logins and recipe.ownership.rights is Rights.OWNER
        return Restorer(self._gateway, self._psql, login, login.user if confined else "")

    async def _run(self, file: Path, recipe: Recipe, database: str, login: Endpoint) -> None:
        await anyio.to_thread.run_sync(guard.check_stays, file)
        await runner.run_file(
            self._psql,
            login,
            database,
            file,
            seconds=recipe.section.build_timeout,
            major=self._gateway.major,
        )

    async def _set(self, settings: dict[str, str], database: str) -> None:
        """Give settings to the database; clones get them too."""
        async with self._gateway.control() as session:
            for name, value in settings.items():
                variable = ".".join(identifier(part) for part in name.split("."))
                await session.execute(
                    f"ALTER DATABASE {identifier(database)} SET {variable} = {_value(name, value)}"
                )


def _secret_variables(secrets: dict[str, str], scratch: Path) -> dict[str, str]:
    """Return the variables by which libpq gets passwords that are not in its URL."""
    variables = {}
    if "password" in secrets:
        variables["PGPASSWORD"] = secrets["password"]
    if "sslpassword" in secrets:  # libpq has no variable for it
        service = scratch / "service.conf"
        trusted_files.replace_own(
            service, f"[source]\nsslpassword={secrets['sslpassword']}\n".encode()
        )
        variables |= {"PGSERVICEFILE": str(service), "PGSERVICE": "source"}
    return variables


def _value(name: str, value: str) -> str:
    """Return a setting's value for SQL; lists of names stay lists."""
    return ", ".join(map(literal, elements(name, value))) or "''"
