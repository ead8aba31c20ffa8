r"""Which files a script reads, what leaves its database, and what cannot be known in advance.

The script's commands are followed as psql would: variables, `\cd`, the branches of `\if`. Where a
branch or a value depends on the server or on a program, all possibilities are followed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from clonepool import resource_errors
from clonepool.errors import TemplateFailedError
from clonepool.postgres.templates import globbing
from clonepool.postgres.templates.psql import arguments, script_events
from clonepool.postgres.templates.psql.arguments import Argument, Variables
from clonepool.postgres.templates.psql.branches import BRANCHING, Branches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clonepool.postgres.templates.file_digests import Digests
    from clonepool.postgres.templates.psql.script_events import ScriptEvent

_DEEPEST = 64
"""Most files that may be nested. A cycle that `\\if` ends needs fewer; psql itself allows more."""
_MOST = 100_000
"""Most files that are followed; two files that include each other twice would exceed any number."""
_AT_START: dict[str, str | None] = {"ON_ERROR_STOP": "1", "VERBOSITY": "verbose", "QUIET": "on"}
"""Variables that are set when a script begins."""


class Location(NamedTuple):
    """What a script does, and where."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        """Return it as compilers show locations."""
        return f"{self.file}:{self.line}: {self.what}"


class Findings(msgspec.Struct):
    """What was found in one script.

    Attributes:
        included: files that it includes, at any depth, in order.
        data: other files that are read.
        absent: files that would be read if they existed.
        errors: why it cannot be run: an included file does not exist or cannot be known.
        leaves: what would leave the database.
        unknown: what reads something that cannot be known.
        warnings: what is allowed, but may be a mistake.
    """

    included: list[str] = []
    data: list[str] = []
    absent: list[str] = []
    errors: list[Location] = []
    leaves: list[Location] = []
    unknown: list[Location] = []
    warnings: list[Location] = []


def read(script: str, digests: Digests) -> Findings:
    """Follow a script, beginning in its own directory. Blocks on the file system.

    Args:
        script: an absolute path.
        digests: remembers the events of files.

    Raises:
        TemplateFailedError: it cannot be read.
    """
    # The kernel resolves `..` in psql's working directory, whose path has no links.
    reader = _Reader(digests, os.path.realpath(os.path.dirname(script)))
    reader.follow(script, script)
    found = reader.found
    for files in (found.included, found.data, found.absent):
        files[:] = dict.fromkeys(files)
    return found


class _Reader:
    """Follows one script through all that it includes."""

    def __init__(self, digests: Digests, directory: str) -> None:
        self.found = Findings()
        self._digests = digests
        self._directory: str | None = directory
        self._variables = Variables(_AT_START)
        self._written: set[str] = set()
        self._inside: list[tuple[str, tuple[object, ...]]] = []
        self._followed = 0
        self._file = ""
        """The present file's name as it was given, to which names in `\\ir` are relative."""
        self._path = ""
        self._line = 0
        self._surely = True
        self._programs = False
        """Whether a program was run, which may have created files."""
        self._does: dict[str, Callable[[ScriptEvent], None]] = {
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
            name: as it was given.
            path: the same as an absolute path.
            surely: whether it is certain that the file is run.
        """
        try:
            events = self._digests.events(path, script_events.events_of)
        except OSError as error:
            failure = TemplateFailedError(f"{path}: {error.strerror}")
            raise resource_errors.told(error, path) or failure from error
        before = self._file, self._path, self._line, self._surely
        self._inside.append((path, self._variables.state))
        self._followed += 1
        self._file, self._path = name, path
        self._all(events, surely=surely)
        self._inside.pop()
        self._file, self._path, self._line, self._surely = before

    def _all(self, events: Iterable[ScriptEvent], *, surely: bool) -> None:
        branches = Branches()
        for each in events:
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
                self._warn(f"{each.what} ends the file here, and what follows is not run")
            if runs:
                return
            surely = False

    def _condition(self, event: ScriptEvent) -> bool | None:
        values = [each.value for each in self._arguments(event)]
        known = [value for value in values if value is not None]
        return arguments.truth(" ".join(known) if len(known) == len(values) else None)

    def _one(self, event: ScriptEvent) -> None:
        self._does.get(event.what, self._look_for_programs)(event)

    # Files --------------------------------------------------------------------------------

    def _include(self, event: ScriptEvent) -> None:
        (first, *_) = [*self._arguments(event, semicolon=True), Argument("")]
        name = first.value
        if name is None:
            self.found.errors.append(
                self._here(f"which file {event.what} includes is not known in advance")
            )
            return
        if not name:
            return  # psql reports an error
        name = os.path.expanduser(name)
        if event.what in (r"\ir", r"\include_relative") and not os.path.isabs(name):
            name = os.path.normpath(os.path.join(os.path.dirname(self._file), name))
        path = self._absolute(name)
        if path is None:
            self.found.errors.append(
                self._here(rf"{name} is relative to the directory of \cd, which is not known")
            )
        elif path in self._written:
            self.found.errors.append(self._here(f"{name} is written by the script itself"))
        elif not globbing.exists(path):
            self._add_absent(path)
        elif not globbing.is_file(path):
            self.found.errors.append(self._here(f"{path} is not a file"))
        else:
            self._descend(name, path)

    def _descend(self, name: str, path: str) -> None:
        within = [state for file, state in self._inside if file == path]
        if within and not self._surely:
            return
        deep = len(self._inside) >= _DEEPEST or self._followed >= _MOST
        if deep or self._variables.state in within:
            self.found.errors.append(self._here(f"{path} would be included without end"))
            return
        self.found.included.append(path)
        self.follow(name, path, surely=self._surely)

    def _copy(self, event: ScriptEvent) -> None:
        if event.what == r"\copy":
            source = arguments.copied_from(event.text)
            self._wrote(arguments.copied_to(event.text))
        else:
            source = next(iter(self._arguments(event, semicolon=True)), None)
        if source is None:
            return
        if source.program:
            self._program(f"{event.what} reads from a program")
        elif source.value is None:
            self._add_unknown(f"which file {event.what} reads is not known in advance")
        elif source.value.lower() == "pstdin" and event.what == r"\copy":
            self.found.errors.append(self._here(r"\copy from pstdin: there is nothing to read"))
        else:
            self._data(os.path.expanduser(source.value))

    def _data(self, name: str) -> None:
        path = self._absolute(name)
        if path is None:
            self._add_unknown(rf"{name} is relative to the directory of \cd, which is not known")
        elif path in self._written:
            return  # the script itself decides what is in it
        elif not globbing.exists(path):
            self._add_absent(path)
        elif not globbing.is_file(path):
            self._add_unknown(f"{path} is not a file")
        else:
            self.found.data.append(path)

    def _add_absent(self, path: str) -> None:
        self.found.absent.append(path)
        if self._surely and not self._programs:
            self.found.errors.append(self._here(f"{path}: there is no such file"))

    def _server_reads(self, event: ScriptEvent) -> None:
        """Add a file that the server reads, which may be on another machine."""
        if event.what == "program":
            self._add_unknown(f"{event.text} runs a program on the server")
            return
        path = arguments.literal(event.text, self._variables)
        if path is None or not os.path.isabs(path):
            self._add_unknown("the server reads a file, and which one is not known in advance")
        elif not (os.path.isfile(path) and os.access(path, os.R_OK)):
            self._add_unknown(f"the server reads {path}, which cannot be read here")
        else:
            self.found.data.append(path)

    def _write(self, event: ScriptEvent) -> None:
        for argument in self._arguments(event, semicolon=True):
            if not (argument.value or "").startswith(("|", "(")):
                self._wrote(argument)

    def _wrote(self, argument: Argument | None) -> None:
        if argument is not None and argument.value:
            path = self._absolute(os.path.expanduser(argument.value))
            self._written |= {path} if path else set()

    # Variables, directories ---------------------------------------------------------------

    def _set_by_query(self, event: ScriptEvent) -> None:
        (prefix, *_) = [*self._arguments(event), Argument("")]
        self._variables.set_by_query(prefix.value or "", event.statement)

    def _set(self, event: ScriptEvent) -> None:
        found = self._arguments(event)
        if not found:
            return
        name = found[-1 if event.what == r"\prompt" else 0].value
        if name is None:
            return  # psql refuses the name
        values = [each.value for each in found[1:]]
        whole = None if None in values else "".join(value for value in values if value is not None)
        if event.what == r"\unset":
            self._variables.unset(name, surely=self._surely)
        else:
            self._variables.set(name, whole if event.what == r"\set" else None, surely=self._surely)
        if name == "ON_ERROR_STOP":
            stops = event.what != r"\unset" and arguments.truth("on" if values == [] else whole)
            if not stops:
                self._warn("ON_ERROR_STOP is switched off: errors do not end the build")

    def _change_directory(self, event: ScriptEvent) -> None:
        (where, *_) = [*self._arguments(event, semicolon=True), Argument("~")]
        name = os.path.expanduser("~") if where.value == "~" else where.value
        path = None if name is None else self._absolute(name)
        path = path and os.path.realpath(path)
        self._directory = path if self._surely or path == self._directory else None

    def _spell_out(self, variable: ScriptEvent) -> None:
        """Follow the value of a variable, which may contain anything, commands too."""
        name = variable.text
        value = self._variables.value(name) if self._variables.is_set(name) else None
        if value is None or f":{name}" in value:
            return
        line, surely = self._line, self._surely
        for event in script_events.events_of(value):
            self._line, self._surely = line, surely
            if event.what != "variable" and event.what not in BRANCHING:
                self._one(event)

    # Findings -----------------------------------------------------------------------------

    def _arguments(self, event: ScriptEvent, *, semicolon: bool = False) -> list[Argument]:
        found = arguments.read(event.text, self._variables, semicolon=semicolon)
        if any(each.program for each in found):
            self._program(f"a program in backquotes is run for {event.what}")
        return found

    def _look_for_programs(self, event: ScriptEvent) -> None:
        if "`" in event.text and event.what not in _HARMLESS:
            self._arguments(event)

    def _leave(self, event: ScriptEvent) -> None:
        self.found.leaves.append(self._here(event.text if event.what == "leaves" else event.what))

    def _execute(self, event: ScriptEvent) -> None:
        if statement := script_events.makes_database(event.statement):
            self.found.leaves.append(self._here(rf"{statement} by \gexec"))

    def _run_program(self, event: ScriptEvent) -> None:
        self._program(f"{event.what} runs a program")

    def _program(self, what: str) -> None:
        self._programs = True
        self._add_unknown(what)

    def _add_unknown(self, what: str) -> None:
        self.found.unknown.append(self._here(what))

    def _warn(self, what: str) -> None:
        self.found.warnings.append(self._here(what))

    def _here(self, what: str) -> Location:
        return Location(self._path, self._line, what)

    def _absolute(self, name: str) -> str | None:
        """Return the absolute path of a name; None if psql's working directory is not known."""
        if os.path.isabs(name):
            return os.path.normpath(name)
        if self._directory is None:
            return None
        return os.path.normpath(os.path.join(self._directory, name))


_HARMLESS = frozenset(
    {r"\h", r"\help", r"\ef", r"\ev", r"\sf", r"\sv", r"\echo", r"\qecho", r"\warn"}
)
"""Commands in which backquotes have no meaning, or whose programs only produce output."""


def first_missing(path: str) -> str:
    """Return what must be created first for a file to exist: itself, or a directory above it."""
    while (above := os.path.dirname(path)) != path and not os.path.isdir(above):
        path = above
    return path
