"""Putting back what a lease changed, each table in the cheapest way that is right.

- *By rows*: all rows of a small table are read, and those that differ are written; see `rows`.
- *Whole*: all rows of a small table are deleted and copied in again.
- *By pages*: of a large table, only the rows that are not where they should be; see `repair`.

All tables are put back in one transaction, and nobody's triggers or foreign keys take part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.pages import open_pages
from clonepool.postgres.rewind.repair import Displaced, check_repair, plan_repair
from clonepool.postgres.rewind.rows import compare_rows
from clonepool.postgres.rewind.survey import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.changes import Attempts, Changes
    from clonepool.postgres.rewind.estimates import Estimates
    from clonepool.postgres.rewind.pristine import Table
    from clonepool.postgres.rewind.reference import Reference
    from clonepool.postgres.rewind.repair import Repair

    Borrow = Callable[[], AbstractAsyncContextManager[Reference]]

LARGEST_WHOLE_BYTES = 8 * 1024 * 1024
"""Where pages do not tell what was touched, a table up to this size is put back whole."""
MOST_OPEN_PAGES = 1024
"""With more pages that lack their bits, VACUUM gives them back."""
MOST_OPEN_TABLES = 8
MOST_OPEN_REWINDS = 16
"""With more small tables that lack bits, or after so many rewinds, VACUUM gives them back."""
_SKIP_DATABASE_STATS_MAJOR = 16
_PG_CLASS = "pg_class"
_FLUSH = "SELECT pg_stat_force_next_flush()"
"""Our own work is to be counted before the clone is looked at again."""


class SmallTables(msgspec.Struct):
    """What is remembered of the small tables of one clone.

    Attributes:
        open: by OID, those that were put back by rows and not vacuumed since. No count tells who
            writes to these: all of their rows are compared each time, which costs less.
        rewinds: for how many rewinds there have been any.
    """

    open: dict[int, Table] = {}
    rewinds: int = 0

    def leave_open(self, tables: list[Table], grown: set[int]) -> list[Table]:
        """Remember these in place of those of before; return those that are to be vacuumed now.

        Those that have `grown` are: else the planner would expect more rows in them than there are.
        """
        self.open = {table.oid: table for table in tables if table.oid not in grown}
        self.rewinds = self.rewinds + 1 if self.open else 0
        if len(self.open) > MOST_OPEN_TABLES or self.rewinds >= MOST_OPEN_REWINDS:
            self.open, self.rewinds = {}, 0
        return [table for table in tables if table.oid not in self.open]


class LargeTables(msgspec.Struct):
    """What is remembered of the large tables of one clone.

    Attributes:
        clean_at: position in the WAL when the clone was last clean.
        displaced: by the table's OID; None when the whole table was put back.
        opened: tables with pages that lack their bits: no count tells who writes to these.
        moved_bytes: how much was put back in other places than before; what it left stays dead.
    """

    clean_at: int
    displaced: dict[int, Displaced | None] = {}
    opened: dict[int, Table] = {}
    moved_bytes: int = 0


class Done(NamedTuple):
    """What a rewind wrote to.

    Attributes:
        touched: tables that are to be measured anew.
        catalogs: whether catalogs are, too.
    """

    touched: list[Table]
    catalogs: bool


class Undo:
    """One rewind of one clone.

    Args:
        session: to the clone, a superuser's; its session_replication_role is `replica`.
        small: what is remembered of the clone's small tables.
        large: what is remembered of its large tables.
        borrow: lends the reference.
        estimates: what the planner is to believe.
        major: the server's version.
    """

    def __init__(
        self,
        session: Session,
        small: SmallTables,
        large: LargeTables,
        borrow: Borrow,
        estimates: Estimates,
        major: int,
    ) -> None:
        self._session = session
        self._small = small
        self._large = large
        self._borrow = borrow
        self._estimates = estimates
        self._major = major
        self._vacuumed = False
        self._skip = ", SKIP_DATABASE_STATS" if major >= _SKIP_DATABASE_STATS_MAJOR else ""

    async def run(self, changes: Changes) -> Done:
        """Put everything back, and return what is to be measured anew.

        Raises:
            CannotRewindError: it cannot be put back, or is not what it should be.
            StatementError, ServerUnavailableError: the clone is in an unknown state.
        """
        whole, repairs = await self._plan(changes)
        by_row = [table for table in whole if table.by_row]
        differing = await compare_rows(self._session, by_row, changes.sizes)
        statements = [sql for one in differing for sql in one.statements()]
        filled = [table for table in whole if not table.by_row]
        fills = [await self._fill(table) for table in filled]
        xmin = await self._put_back(statements, fills, repairs, changes.sequences)
        locked = [table for table in changes.locked if not table.by_row]
        opened = [table for table in changes.locked if table.by_row]
        frozen = [*filled, *(table for table in locked if not table.paged)]
        grown = changes.grown | {one.table.oid for one in differing if one.bytes > PAGE_BYTES}
        frozen += self._small.leave_open([*by_row, *opened], grown)
        await self._freeze(frozen, changes.toasted)
        for repair in repairs:
            await self._check(repair, xmin, grown=repair.table.oid in grown)
        for table in locked:
            if table.paged:
                await self._remember(table, await open_pages(self._session, table))
        self._large.displaced |= {table.oid: None for table in whole if table.paged}
        catalogs = await self._settle_catalogs(changes)
        return Done([*frozen, *locked, *(repair.table for repair in repairs)], catalogs=catalogs)

    async def _settle_catalogs(self, changes: Changes) -> bool:
        """Let the planner believe what it did, and vacuum the catalogs that were written to."""
        catalogs = set(changes.catalogs)
        drifted = changes.estimates or self._vacuumed
        if drifted and await self._estimates.put_back(self._session, self._major):
            catalogs.add(_PG_CLASS)
            await self._session.execute(_FLUSH)
        # Few rows died: without being told to, VACUUM would leave their places and so their pages.
        await self._vacuum(sorted(catalogs), "FREEZE, INDEX_CLEANUP ON")
        return bool(catalogs)

    async def _plan(self, changes: Changes) -> tuple[list[Table], list[Repair]]:
        """Choose for each table, and find out what is wrong with the large ones."""
        large = {table.oid: table for table in changes.tables if self._has_pages(table, changes)}
        whole = [table for table in changes.tables if table.oid not in large]
        repairs, why = [], ""
        for table in whole:
            self._large.opened.pop(table.oid, None)
        for table in list((large | self._large.opened).values()):
            attempts = changes.attempts.get(table.oid) if changes.rolled_back else None
            try:
                repair = await self._plan_repair(table, attempts)
            except CannotRewindError as reason:
                whole.append(table)
                why = f": {reason}"
                self._large.opened.pop(table.oid, None)
            else:
                repairs.append(repair)
        for table in whole:
            if table.paged and table.size > LARGEST_WHOLE_BYTES:
                raise CannotRewindError(f"{table.name} is too large to be put back whole{why}")
            if changes.sizes.get(table.oid, 0) > table.size + LARGEST_WHOLE_BYTES:
                raise CannotRewindError(f"{table.name} has grown by more than is worth deleting")
        return whole, repairs

    def _has_pages(self, table: Table, changes: Changes) -> bool:
        known = self._large.displaced.get(table.oid, Displaced())
        return table.paged and known is not None and table.oid in changes.attempts

    async def _plan_repair(self, table: Table, attempts: Attempts | None) -> Repair:
        known = self._large.displaced.get(table.oid) or Displaced()
        clean_at = self._large.clean_at
        async with self._borrow() as reference:
            return await plan_repair(self._session, table, known, clean_at, reference, attempts)

    async def _fill(self, table: Table) -> tuple[Table, bytes, int]:
        """Return all rows of a table."""
        if not table.paged:
            return table, table.copied, table.count
        async with self._borrow() as reference:
            return (table, *await reference.rows(table, None))

    async def _put_back(
        self,
        statements: list[str],
        fills: list[tuple[Table, bytes, int]],
        repairs: list[Repair],
        sequences: dict[int, tuple[int, bool]],
    ) -> int:
        """Do it in one transaction; return which it was. Sequences know no transactions.

        Where nothing is to be copied in, it is one round trip.

        Args:
            statements: those that put tables back row by row.
            fills: tables that go whole, their rows, and how many these are.
            repairs: of large tables.
            sequences: last value and whether it was called, by OID.
        """
        xmin = 0
        first = ["BEGIN", *statements]
        first += [f"DELETE FROM ONLY {table.name}" for table, _, _ in fills]
        first += [repair.deletion for repair in repairs]
        last = [
            f"SELECT setval({oid}::oid::regclass, {value}, {called})"
            for oid, (value, called) in sequences.items()
        ]
        if fills or repairs:
            await self._session.execute("; ".join(first))
            for table, rows, count in fills:
                await self._copy_in(table, rows, count)
            for repair in repairs:
                await self._copy_in(repair.table, repair.rows, repair.count)
                self._large.moved_bytes += len(repair.rows)
            if repairs:
                number = await self._session.value("SELECT pg_current_xact_id()::text")
                xmin = int(number) % 2**32
            last = ["COMMIT", *last]
        elif statements:
            last = [*first, "COMMIT", *last]
        if last:
            await self._session.execute("; ".join([*last, _FLUSH]))
        return xmin

    async def _copy_in(self, table: Table, rows: bytes, count: int) -> None:
        if not count:
            return
        written = await self._session.copy_in(table.schema, table.relation, table.columns, rows)
        if written != count:
            raise CannotRewindError(f"{table.name}: {written} rows instead of {count}")

    async def _check(self, repair: Repair, xmin: int, *, grown: bool) -> None:
        async with self._borrow() as reference:
            now, opened = await check_repair(
                self._session, repair, xmin, self._large.clean_at, reference
            )
        self._large.displaced[repair.table.oid] = now
        await self._remember(repair.table, opened, grown=grown)

    async def _remember(self, table: Table, opened: list[int], *, grown: bool = False) -> None:
        """Remember that a large table has pages without their bits; with too many, VACUUM.

        So too when it has grown: else the planner would expect more rows in it than there are.
        """
        self._large.opened.pop(table.oid, None)
        if grown or len(opened) > MOST_OPEN_PAGES:
            await self._vacuum([table.name], "FREEZE, INDEX_CLEANUP ON, TRUNCATE OFF")
        elif opened:
            self._large.opened[table.oid] = table

    async def _freeze(self, tables: list[Table], toasted: set[int]) -> None:
        """Make the maps of small tables complete again, and of values stored apart if need be."""
        apart = [t.name for t in tables if t.toast and (t.toasted or t.oid in toasted)]
        alone = [t.name for t in tables if t.name not in apart]
        await self._vacuum(apart, "FREEZE")
        await self._vacuum(alone, "FREEZE, PROCESS_TOAST FALSE")

    async def _vacuum(self, names: list[str], how: str) -> None:
        if names:
            self._vacuumed = True
            await self._session.execute(f"VACUUM ({how}{self._skip}) {', '.join(names)}")
