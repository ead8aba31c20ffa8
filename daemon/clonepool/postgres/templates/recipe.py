"""What a template is made from, and the inputs that determine what it holds: its fingerprint.

The same inputs give the same fingerprint on any machine: names are relative, contents are digested,
and of a database's address only host, port and name are used.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clonepool import resource_errors
from clonepool.config import CommandSection, DatabaseSection, DumpSection, TemplateSection
from clonepool.errors import ClonepoolError, TemplateFailedError
from clonepool.postgres.clones.lifecycle import Contents  # noqa: TC001 - for msgspec
from clonepool.postgres.endpoint import ENCODING_REMEDY, UnreadableUrlError, split_url
from clonepool.postgres.roles import OURS, Ownership
from clonepool.postgres.templates import dumps
from clonepool.postgres.templates.file_digests import (
    Digests,
    SourceFile,
    fingerprint,
    generation_name,
    resolve,
    shown,
)
from clonepool.postgres.templates.psql import guard, includes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.templates.psql.includes import Findings

_DIGEST_CHARACTERS = 16
"""Length of the digests among the inputs."""


class Generation(msgspec.Struct, frozen=True):
    """A sealed database and what it holds.

    Attributes:
        short: stands for it in names; derived from the fingerprint, and a serial if it was built
            anew.
        full: the fingerprint.
        database: the name of its database.
        contents: what it holds.
        size_bytes: size of its database.
        reused: whether an earlier build made it.
        inputs: what went into it, as in `Inputs.entries`.
        owner: the role that owns what is in it; empty for the daemon's own.
        warnings: what is allowed in its scripts, but may be a mistake.
    """

    short: str
    full: str
    database: str
    contents: Contents
    size_bytes: int
    reused: bool
    inputs: dict[str, dict[str, str]] = {}
    owner: str = ""
    warnings: list[str] = []


class Recipe(msgspec.Struct, frozen=True):
    """How one template is made.

    Attributes:
        template: its name.
        section: the sources and options, as configured.
        directory: to which paths are relative.
        rewindable: whether it gets the functions with which its clones are verified.
        ownership: its owner, and the rights of the login that fills it.
        lower: the generation of the template that this one extends, if any.
    """

    template: str
    section: TemplateSection
    directory: Path
    rewindable: bool = False
    ownership: Ownership = OURS
    lower: Generation | None = None

    @property
    def dump(self) -> DumpSection | None:
        """The dump, if there is one."""
        dump = self.section.dump
        return (DumpSection(dump) if isinstance(dump, str) else dump) if dump else None

    @property
    def command(self) -> CommandSection | None:
        """The command, if there is one."""
        command = self.section.command
        if not command:
            return None
        return command if isinstance(command, CommandSection) else CommandSection(command)

    @property
    def origin(self) -> DatabaseSection | None:
        """The database that is copied, if there is one."""
        origin = self.section.database
        if not origin:
            return None
        return origin if isinstance(origin, DatabaseSection) else DatabaseSection(origin)


class Inputs(msgspec.Struct, frozen=True):
    """What was found of a recipe's sources.

    Attributes:
        sql: files to be run, in order.
        warnings: what is allowed in them, but may be a mistake.
        entries: everything that determines the result, by kind and name; the fingerprint is made
            from it.
    """

    sql: list[SourceFile]
    warnings: list[str]
    entries: dict[str, dict[str, str]]

    @property
    def full(self) -> str:
        """The fingerprint, 64 hexadecimal digits."""
        return fingerprint(self.entries)

    @property
    def short(self) -> str:
        """The short form of the fingerprint."""
        return generation_name(self.full)


def is_url(source: str) -> bool:
    """Say whether a source is the URL of another server's database."""
    return source.startswith(("postgres://", "postgresql://"))


