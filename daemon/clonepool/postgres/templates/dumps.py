"""Puts dumps of pg_dump, in any of its formats, into a template by pg_restore or psql.

A dump names roles, as owners and in privileges. They are mapped (all belongs to the template's
role, and privileges are left out), created if they do not exist, or kept.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from clonepool import resource_errors
from clonepool.errors import TemplateFailedError
from clonepool.postgres import programs
from clonepool.postgres.quoting import identifier, literal
from clonepool.postgres.templates import globbing
from clonepool.postgres.templates.file_digests import Digests
from clonepool.postgres.templates.psql import guard, includes, runner, scripts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.config import DumpSection
    from clonepool.errors import ClonepoolError
    from clonepool.postgres.endpoint import Endpoint
    from clonepool.postgres.gateway import Gateway

_MAGIC = b"PGDMP"
_NAME = r'(?:"((?:[^"]|"")+)"|([a-z_][a-z0-9_$]*))'
_ROLES = re.compile(
    rf"\bOWNER\s+TO\s+{_NAME}|\bFOR\s+ROLE\s+{_NAME}"
    rf"|\b(?:GRANT|REVOKE)\b[^;]*\b(?:TO|FROM)\s+{_NAME}",
    re.MULTILINE | re.IGNORECASE,
)
_NO_ROLES = {"public", "current_user", "session_user", "current_role"}
_ABOUT_ROLES = re.compile(
    r"^(?:ALTER\b[^;]*\bOWNER\s+TO\b[^;]*|(?:GRANT|REVOKE)\b[^;]*|ALTER\s+DEFAULT\s+PRIVILEGES\b[^;]*"
    r"|(?:SET|RESET)\s+SESSION\s+AUTHORIZATION\b[^;]*);",
    re.MULTILINE | re.IGNORECASE,
)


class Format(StrEnum):
    """The formats of pg_dump."""

    CUSTOM = "custom"
    DIRECTORY = "directory"
    TAR = "tar"
    PLAIN = "plain"


def format_of(dump: Path) -> Format:
    """Return a dump's format, by its contents.

    Raises:
        TemplateFailedError: there is no such file, or pg_dump did not make it.
    """
    try:
        if globbing.is_directory(dump):
            if not globbing.is_file(dump / "toc.dat"):
                raise TemplateFailedError(
                    f"dump: {dump} is a directory without toc.dat, so it is not a dump",
                    remedy="name what `pg_dump --format=directory --file` named",
                )
            return Format.DIRECTORY
        with dump.open("rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                return Format.CUSTOM
        return Format.TAR if tarfile.is_tarfile(dump) else Format.PLAIN
    except OSError as error:
        raise _unreadable(dump, error) from error


def files_of(dump: Path) -> list[Path]:
    """Return the files that a dump consists of.

    Raises:
        TemplateFailedError: as from `format_of`.
    """
    if format_of(dump) is not Format.DIRECTORY:
        return [dump]
    try:
        return sorted(path for path in dump.iterdir() if globbing.is_file(path))
    except OSError as error:
        raise _unreadable(dump, error) from error


def _unreadable(dump: Path, error: OSError) -> ClonepoolError:
    return resource_errors.told(error, str(dump)) or TemplateFailedError(
        f"dump: {dump}: {error.strerror}", remedy="paths are relative to the configuration file"
    )


def is_script(dump: Path) -> bool:
    """Say whether a dump is a script for psql.

    Raises:
        TemplateFailedError: as from `format_of`.
    """
    return format_of(dump) is Format.PLAIN


class Restorer:
    """Puts one dump into one database.

    Args:
        gateway: the way to the server, for creating roles.
        psql: the program; pg_restore is in its directory.
        endpoint: of the server, and the role to log in as.
        builder: a login that is to act for the roles that the dump names; empty for none.
    """

    def __init__(self, gateway: Gateway, psql: Path, endpoint: Endpoint, builder: str) -> None:
        self._gateway = gateway
        self._psql = psql
        self._endpoint = endpoint
        self._builder = builder

    async def restore(
        self, dump: Path, section: DumpSection, database: str, *, seconds: float
    ) -> None:
        """Restore a dump, stopping at the first error.

        Raises:
            TemplateFailedError: says what failed.
            ServerUnavailableError: the server was lost.
        """
        if format_of(dump) is Format.PLAIN:
            await self._run_plain(dump, section, database, seconds)
            return
        if section.roles != "map":
            schema = await self._pg_restore(
                dump, ["--schema-only", "--file=-"], database, seconds=seconds
            )
            await self._prepare_roles(roles_in(schema), section)
        arguments = ["--exit-on-error", f"--dbname={database}", "--no-password"]
        if section.roles == "map":
            arguments += ["--no-owner", "--no-privileges"]
        if format_of(dump) is not Format.TAR:
            arguments.append(f"--jobs={section.jobs}")
        await self._pg_restore(dump, arguments, database, seconds=seconds)

    async def _run_plain(
        self, dump: Path, section: DumpSection, database: str, seconds: float
    ) -> None:
        found = includes.read(str(dump), Digests())
        guard.refuse_leaving(found)
        if section.roles != "map":
            names = roles_in(scripts.blank(_read(dump), keep_names=True))
            await self._prepare_roles(names, section)
            await runner.run_file(
                self._psql,
                self._endpoint,
                database,
                dump,
                seconds=seconds,
                major=self._gateway.major,
            )
            return
        if found.included:
            raise TemplateFailedError(
                f"dump: {dump} includes {found.included[0]}, whose roles would not be mapped",
                remedy='set dump.roles to "create" or "keep", or name the file in `sql`',
            )
        with tempfile.TemporaryDirectory(prefix="clonepool-dump-") as scratch:
            mapped = Path(scratch) / dump.name
            mapped.write_text(
                without_roles(_read(dump)), encoding="utf-8", errors="surrogateescape"
            )
            await runner.run_file(
                self._psql,
                self._endpoint,
                database,
                mapped,
                seconds=seconds,
                major=self._gateway.major,
                directory=dump.parent,
            )

    async def _pg_restore(
        self, dump: Path, arguments: list[str], database: str, *, seconds: float
    ) -> str:
        program = self._psql.with_name("pg_restore")
        command = [str(program), *arguments, str(dump)]
        done = await programs.run(
            command,
            env=programs.environment(self._endpoint, database, runner.options(self._gateway.major)),
            directory=dump.parent,
            seconds=seconds,
            what=f"pg_restore of {dump}",
            keep_all="--file=-" in arguments,
        )
        if done.code:
            remedy = ""
            if re.search(r'role "[^"]+" does not exist', done.output):
                remedy = 'set dump.roles to "map" or "create"'
            raise TemplateFailedError(f"dump: {dump}: {done.output}", remedy=remedy)
        return done.output

    async def _prepare_roles(self, names: Iterable[str], section: DumpSection) -> None:
        """Create the roles that do not exist, if wanted, and let the builder act for them.

        It cannot act for superusers or for roles that can log in.
        """
        async with self._gateway.session(self._gateway.endpoint.maintenance) as session:
            for name in names:
                if section.roles == "create":
                    # Two builds may create the same role at the same time.
                    await session.execute(
                        "DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname ="
                        f" {literal(name)}) THEN CREATE ROLE {identifier(name)} NOLOGIN; END IF;"
                        " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $do$"
                    )
                if self._builder and await session.value(
                    "SELECT count(*) FROM pg_roles WHERE rolname = $1 AND NOT rolsuper"
                    " AND NOT rolcanlogin",
                    name,
                ):
                    builder = identifier(self._builder)
                    await session.execute(f"GRANT {identifier(name)} TO {builder}")


def roles_in(script: str) -> list[str]:
    """Return the roles that a script of pg_dump's names, sorted."""
    found = [
        quoted.replace('""', '"') if quoted else plain
        for match in _ROLES.findall(script)
        for quoted, plain in zip(match[::2], match[1::2], strict=True)
        if quoted or plain
    ]
    return sorted(name for name in set(found) if name.lower() not in _NO_ROLES)


def without_roles(script: str) -> str:
    """Return the script without statements about roles; other lines keep their numbers."""
    bare = scripts.blank(script)
    pieces, position = [], 0
    for match in _ABOUT_ROLES.finditer(bare):
        pieces += [script[position : match.start()], "\n" * match[0].count("\n")]
        position = match.end()
    return "".join([*pieces, script[position:]])


def _read(dump: Path) -> str:
    return dump.read_text(encoding="utf-8", errors="surrogateescape")
