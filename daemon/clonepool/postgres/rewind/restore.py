"""Restores a clone: compares touched pages with what they should hold, and puts rows back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec

from clonepool.postgres.rewind.changes import PG_CLASS
from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.relations import PAGE_BYTES
from clonepool.postgres.rewind.restore_sql import TableRepair, put_back
from clonepool.postgres.rewind.row_locations import (
    LARGEST_WHOLE_BYTES,
    PageRows,
    batched,
    page_ranges,
    read_page_rows,
    read_sizes,
)
from clonepool.postgres.rewind.wal_reader import wal_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from clonepool.postgres.rewind.baseline import Baseline, Table
    from clonepool.postgres.rewind.changes import Changes
    from clonepool.postgres.rewind.clean_state import RowHistory
    from clonepool.postgres.rewind.layout import Ctid
    from clonepool.postgres.rewind.reference import Reference
    from clonepool.postgres.rewind.row_locations import PageRange, Sizes
    from clonepool.postgres.session import Session

    LendReference = Callable[[], AbstractAsyncContextManager[Reference]]

MOST_PAGES = 8192
"""Number of pages beyond which a new clone is cheaper than reading them."""
MOST_REWINDS = 32
"""Number of rewinds of a small table after which it is vacuumed to free its dead rows."""
LARGEST_VACUUMED_BYTES = 1024 * 1024
"""Largest table that counts as small. VACUUM reads all indexes of a table, so larger ones are
vacuumed only when they have grown."""
_SKIP_DATABASE_STATS_MAJOR = 16
"""First version whose VACUUM can leave the database's statistics alone."""


class Restored(msgspec.Struct, frozen=True):
    """What a restore did.

    Attributes:
        tables: how many tables were written to.
        pages: how many pages were read.
        rows: how many rows were deleted or inserted.
        position: in the WAL, after all of it.
        clean_xid: the first transaction number after it.
    """

    tables: int
    pages: int
    rows: int
    position: int
    clean_xid: int


NOTHING_RESTORED = Restored(tables=0, pages=0, rows=0, position=0, clean_xid=0)


class _Found(msgspec.Struct):
    """What was found in one table: ctids where an old row is missing, and those of fresh rows."""

    missing: set[Ctid] = msgspec.field(default_factory=set)
    fresh: set[Ctid] = msgspec.field(default_factory=set)