def read_files(recipe: Recipe, digests: Digests) -> Inputs:
    """Read a recipe's files. Blocks on the file system.

    Raises:
        TemplateFailedError: a file is missing or cannot be read, leaves the database, or reads
            something that cannot be known in advance.
        ResourceError: a resource of the machine is exhausted, so the files are not known.
    """
    section, directory = recipe.section, recipe.directory
    sql = resolve("sql", section.sql, directory, digests) if section.sql else []
    findings = [includes.read(file.location, digests) for file in sql]
    entries = {"sql": _entries(sql)}
    if recipe.dump:
        dump = directory / recipe.dump.file
        entries["dump"] = _digested(dumps.files_of(dump), directory, digests)
        findings += [includes.read(str(dump), digests)] if dumps.is_script(dump) else []
    for found in findings:
        _check(found, section)
    included = [Path(file) for found in findings for file in found.included]
    data = [Path(file) for found in findings for file in found.data]
    entries["included"] = _digested(included, directory, digests)
    entries["data"] = _digested(data, directory, digests)
    if section.watch:
        entries["also watched"] = _entries(resolve("watch", section.watch, directory, digests))
    if recipe.command and recipe.command.watch:
        watched = resolve("command.watch", recipe.command.watch, directory, digests)
        entries["watched"] = _entries(watched)
    warnings = [str(location) for found in findings for location in found.warnings]
    return Inputs(sql, list(dict.fromkeys(warnings)), {k: v for k, v in entries.items() if v})


def patterns_of(recipe: Recipe) -> list[str]:
    """Return the files, globs and directories that a recipe names."""
    found = [*recipe.section.sql, *(recipe.section.watch or [])]
    if recipe.dump:
        found.append(recipe.dump.file)
    if recipe.command:
        found += recipe.command.watch
    return found


def watched_files(recipe: Recipe, digests: Digests) -> list[str]:
    """Return all files that a template depends on, whatever is wrong with them.

    For a file that does not exist, it returns what must be created first. Blocks on the file
    system.
    """
    found: list[str] = []
    for pattern in patterns_of(recipe):
        with contextlib.suppress(ClonepoolError):
            found += [file.location for file in resolve("", [pattern], recipe.directory, digests)]
    scripts = []
    with contextlib.suppress(ClonepoolError):
        scripts = [
            file.location for file in resolve("", recipe.section.sql, recipe.directory, digests)
        ]
    if recipe.dump:
        dump = recipe.directory / recipe.dump.file
        with contextlib.suppress(ClonepoolError):
            found += [str(part) for part in dumps.files_of(dump)]
            scripts += [str(dump)] if dumps.is_script(dump) else []
    for script in scripts:
        with contextlib.suppress(ClonepoolError):
            read = includes.read(script, digests)
            found += [*read.included, *read.data, *map(includes.first_missing, read.absent)]
    return found


def _check(found: Findings, section: TemplateSection) -> None:
    """Check that a script can be run, and that a change of any file it reads would be noticed."""
    guard.refuse_leaving(found)
    if found.errors:
        raise TemplateFailedError(
            str(found.errors[0]),
            remedy=r"names are relative to the script's directory, and in `\ir` to the including"
            r" file; only variables that the script itself sets by `\set` are known",
        )
    if found.unknown and section.watch is None:
        raise TemplateFailedError(
            f"{found.unknown[0]}: when that changes, it would go unnoticed",
            remedy="name the files that it reads in the template's `watch`, or set `watch = []`"
            " if there are none",
        )


async def add_options(
    inputs: Inputs, recipe: Recipe, gateway: Gateway, capabilities: Capabilities
) -> Inputs:
    """Add the inputs that are no files.

    Raises:
        TemplateFailedError: an extension is not available, there is no such database, or the
            template that this one extends was not built.
        ServerUnavailableError, StatementError: the server did not answer.
    """
    section, entries = recipe.section, dict(inputs.entries)
    if section.extends and recipe.lower is None:
        raise TemplateFailedError(
            f"extends: the template {section.extends} does not exist",
            remedy="see the error of that template",
        )
    entries["server"] = {
        "major": str(capabilities.major),
        "encoding": section.encoding or capabilities.encoding,
        "locale": section.locale or capabilities.locale,
        "owner": recipe.ownership.owner or gateway.endpoint.user,
        "rights": recipe.ownership.rights,
    }
    entries["options"] = {"rewindable": str(recipe.rewindable), "analyze": str(section.analyze)}
    if section.settings:
        entries["settings"] = dict(section.settings)
    if section.extensions:
        entries["extensions"] = await _versions(gateway, section.extensions)
    if recipe.command:
        entries["command"] = _command_entries(recipe.command)
    if recipe.dump:
        entries["options"] |= {"dump.roles": recipe.dump.roles}
    if recipe.origin:
        entries["database"] = await _identify(gateway, recipe.origin)
    if recipe.lower:
        entries["extends"] = {section.extends: recipe.lower.short}
    return msgspec.structs.replace(inputs, entries=entries)


