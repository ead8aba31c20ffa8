"""Putting back what a lease touched: what pages hold is compared with what they should hold."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import anyio
import msgspec

from clonepool.postgres.rewind.changes import PG_CLASS
from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.layout import Layout
from clonepool.postgres.rewind.relations import PAGE_BYTES
from clonepool.postgres.rewind.restore_sql import Repair, restore
from clonepool.postgres.rewind.row_locations import (
    LARGEST_WHOLE_BYTES,
    Piece,
    read_pieces,
    read_sizes,
    runs_of,
    together,
)
from clonepool.postgres.rewind.walinspect import read_lsn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.baseline import Baseline, Table
    from clonepool.postgres.rewind.changes import Changes
    from clonepool.postgres.rewind.layout import Place
    from clonepool.postgres.rewind.reference import Reference
    from clonepool.postgres.rewind.row_locations import Run, Sizes

    Borrow = Callable[[], AbstractAsyncContextManager[Reference]]

MOST_PAGES = 8192
"""With more pages to be looked at, a new clone costs less."""
MOST_REWINDS = 32
"""After so many rewinds of a table VACUUM frees the places of its dead rows."""
LARGEST_VACUUMED_BYTES = 1024 * 1024
"""VACUUM reads all indexes of a table: of a larger one only when it has grown."""
_SKIP_DATABASE_STATS_MAJOR = 16


class Rows(msgspec.Struct):
    """What is remembered of the rows of one clone from one rewind to the next.

    Attributes:
        layouts: by the table's OID, of those whose rows are not all where they were.
        rewinds: by the table's OID, how often it was put back since it was vacuumed.
        moved_bytes: how much was put back into tables that are read from the reference; what that
            replaced stays there, dead.
        more_pages: by the table's OID, how many pages more than in the template.
    """

    layouts: dict[int, Layout] = {}
    rewinds: Counter[int] = msgspec.field(default_factory=Counter)
    moved_bytes: int = 0
    more_pages: dict[int, int] = {}

    def layout(self, table: Table) -> Layout:
        """Return where the rows of a table are."""
        return self.layouts.setdefault(table.oid, Layout())

    @property
    def more_bytes(self) -> int:
        """How much more than in the template the tables take."""
        return sum(self.more_pages.values()) * PAGE_BYTES


class Undone(msgspec.Struct, frozen=True):
    """What an undo did.

    Attributes:
        tables: how many were written to.
        pages: how many were looked at.
        rows: how many were deleted or restored.
        at: position in the log after all of it.
        clean_xid: the first transaction number after it.
    """

    tables: int
    pages: int
    rows: int
    at: int
    clean_xid: int


NOTHING_UNDONE = Undone(tables=0, pages=0, rows=0, at=0, clean_xid=0)


class _Seen(msgspec.Struct):
    """What was found out about one table."""

    missing: set[Place] = msgspec.field(default_factory=set)
    fresh: set[Place] = msgspec.field(default_factory=set)


class Undo:
    """One rewind of one clone.

    Args:
        session: to the clone, a superuser's; its session_replication_role is `replica`.
        database: the clone's OID.
        pristine: what it should hold.
        rows: what is remembered of its rows.
        clean_xid: the first transaction number after it was last clean.
        borrow: lends the reference.
        major: the server's version.
    """

    def __init__(
        self,
        session: Session,
        database: int,
        pristine: Baseline,
        rows: Rows,
        clean_xid: int,
        borrow: Borrow,
        major: int,
    ) -> None:
        self._session = session
        self._database = database
        self._pristine = pristine
        self._rows = rows
        self._clean_xid = clean_xid
        self._borrow = borrow
        self._major = major

    async def run(self, touch: Changes, worth: Callable[[int], None]) -> Undone:
        """Put everything back.

        Args:
            touch: what is to be looked at; its tables can be put back.
            worth: raises CannotRewindError when so many rows are not worth putting back.

        Raises:
            CannotRewindError: it cannot be put back, or is not what it should be.
            StatementError, ServerUnavailableError: the clone is in an unknown state.
        """
        tables = [self._pristine.tables[oid] for oid in sorted(touch.tables)]
        runs, pages = self._runs(touch, tables)
        for oid in touch.replaced & touch.tables.keys():
            self._rows.layouts.pop(oid, None)
        seen: dict[int, _Seen] = {table.oid: _Seen() for table in tables}
        sizes: dict[int, Sizes] = {}
        for some in together(runs):
            await self._look(some, tables, sizes, touch.replaced, seen)
        worth(sum(len(one.missing) + len(one.fresh) for one in seen.values()))
        repairs = [r for table in tables if (r := await self._repair(table, seen[table.oid]))]
        sequences = {oid: self._pristine.values[oid] for oid in sorted(touch.sequences)}
        restored = await restore(self._session, self._database, repairs, sequences)
        for repair in repairs:
            layout, broken = self._rows.layout(repair.table), repair.difference.broken
            layout.remember(broken, restored.batches.get(repair.table.oid, []))
        at = await self._tidy(repairs, sizes, touch)
        return Undone(
            tables=len(repairs),
            pages=pages,
            rows=sum(len(r.difference.delete) + len(r.difference.restore) for r in repairs),
            at=at or restored.at,
            clean_xid=restored.xid + 1,
        )

    def _runs(self, touch: Changes, tables: Iterable[Table]) -> tuple[list[Run], int]:
        """Return what is to be looked at, and how many pages that is."""
        for table in tables:
            if touch.tables[table.oid] is None and table.size > LARGEST_WHOLE_BYTES:
                raise CannotRewindError(f"{table.name} is too large to be put back whole")
        runs = [run for table in tables for run in runs_of(table, touch.tables[table.oid])]
        pages = sum(run.count for run in runs)
        if pages > MOST_PAGES:
            raise CannotRewindError(f"{pages} pages were touched")
        return runs, pages

    async def _look(
        self,
        runs: list[Run],
        tables: list[Table],
        sizes: dict[int, Sizes],
        replaced: set[int],
        seen: Mapping[int, _Seen],
    ) -> None:
        """Compare some pages with what they should hold; the first time, ask for `sizes` too."""
        pieces: list[Piece] = []
        originals: dict[int, set[Place]] = {}

        async def ask_clone() -> None:
            database = 0 if sizes else self._database
            found, more = await read_pieces(self._session, runs, self._clean_xid, database, tables)
            pieces.extend(by_table(found))
            sizes.update(more)

        async def ask_reference() -> None:
            for table, pages in asked.items():
                async with self._borrow() as reference:
                    originals[table] = await reference.places(self._pristine.tables[table], pages)

        asked = pages_of(run for run in runs if run.table.rows is None)
        await (both(ask_clone, ask_reference) if asked else ask_clone())
        for piece in pieces:
            there = originals.get(piece.table.oid) or piece.table.places(piece.pages)
            self._compare(piece, there, sizes, replaced, seen)

    def _compare(
        self,
        piece: Piece,
        originals: set[Place],
        sizes: Mapping[int, Sizes],
        replaced: set[int],
        seen: Mapping[int, _Seen],
    ) -> None:
        """Enter what is missing, and what is fresh."""
        table, one = piece.table, seen[piece.table.oid]
        if piece.pages is None and _has_outgrown(table, sizes[table.oid]):
            raise CannotRewindError(f"{table.name} has grown by more than is worth deleting")
        expected = self._rows.layout(table).expected(originals, piece.pages)
        old, fresh = piece.old, piece.fresh
        if table.oid in replaced:
            old, fresh = set(), old | fresh
        if not old <= expected:
            raise CannotRewindError(f"{table.name}: old rows are in places that are not known")
        one.missing |= expected - old
        one.fresh |= fresh

    async def _repair(self, table: Table, seen: _Seen) -> Repair | None:
        """Return what is to be done to a table, None if it holds what it should."""
        difference = self._rows.layout(table).difference(seen.missing, seen.fresh)
        if difference.nothing:
            return None
        texts = table.rows
        if texts is None and difference.restore:
            async with self._borrow() as reference:
                texts = await reference.texts(table, difference.restore)
            self._rows.moved_bytes += sum(map(len, texts.values()))
        return Repair(table, difference, texts or {})

    async def _tidy(
        self, repairs: list[Repair], sizes: Mapping[int, Sizes], touch: Changes
    ) -> int | None:
        """Vacuum where dead rows pile up, and let the planner believe what it did.

        Returns:
            The position in the log afterwards, None if nothing was written.
        """
        for repair in repairs:
            self._rows.rewinds[repair.table.oid] += 1
        tables = [self._pristine.tables[oid] for oid in sizes]
        if any(repair.bytes > PAGE_BYTES for repair in repairs):
            sizes = await read_sizes(self._session, self._database, tables)  # they may have grown
        vacuumed = [table for table in tables if self._needs_vacuum(table, sizes[table.oid])]
        if vacuumed:
            names = ", ".join(table.name for table in vacuumed)
            skip = ", SKIP_DATABASE_STATS" if self._major >= _SKIP_DATABASE_STATS_MAJOR else ""
            await self._session.execute(f"VACUUM (FREEZE, INDEX_CLEANUP ON{skip}) {names}")
            sizes = await read_sizes(self._session, self._database, tables)
        for table in tables:
            now = sizes[table.oid]
            self._rows.more_pages[table.oid] = now.pages - table.pages + now.toast_pages
            if table in vacuumed:
                self._rows.rewinds[table.oid] = 0
        if not vacuumed and PG_CLASS not in touch.catalogs:
            return None
        await self._pristine.estimates.put_back(self._session, self._major)
        return read_lsn(await self._session.value("SELECT pg_current_wal_insert_lsn()::text"))

    def _needs_vacuum(self, table: Table, now: Sizes) -> bool:
        """Say whether a table has grown so that the planner would notice, or is full of dead rows.

        It multiplies the rows a page that it knows of by the pages that there are.
        """
        if now.pages > table.pages + max(1, table.pages // 2):
            return True
        worn = self._rows.rewinds[table.oid] >= MOST_REWINDS
        return worn and table.size <= LARGEST_VACUUMED_BYTES


def by_table(pieces: Iterable[Piece]) -> list[Piece]:
    """Put the pieces of each table together."""
    found: dict[int, Piece] = {}
    for piece in pieces:
        before = found.setdefault(piece.table.oid, piece)
        if before is piece:
            continue
        before.old |= piece.old
        before.fresh |= piece.fresh
        if before.pages is not None:
            before.pages |= piece.pages or set()
    return list(found.values())


def pages_of(runs: Iterable[Run]) -> dict[int, set[int] | None]:
    """Return which pages these are, by the OIDs of their tables; None for all."""
    found: dict[int, set[int] | None] = {}
    for run in runs:
        pages = found.setdefault(run.table.oid, set())
        if run.last is None or pages is None:
            found[run.table.oid] = None
        else:
            pages |= set(range(run.first, run.last + 1))
    return found


async def both(*steps: Callable[[], Awaitable[None]]) -> None:
    """Do these at the same time; when one fails, give the others up and raise its error."""
    errors: list[Exception] = []

    async def run(step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception as error:  # noqa: BLE001 - raised below, where it is not one of a group
            errors.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for step in steps:
            tasks.start_soon(run, step)
    if errors:
        raise errors[0]


def _has_outgrown(table: Table, now: Sizes) -> bool:
    """Say whether a table is too large for all of it to be looked at."""
    return now.pages * PAGE_BYTES > table.size + LARGEST_WHOLE_BYTES