class Restore:
    """One restore of one clone.

    Args:
        session: to the clone, with a superuser's rights; session_replication_role is `replica`.
        database: the clone's OID.
        baseline: what it should hold.
        history: what is remembered of its rows.
        clean_xid: the first transaction number after it was last clean.
        lend_reference: lends the reference clone.
        major: the server's version.
    """

    def __init__(
        self,
        session: Session,
        database: int,
        baseline: Baseline,
        history: RowHistory,
        clean_xid: int,
        lend_reference: LendReference,
        major: int,
    ) -> None:
        self._session = session
        self._database = database
        self._baseline = baseline
        self._history = history
        self._clean_xid = clean_xid
        self._lend_reference = lend_reference
        self._major = major

    async def run(self, changes: Changes, check_cost: Callable[[int], None]) -> Restored:
        """Put back all that was changed.

        Args:
            changes: what was touched; its tables can be put back.
            check_cost: raises CannotRewindError if there are too many rows to put back.

        Raises:
            CannotRewindError: it cannot be put back.
            StatementError, ServerUnavailableError: the clone is in an unknown state.
        """
        tables = [self._baseline.tables[oid] for oid in sorted(changes.tables)]
        ranges = self._ranges(changes, tables)
        for oid in changes.replaced & changes.tables.keys():
            self._history.layouts.pop(oid, None)
        found: dict[int, _Found] = {table.oid: _Found() for table in tables}
        sizes: dict[int, Sizes] = {}
        for some in batched(ranges):
            await self._compare_pages(some, tables, sizes, changes.replaced, found)
        check_cost(sum(len(one.missing) + len(one.fresh) for one in found.values()))
        repairs = [r for table in tables if (r := await self._repair(table, found[table.oid]))]
        sequences = {oid: self._baseline.sequences[oid] for oid in sorted(changes.sequences)}
        done = await put_back(self._session, self._database, repairs, sequences)
        for repair in repairs:
            layout = self._history.layout(repair.table)
            layout.remember(repair.difference.broken, done.batches.get(repair.table.oid, []))
        position = await self._vacuum(repairs, sizes, changes)
        return Restored(
            tables=len(repairs),
            pages=sum(pages.count for pages in ranges),
            rows=sum(len(r.difference.delete) + len(r.difference.restore) for r in repairs),
            position=position or done.position,
            clean_xid=done.xid + 1,
        )

    def _ranges(self, changes: Changes, tables: Iterable[Table]) -> list[PageRange]:
        """Return the pages that have to be read."""
        for table in tables:
            if changes.tables[table.oid] is None and table.size > LARGEST_WHOLE_BYTES:
                raise CannotRewindError(f"{table.name} is too large to be put back whole")
        ranges = [
            pages for table in tables for pages in page_ranges(table, changes.tables[table.oid])
        ]
        count = sum(pages.count for pages in ranges)
        if count > MOST_PAGES:
            raise CannotRewindError(f"{count} pages were touched")
        return ranges

    async def _compare_pages(
        self,
        ranges: list[PageRange],
        tables: list[Table],
        sizes: dict[int, Sizes],
        replaced: set[int],
        found: Mapping[int, _Found],
    ) -> None:
        """Compare some pages with what they should hold; the first time, read `sizes` too."""
        page_rows: list[PageRows] = []
        originals: dict[int, set[Ctid]] = {}

        async def read_clone() -> None:
            database = 0 if sizes else self._database
            rows, more = await read_page_rows(
                self._session, ranges, self._clean_xid, database, tables
            )
            page_rows.extend(by_table(rows))
            sizes.update(more)

        async def read_reference() -> None:
            for oid, pages in in_reference.items():
                async with self._lend_reference() as reference:
                    originals[oid] = await reference.ctids(self._baseline.tables[oid], pages)

        in_reference = pages_by_table(each for each in ranges if each.table.rows is None)
        await (both(read_clone, read_reference) if in_reference else read_clone())
        for rows in page_rows:
            there = originals.get(rows.table.oid) or rows.table.ctids(rows.pages)
            self._compare(rows, there, sizes, replaced, found)

    def _compare(
        self,
        rows: PageRows,
        originals: set[Ctid],
        sizes: Mapping[int, Sizes],
        replaced: set[int],
        found: Mapping[int, _Found],
    ) -> None:
        """Add to `found` which rows are missing, and which are fresh."""
        table = rows.table
        if rows.pages is None and _has_outgrown(table, sizes[table.oid]):
            raise CannotRewindError(f"{table.name} has grown by more than is worth deleting")
        expected = self._history.layout(table).expected(originals, rows.pages)
        old, fresh = rows.old, rows.fresh
        if table.oid in replaced:
            old, fresh = set(), old | fresh
        if not old <= expected:
            raise CannotRewindError(f"{table.name}: old rows are at ctids that are not known")
        found[table.oid].missing |= expected - old
        found[table.oid].fresh |= fresh

    async def _repair(self, table: Table, found: _Found) -> TableRepair | None:
        """Return what has to be done to a table; None if it holds what it should."""
        difference = self._history.layout(table).difference(found.missing, found.fresh)
        if difference.nothing:
            return None
        texts = table.rows
        if texts is None and difference.restore:
            async with self._lend_reference() as reference:
                texts = await reference.texts(table, difference.restore)
            self._history.moved_bytes += sum(map(len, texts.values()))
        return TableRepair(table, difference, texts or {})

    async def _vacuum(
        self, repairs: list[TableRepair], sizes: Mapping[int, Sizes], changes: Changes
    ) -> int | None:
        """Vacuum tables with many dead rows, and put the planner's numbers back.

        Returns:
            The position in the WAL afterwards; None if nothing was written.
        """
        for repair in repairs:
            self._history.rewinds[repair.table.oid] += 1
        tables = [self._baseline.tables[oid] for oid in sizes]
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
            self._history.more_pages[table.oid] = now.pages - table.pages + now.toast_pages
            if table in vacuumed:
                self._history.rewinds[table.oid] = 0
        if not vacuumed and PG_CLASS not in changes.catalogs:
            return None
        await self._baseline.estimates.put_back(self._session, self._major)
        return await wal_end(self._session)

    def _needs_vacuum(self, table: Table, now: Sizes) -> bool:
        """Say whether a table has grown so much that plans would change, or has many dead rows.

        The planner multiplies the rows per page that it knows by the number of pages.
        """
        if now.pages > table.pages + max(1, table.pages // 2):
            return True
        many_rewinds = self._history.rewinds[table.oid] >= MOST_REWINDS
        return many_rewinds and table.size <= LARGEST_VACUUMED_BYTES


def by_table(page_rows: Iterable[PageRows]) -> list[PageRows]:
    """Combine the rows of each table."""
    found: dict[int, PageRows] = {}
    for rows in page_rows:
        combined = found.setdefault(rows.table.oid, rows)
        if combined is rows:
            continue
        combined.old |= rows.old
        combined.fresh |= rows.fresh
        if combined.pages is not None:
            combined.pages |= rows.pages or set()
    return list(found.values())


def pages_by_table(ranges: Iterable[PageRange]) -> dict[int, set[int] | None]:
    """Return the page numbers in these ranges by the table's OID; None for all pages."""
    found: dict[int, set[int] | None] = {}
    for each in ranges:
        pages = found.setdefault(each.table.oid, set())
        if each.last is None or pages is None:
            found[each.table.oid] = None
        else:
            pages |= set(range(each.first, each.last + 1))
    return found


async def both(*steps: Callable[[], Awaitable[None]]) -> None:
    """Run these concurrently; when one fails, cancel the others and raise its error."""
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
    """Say whether a table has grown by too much for all of it to be read."""
    return now.pages * PAGE_BYTES > table.size + LARGEST_WHOLE_BYTES
