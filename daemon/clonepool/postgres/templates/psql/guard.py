r"""Refuses SQL files that would leave their database: `\connect`, CREATE DATABASE.

Such a file would fill another database, or drop it, and leave the template empty. So the file and
all that it includes are parsed before it is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from clonepool.errors import TemplateFailedError
from clonepool.postgres.templates.file_digests import Digests
from clonepool.postgres.templates.psql import includes, script_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clonepool.postgres.templates.psql.includes import Findings


class Escape(NamedTuple):
    """Where a file leaves the database, and how."""

    line: int
    what: str


def check_stays(file: Path) -> None:
    """Check that a file, and all that it includes, stays in its database.

    Raises:
        TemplateFailedError: it does not; names file and line.
    """
    refuse_leaving(includes.read(str(file), Digests()))


def refuse_leaving(found: Findings) -> None:
    """Check that nothing in a script leaves its database.

    Raises:
        TemplateFailedError: something does; names file and line.
    """
    if found.leaves:
        raise TemplateFailedError(
            f"{found.leaves[0]} would leave the template's database",
            remedy="remove it: the database exists already, and the file is run in it",
        )


def find_escapes(text: str) -> Iterator[Escape]:
    """Yield where a script leaves its database, in order."""
    for event in script_events.events_of(text):
        if event.what == "leaves":
            yield Escape(event.line, event.text)
        elif event.what in (r"\c", r"\connect"):
            yield Escape(event.line, event.what)
