r"""SQL files that would leave the database in which they are run: `\connect`, CREATE DATABASE.

Such a file would fill some other database, or drop it, and leave the template empty. It is read
beforehand, with comments, strings and the rows of COPY left out, and what it includes with it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clonepool import scarcity
from clonepool.errors import TemplateFailedError
from clonepool.postgres import globbing
from clonepool.postgres.sources import Digests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.errors import ClonepoolError

_QUOTED = re.compile(
    r"""--[^\n]*
      | /\*.*?\*/
      | (?P<copy>\bCOPY\b[^;']*\bFROM\s+STDIN\b[^;]*;[^\n]*\n)
      | \b[eE]'(?:[^'\\]|\\.|'')*'
      | '(?:[^']|'')*'
      | "(?:[^"]|"")*"
      | (?P<dollar>\$(?:[A-Za-z_\x80-\uffff][\w\x80-\uffff]*)?\$)
    """,
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
_ROWS_END = re.compile(r"^\\\.[ \t\r]*$", re.MULTILINE)
_LEAVES = re.compile(
    r"(?P<connect>\\(?:c|connect)(?![\w]))"
    r"|(?:(?<=;)|\A|\n)\s*(?P<statement>(?:CREATE|DROP)\s+DATABASE)\b",
    re.IGNORECASE,
)
_INCLUDES = re.compile(r"\\(?P<how>ir|include_relative|i|include)[ \t]+(?P<file>[^\s;|\\]+)")
_NO_LINE_END = re.compile(r"[^\n]")
_DEEPEST = 16


class Escape(NamedTuple):
    """Where a file leaves the database."""

    line: int
    what: str


def check_stays(file: Path) -> None:
    """See that a file, and what it includes, stays in its database.

    Raises:
        TemplateFailedError: it does not; names file and line.
    """
    for path in [file, *included(str(file), Digests())]:
        for escape in find_escapes(_text(path)):
            raise TemplateFailedError(
                f"{path}:{escape.line}: {escape.what} would leave the template's database",
                remedy="take it out: the database exists already, and the file is run in it",
            )


def find_escapes(text: str) -> Iterator[Escape]:
    """Yield the places where a script leaves its database, in order."""
    bare = blank(text)
    for match in _LEAVES.finditer(bare):
        name = "connect" if match["connect"] else "statement"
        line = bare.count("\n", 0, match.start(name)) + 1
        yield Escape(line, " ".join(match[name].split()))


def blank(text: str, *, keep_names: bool = False) -> str:
    """Return the script with comments, strings and the rows of COPY blanked out.

    It is as long as before, and has its lines where they were.

    Args:
        text: the script.
        keep_names: leave names in double quotes as they are.
    """
    pieces, position = [], 0
    while match := _QUOTED.search(text, position):
        end = match.end()
        if match["dollar"]:
            closing = text.find(match["dollar"], end)
            end = len(text) if closing < 0 else closing + len(match["dollar"])
        elif match["copy"]:
            rows_end = _ROWS_END.search(text, end)
            end = len(text) if rows_end is None else rows_end.end()
        found = text[match.start() : end]
        kept = keep_names and found.startswith('"')
        pieces += [text[position : match.start()], found if kept else _emptied(found)]
        position = end
    return "".join([*pieces, text[position:]])


def _emptied(text: str) -> str:
    """Return spaces and ends of lines; COPY is a statement that ends."""
    blanked = _NO_LINE_END.sub(" ", text)
    return f";{blanked[1:]}" if text[:4].upper() == "COPY" else blanked


def included(file: str, digests: Digests) -> list[Path]:
    r"""Return the files that a script includes, at any depth, in order.

    What `\i` names begins where psql runs, which is where the script lies; what `\ir` names, at the
    including file.

    Raises:
        TemplateFailedError: one of them cannot be read.
    """
    return list(_included(file, os.path.dirname(file), digests, 0))


def _included(file: str, first: str, digests: Digests, depth: int) -> Iterator[Path]:
    try:
        names = digests.about(file, _includes) if depth < _DEEPEST else []
    except OSError as error:
        raise _unreadable(file, error) from error
    for how, name in names:
        near = os.path.dirname(file) if how in ("ir", "include_relative") else first
        path = os.path.join(near, name)
        if globbing.is_file(path):
            yield Path(path)
            yield from _included(path, first, digests, depth + 1)


def _includes(text: str) -> list[tuple[str, str]]:
    if "\\i" not in text:  # most files include nothing, and need not be taken apart
        return []
    return [(match["how"], match["file"]) for match in _INCLUDES.finditer(blank(text))]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: str | Path, error: OSError) -> ClonepoolError:
    return scarcity.told(error, str(file)) or TemplateFailedError(f"{file}: {error.strerror}")
