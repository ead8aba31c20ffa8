"""Which pages of which files were written to in each database, as the log says.

Pure: fed by whoever reads the log, in whatever pieces and order, and asked at any time. What is
remembered of a database is bounded: beyond so many pages a file counts as wholly touched, beyond
so many files the database as unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MOST_PAGES = 16_384
"""Of one file; with more of them it counts as wholly touched."""
MOST_FILES = 20_000
"""Of one database; with more of them nothing is known of it."""


class File(NamedTuple):
    """A relation's file, as the log calls it: OID of the tablespace, and its number there."""

    tablespace: int
    number: int


class Written(NamedTuple):
    """What a piece of the log says of one file of one database.

    Attributes:
        database: its OID.
        file: which.
        pages: of its main fork that were written to.
        positions: for each, where the last record that says so begins.
    """

    database: int
    file: File
    pages: list[int]
    positions: list[int]


class _Pages(msgspec.Struct):
    """Of one file: where each page was last written to, and the position if all count as such."""

    last: dict[int, int] = {}
    whole_at: int = -1


class _Database(msgspec.Struct):
    """One database that is followed."""

    files: dict[File, _Pages] = {}
    unknown_at: int = -1


class TouchedPages:
    """Follows databases by their OIDs."""

    def __init__(self) -> None:
        self._databases: dict[int, _Database] = {}

    @property
    def followed(self) -> list[int]:
        """OIDs of the databases of which anything is remembered."""
        return list(self._databases)

    def follow(self, database: int) -> None:
        """Remember from now on what is written to a database."""
        self._databases.setdefault(database, _Database())

    def forget(self, database: int) -> None:
        """Remember it no more; nothing happens if it was not followed."""
        self._databases.pop(database, None)

    def keep(self, databases: Collection[int]) -> None:
        """Forget all databases but these."""
        for database in self._databases.keys() - set(databases):
            del self._databases[database]

    def enter(self, written: Iterable[Written]) -> None:
        """Take in what a piece of the log says; of databases that are not followed, nothing."""
        for each in written:
            database = self._databases.get(each.database)
            if database is not None:
                self._enter(database, each)

    def _enter(self, database: _Database, written: Written) -> None:
        if not written.pages:
            return
        pages = database.files.get(written.file)
        if pages is None:
            if len(database.files) >= MOST_FILES:
                database.unknown_at = max(database.unknown_at, *written.positions)
                return
            pages = database.files[written.file] = _Pages()
        last = pages.last
        for page, position in zip(written.pages, written.positions, strict=True):
            if last.get(page, -1) < position:
                last[page] = position
        if len(last) > MOST_PAGES:
            pages.whole_at = max(pages.whole_at, *last.values())
            last.clear()

    def touched(self, database: int, since: int) -> dict[File, set[int] | None] | None:
        """Return what was written to a database from a position in the log on.

        Args:
            database: its OID.
            since: where the log was when the database was last clean.

        Returns:
            By file the pages that were written to, None for all of them; None instead where
            nothing is known of the database.
        """
        known = self._databases.get(database)
        if known is None or known.unknown_at >= since:
            return None
        found: dict[File, set[int] | None] = {}
        for file, pages in known.files.items():
            if pages.whole_at >= since:
                found[file] = None
            elif recent := {page for page, position in pages.last.items() if position >= since}:
                found[file] = recent
        return found

    def settle(self, database: int, since: int) -> None:
        """Forget what was written to a database before a position in the log: it is clean."""
        known = self._databases.get(database)
        if known is None:
            return
        for file, pages in list(known.files.items()):
            pages.last = {p: position for p, position in pages.last.items() if position >= since}
            if not pages.last and pages.whole_at < since:
                del known.files[file]