def differences(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> list[str]:
    """Return sentences that say what differs between the inputs of two builds."""
    found = []
    for kind in sorted(before.keys() | now.keys()):
        old, new = before.get(kind, {}), now.get(kind, {})
        found += [f"{kind}: {name} is new" for name in new if name not in old]
        found += [f"{kind}: {name} is gone" for name in old if name not in new]
        found += [
            f"{kind}: {name} was changed" for name in new if name in old and old[name] != new[name]
        ]
        if not found and list(old) != list(new):
            found.append(f"{kind}: in another order")
    return found


def _entries(files: Iterable[SourceFile]) -> dict[str, str]:
    return {
        f"{number:05d} {file.name}": file.digest[:_DIGEST_CHARACTERS]
        for number, file in enumerate(files, 1)
    }


def _digested(paths: Iterable[Path], directory: Path, digests: Digests) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        inside = path.is_relative_to(directory)
        name = shown(path.relative_to(directory).as_posix() if inside else path.name)
        number, first = 1, name
        while name in found:  # files elsewhere are named by their last part alone
            number += 1
            name = f"{first} ({number})"
        try:
            found[name] = digests.of(path)[:_DIGEST_CHARACTERS]
        except OSError as error:
            failure = TemplateFailedError(f"{path}: {error.strerror}")
            raise resource_errors.told(error, str(path)) or failure from error
    return found


def _command_entries(command: CommandSection) -> dict[str, str]:
    """Return the inputs of a command.

    Its arguments and environment are digested: they may contain secrets, and every role of the
    server can read the comment that contains the inputs.
    """
    by_arguments = isinstance(command.run, list)
    program = Path(command.run[0]).name if by_arguments and command.run else "shell"
    return {
        "run": f"{program} {hashlib.sha256(repr(command.run).encode()).hexdigest()[:16]}",
        "arguments": str(by_arguments),
        "directory": command.directory,
        "variable": command.variable,
        "env": hashlib.sha256(repr(sorted(command.env.items())).encode()).hexdigest()[:16],
    }


async def _versions(gateway: Gateway, extensions: list[str]) -> dict[str, str]:
    async with gateway.control() as session:
        rows = await session.rows(
            "SELECT name::text, default_version FROM pg_available_extensions"
            " WHERE name = ANY ($1::name[])",
            extensions,
        )
    found = {row["name"]: row["default_version"] for row in rows}
    if missing := [name for name in extensions if name not in found]:
        raise TemplateFailedError(
            f"extensions: the server does not have {', '.join(missing)}",
            remedy="install their packages on the server's machine, or remove them",
        )
    return {name: found[name] for name in extensions}


def _address(url: str) -> str:
    """Return a database's host, port and name, without user and password."""
    try:
        parts = split_url(url)
        if "," in parts.netloc:
            server = parts.netloc.rpartition("@")[2]
        else:
            server = f"{parts.hostname or ''}:{parts.port or 5432}"
    except ValueError:  # that of a wrong port shows the text, which may be part of a password
        message = f"database: {UnreadableUrlError()}"
        raise TemplateFailedError(message, remedy=ENCODING_REMEDY) from None
    return f"{server}{parts.path}"


async def _identify(gateway: Gateway, origin: DatabaseSection) -> dict[str, str]:
    """Return what identifies a database; later changes in it do not count."""
    if is_url(origin.source):
        return {_address(origin.source): "of another server"}
    async with gateway.control() as session:
        rows = await session.rows(
            "SELECT oid::text FROM pg_database WHERE datname = $1", origin.source
        )
    if not rows:
        raise TemplateFailedError(
            f"database: there is no database {origin.source} on the server",
            remedy="create it, or name another",
        )
    return {origin.source: rows[0]["oid"]}
