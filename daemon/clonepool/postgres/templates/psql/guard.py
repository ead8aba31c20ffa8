r"""SQL files that would leave the database in which they are run: `\connect`, CREATE DATABASE.

Such a file would fill some other database, or drop it, and leave the template empty. It is read
beforehand, and what it includes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from clonepool.errors import TemplateFailedError
from clonepool.postgres.templates.file_digests import Digests
from clonepool.postgres.templates.psql import includes, scripts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clonepool.postgres.templates.psql.includes import Reading


class Escape(NamedTuple):
    """Where a file leaves the database."""

    line: int
    what: str


def check_stays(file: Path) -> None:
    """See that a file, and what it includes, stays in its database.

    Raises:
        TemplateFailedError: it does not; names file and line.
    """
    refuse_leaving(includes.read(str(file), Digests()))


def refuse_leaving(found: Reading) -> None:
    """See that nothing that a script does leaves its database.

    Raises:
        TemplateFailedError: something does; names file and line.
    """
    if found.leaves:
        raise TemplateFailedError(
            f"{found.leaves[0]} would leave the template's database",
            remedy="take it out: the database exists already, and the file is run in it",
        )


def find_escapes(text: str) -> Iterator[Escape]:
    """Yield the places where a script leaves its database, in order."""
    for said in scripts.listen(text):
        if said.what == "leaves":
            yield Escape(said.line, said.text)
        elif said.what in (r"\c", r"\connect"):
            yield Escape(said.line, said.what)
