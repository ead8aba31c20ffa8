"""Which pages of which files were written to in each database, as read from the WAL.

Pure: the reader of the WAL adds what it has read, in pieces of any size and order; a rewind asks at
any time. What is remembered of one database is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MOST_PAGES = 16_384
"""Number of pages of one file beyond which all of it counts as written to."""
MOST_FILES = 20_000
"""Number of files of one database beyond which nothing is known of the database."""


class File(NamedTuple):
    """A relation's file as the WAL names it: OID of the tablespace, and relfilenode."""

    tablespace: int
    number: int


class FileWrites(NamedTuple):
    """What a piece of the WAL says of one file of one database.

    Attributes:
        database: its OID.
        file: which.
        pages: numbers of the pages of its main fork that were written to.
        positions: for each page, where the last record that names it begins.
    """

    database: int
    file: File
    pages: list[int]
    positions: list[int]


class _FilePages(msgspec.Struct):
    """Where each page of a file was last written to, and where the whole file last was."""

    last: dict[int, int] = {}
    whole_at: int = -1


class _Database(msgspec.Struct):
    """A database that is followed."""

    files: dict[File, _FilePages] = {}
    unknown_at: int = -1


class TouchedPages:
    """The pages that were written to in each database that is followed."""

    def __init__(self) -> None:
        self._databases: dict[int, _Database] = {}

    @property
    def followed(self) -> list[int]:
        """OIDs of the databases that are followed."""
        return list(self._databases)

    def follow(self, database: int) -> None:
        """Remember from now on what is written to a database."""
        self._databases.setdefault(database, _Database())

    def forget(self, database: int) -> None:
        """Stop following a database, if it was followed."""
        self._databases.pop(database, None)

    def retain(self, databases: Collection[int]) -> None:
        """Stop following all databases but these."""
        for database in self._databases.keys() - set(databases):
            del self._databases[database]

    def add(self, writes: Iterable[FileWrites]) -> None:
        """Add what a piece of the WAL says; databases that are not followed are passed over."""
        for each in writes:
            database = self._databases.get(each.database)
            if database is not None and each.pages:
                self._add(database, each)

    def _add(self, database: _Database, writes: FileWrites) -> None:
        pages = database.files.get(writes.file)
        if pages is None:
            if len(database.files) >= MOST_FILES:
                database.unknown_at = max(database.unknown_at, *writes.positions)
                return
            pages = database.files[writes.file] = _FilePages()
        last = pages.last
        for page, position in zip(writes.pages, writes.positions, strict=True):
            if last.get(page, -1) < position:
                last[page] = position
        if len(last) > MOST_PAGES:
            pages.whole_at = max(pages.whole_at, *last.values())
            last.clear()

    def touched(self, database: int, since: int) -> dict[File, set[int] | None] | None:
        """Return what was written to a database from a position in the WAL on.

        Args:
            database: its OID.
            since: the position.

        Returns:
            The pages that were written to, by file; None for all pages of a file. None if nothing
            is known of the database.
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

    def page_count(self, database: int) -> int:
        """Return how many pages of a database are remembered."""
        known = self._databases.get(database)
        return sum(len(pages.last) for pages in known.files.values()) if known else 0

    def forget_before(self, database: int, position: int) -> None:
        """Forget what was written to a database before a position: the clone is clean."""
        known = self._databases.get(database)
        if known is None:
            return
        for file, pages in list(known.files.items()):
            pages.last = {page: at for page, at in pages.last.items() if at >= position}
            if not pages.last and pages.whole_at < position:
                del known.files[file]
