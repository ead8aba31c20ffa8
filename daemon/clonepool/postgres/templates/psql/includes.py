r"""Which files a script reads, what leaves its database, and what of it cannot be told beforehand.

Its commands are followed as psql would: variables, `\cd`, the branches of `\if`. Where a branch or
a value depends on the server or on a program, both ways are looked at.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from clonepool import resource_errors
from clonepool.errors import TemplateFailedError
from clonepool.postgres.templates import globbing
from clonepool.postgres.templates.psql import arguments, scripts
from clonepool.postgres.templates.psql.arguments import Argument, Variables
from clonepool.postgres.templates.psql.branches import BRANCHING, Branches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clonepool.postgres.templates.file_digests import Digests
    from clonepool.postgres.templates.psql.scripts import Said

_DEEPEST = 64
"""Files that may include each other: a cycle that `\\if` ends comes to less, psql's own stack to
more."""
_MOST = 100_000
"""Files to be followed in all: two that include each other twice come to that."""
_AT_START: dict[str, str | None] = {"ON_ERROR_STOP": "1", "VERBOSITY": "verbose", "QUIET": "on"}


class Place(NamedTuple):
    """Where a script does something, and what."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        """Show it to people."""
        return f"{self.file}:{self.line}: {self.what}"


class Reading(msgspec.Struct):
    """What was found of one script.

    Attributes:
        included: files that it includes, at any depth, in order.
        data: other files that are read.
        absent: files that would be read if they were there.
        wrong: why it cannot be run: what includes a file that is not there, or cannot be known.
        leaves: what would leave the database.
        unseen: what is read that cannot be known.
        doubtful: what is allowed, and may not be meant.
    """

    included: list[str] = []
    data: list[str] = []
    absent: list[str] = []
    wrong: list[Place] = []
    leaves: list[Place] = []
    unseen: list[Place] = []
    doubtful: list[Place] = []


def read(script: str, digests: Digests) -> Reading:
    """Follow a script, beginning in the directory in which it lies; blocks for the file system.

    Args:
        script: an absolute path.
        digests: remembers what was found in files.

    Raises:
        TemplateFailedError: it cannot be read.
    """
    # What `..` leads to is the kernel's to say, who knows no links in the path of where psql is.
    reader = _Reader(digests, os.path.realpath(os.path.dirname(script)))
    reader.follow(script, script)
    found = reader.found
    for files in (found.included, found.data, found.absent):
        files[:] = dict.fromkeys(files)
    return found


class _Reader:
    """Follows one script through all that it includes."""

    def __init__(self, digests: Digests, directory: str) -> None:
        self.found = Reading()
        self._digests = digests
        self._directory: str | None = directory
        self._variables = Variables(_AT_START)
        self._written: set[str] = set()
        self._inside: list[tuple[str, tuple[object, ...]]] = []
        self._followed = 0
        self._file = ""
        """As it was named, which is what `\\ir` goes by."""
        self._path = ""
        self._line = 0
        self._surely = True
        self._programs = False
        """Whether a program was run, which may have made files."""
        self._does: dict[str, Callable[[Said], None]] = {
            **dict.fromkeys([r"\i", r"\include", r"\ir", r"\include_relative"], self._include),
            **dict.fromkeys([r"\copy", r"\lo_import"], self._copy),
            **dict.fromkeys(["file", "program"], self._server_reads),
            **dict.fromkeys(["leaves", r"\c", r"\connect"], self._leave),
            **dict.fromkeys([r"\set", r"\unset", r"\getenv", r"\prompt"], self._set),
            **dict.fromkeys([r"\o", r"\out", r"\g", r"\gx", r"\w", r"\write"], self._write),
            r"\gset": self._set_by_query,
            r"\gexec": self._execute,
            r"\cd": self._change_directory,
            r"\!": self._run_program,
            "variable": self._spell_out,
        }

    def follow(self, name: str, path: str, *, surely: bool = True) -> None:
        """Follow one file.

        Args:
            name: as it was named.
            path: where that is.
            surely: whether it is run in any case.
        """
        try:
            said = self._digests.about(path, scripts.listen)
        except OSError as error:
            failure = TemplateFailedError(f"{path}: {error.strerror}")
            raise resource_errors.told(error, path) or failure from error
        before = self._file, self._path, self._line, self._surely
        self._inside.append((path, self._variables.state))
        self._followed += 1
        self._file, self._path = name, path
        self._all(said, surely=surely)
        self._inside.pop()
        self._file, self._path, self._line, self._surely = before

    def _all(self, said: Iterable[Said], *, surely: bool) -> None:
        branches = Branches()
        for each in said:
            self._line = each.line
            if each.what in BRANCHING:
                self._surely = surely
                branches.meet(each, self._condition)
                continue
            runs = branches.run
            if runs is False:
                continue
            self._surely = surely and runs is True
            if each.what not in (r"\q", r"\quit", r"\exit"):
                self._one(each)
                continue
            if each.text:
                self._doubt(f"{each.what} ends the file here, and what follows is not run")
            if runs:
                return
            surely = False

    def _condition(self, said: Said) -> bool | None:
        values = [each.value for each in self._arguments(said)]
        known = [value for value in values if value is not None]
        return arguments.truth(" ".join(known) if len(known) == len(values) else None)

    def _one(self, said: Said) -> None:
        self._does.get(said.what, self._look_for_programs)(said)

    # Files --------------------------------------------------------------------------------

    def _include(self, said: Said) -> None:
        (first, *_) = [*self._arguments(said, semicolon=True), Argument("")]
        name = first.value
        if name is None:
            self.found.wrong.append(
                self._here(f"which file {said.what} includes is not known beforehand")
            )
            return
        if not name:
            return  # psql complains
        name = os.path.expanduser(name)
        if said.what in (r"\ir", r"\include_relative") and not os.path.isabs(name):
            name = os.path.normpath(os.path.join(os.path.dirname(self._file), name))
        path = self._whole(name)
        if path is None:
            self.found.wrong.append(self._here(rf"{name} begins where \cd led, which is not known"))
        elif path in self._written:
            self.found.wrong.append(self._here(f"{name} is written by the script itself"))
        elif not globbing.exists(path):
            self._miss(path)
        elif not globbing.is_file(path):
            self.found.wrong.append(self._here(f"{path} is not a file"))
        else:
            self._descend(name, path)

    def _descend(self, name: str, path: str) -> None:
        within = [state for file, state in self._inside if file == path]
        if within and not self._surely:
            return
        deep = len(self._inside) >= _DEEPEST or self._followed >= _MOST
        if deep or self._variables.state in within:
            self.found.wrong.append(self._here(f"{path} would be included without end"))
            return
        self.found.included.append(path)
        self.follow(name, path, surely=self._surely)

    def _copy(self, said: Said) -> None:
        if said.what == r"\copy":
            source = arguments.copied_from(said.text)
            self._wrote(arguments.copied_to(said.text))
        else:
            source = next(iter(self._arguments(said, semicolon=True)), None)
        if source is None:
            return
        if source.program:
            self._program(f"{said.what} reads from a program")
        elif source.value is None:
            self._not_seen(f"which file {said.what} reads is not known beforehand")
        elif source.value.lower() == "pstdin" and said.what == r"\copy":
            self.found.wrong.append(self._here(r"\copy from pstdin: there is nothing to read"))
        else:
            self._data(os.path.expanduser(source.value))

    def _data(self, name: str) -> None:
        path = self._whole(name)
        if path is None:
            self._not_seen(rf"{name} begins where \cd led, which is not known")
        elif path in self._written:
            return  # what is in it is decided by all the rest
        elif not globbing.exists(path):
            self._miss(path)
        elif not globbing.is_file(path):
            self._not_seen(f"{path} is not a file")
        else:
            self.found.data.append(path)

    def _miss(self, path: str) -> None:
        self.found.absent.append(path)
        if self._surely and not self._programs:
            self.found.wrong.append(self._here(f"{path}: there is no such file"))

    def _server_reads(self, said: Said) -> None:
        """Note a file that the server reads; where that is another machine, it is not seen here."""
        if said.what == "program":
            self._not_seen(f"{said.text} runs a program on the server")
            return
        path = arguments.literal(said.text, self._variables)
        if path is None or not os.path.isabs(path):
            self._not_seen("the server reads a file, and which one is not known beforehand")
        elif not (os.path.isfile(path) and os.access(path, os.R_OK)):
            self._not_seen(f"the server reads {path}, which cannot be read here")
        else:
            self.found.data.append(path)

    def _write(self, said: Said) -> None:
        for argument in self._arguments(said, semicolon=True):
            if not (argument.value or "").startswith(("|", "(")):
                self._wrote(argument)

    def _wrote(self, argument: Argument | None) -> None:
        if argument is not None and argument.value:
            path = self._whole(os.path.expanduser(argument.value))
            self._written |= {path} if path else set()

    # What decides how it goes on ----------------------------------------------------------

    def _set_by_query(self, said: Said) -> None:
        (prefix, *_) = [*self._arguments(said), Argument("")]
        self._variables.set_by_query(prefix.value or "", said.statement)

    def _set(self, said: Said) -> None:
        found = self._arguments(said)
        if not found:
            return
        name = found[-1 if said.what == r"\prompt" else 0].value
        if name is None:
            return  # psql refuses what is no name
        values = [each.value for each in found[1:]]
        whole = None if None in values else "".join(value for value in values if value is not None)
        if said.what == r"\unset":
            self._variables.unset(name, surely=self._surely)
        else:
            self._variables.set(name, whole if said.what == r"\set" else None, surely=self._surely)
        if name == "ON_ERROR_STOP":
            stops = said.what != r"\unset" and arguments.truth("on" if values == [] else whole)
            if not stops:
                self._doubt("ON_ERROR_STOP is switched off: errors do not end the build")

    def _change_directory(self, said: Said) -> None:
        (where, *_) = [*self._arguments(said, semicolon=True), Argument("~")]
        name = os.path.expanduser("~") if where.value == "~" else where.value
        path = None if name is None else self._whole(name)
        path = path and os.path.realpath(path)
        self._directory = path if self._surely or path == self._directory else None

    def _spell_out(self, variable: Said) -> None:
        """Follow what stands in a variable: it can be anything, commands too."""
        name = variable.text
        value = self._variables.value(name) if self._variables.is_set(name) else None
        if value is None or f":{name}" in value:
            return
        line, surely = self._line, self._surely
        for said in scripts.listen(value):
            self._line, self._surely = line, surely
            if said.what != "variable" and said.what not in BRANCHING:
                self._one(said)

    # What is told -------------------------------------------------------------------------

    def _arguments(self, said: Said, *, semicolon: bool = False) -> list[Argument]:
        found = arguments.read(said.text, self._variables, semicolon=semicolon)
        if any(each.program for each in found):
            self._program(f"a program in backquotes is run for {said.what}")
        return found

    def _look_for_programs(self, said: Said) -> None:
        if "`" in said.text and said.what not in _HARMLESS:
            self._arguments(said)

    def _leave(self, said: Said) -> None:
        self.found.leaves.append(self._here(said.text if said.what == "leaves" else said.what))

    def _execute(self, said: Said) -> None:
        if statement := scripts.makes_database(said.statement):
            self.found.leaves.append(self._here(rf"{statement} by \gexec"))

    def _run_program(self, said: Said) -> None:
        self._program(f"{said.what} runs a program")

    def _program(self, what: str) -> None:
        self._programs = True
        self._not_seen(what)

    def _not_seen(self, what: str) -> None:
        self.found.unseen.append(self._here(what))

    def _doubt(self, what: str) -> None:
        self.found.doubtful.append(self._here(what))

    def _here(self, what: str) -> Place:
        return Place(self._path, self._line, what)

    def _whole(self, name: str) -> str | None:
        """Return the path of a name that begins where psql is; None if that is not known."""
        if os.path.isabs(name):
            return os.path.normpath(name)
        if self._directory is None:
            return None
        return os.path.normpath(os.path.join(self._directory, name))


_HARMLESS = frozenset(
    {r"\h", r"\help", r"\ef", r"\ev", r"\sf", r"\sv", r"\echo", r"\qecho", r"\warn"}
)
"""Commands in which a backquote is only that, or its program only says something."""


def first_missing(path: str) -> str:
    """Return what has to appear first for a file to be there: itself, or a directory above it."""
    while (above := os.path.dirname(path)) != path and not os.path.isdir(above):
        path = above
    return path
