"""Putting back what a lease changed, each table in the cheapest way that is right.

- *Whole*: all rows of a small table are deleted and copied in again.
- *By pages*: of a large table, only the rows that are not where they should be; see `repair`.

All tables are put back in one transaction, and nobody's triggers or foreign keys take part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.pages import open_pages
from clonepool.postgres.rewind.repair import Displaced, check_repair, plan_repair

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.changes import Attempts, Changes
    from clonepool.postgres.rewind.pristine import Table
    from clonepool.postgres.rewind.reference import Reference
    from clonepool.postgres.rewind.repair import Repair

    Borrow = Callable[[], AbstractAsyncContextManager[Reference]]

LARGEST_WHOLE_BYTES = 8 * 1024 * 1024
"""Where pages do not tell what was touched, a table up to this size is put back whole."""
MOST_OPEN_PAGES = 1024
"""With more pages that lack their bits, VACUUM gives them back."""
_SKIP_DATABASE_STATS_MAJOR = 16
_FLUSH = "SELECT pg_stat_force_next_flush()"
"""Our own work is to be counted before the clone is looked at again."""


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


class Undo:
    """One rewind of one clone.

    Args:
        session: to the clone, a superuser's; its session_replication_role is `replica`.
        large: what is remembered of the clone's large tables.
        borrow: lends the reference.
        major: the server's version.
    """

    def __init__(self, session: Session, large: LargeTables, borrow: Borrow, major: int) -> None:
        self._session = session
        self._large = large
        self._borrow = borrow
        self._skip = ", SKIP_DATABASE_STATS" if major >= _SKIP_DATABASE_STATS_MAJOR else ""

    async def run(self, changes: Changes) -> list[Table]:
        """Put everything back, and return the tables that were written to.

        Raises:
            CannotRewindError: it cannot be put back, or is not what it should be.
            StatementError, ServerUnavailableError: the clone is in an unknown state.
        """
        whole, repairs = await self._plan(changes)
        fills = [await self._fill(table) for table in whole]
        xmin = await self._put_back(fills, repairs, changes.sequences)
        small = [table for table in changes.locked if not table.paged]
        await self._vacuum([table.name for table in [*whole, *small]], "FREEZE")
        if changes.analyzed:
            names = ", ".join(table.name for table in changes.analyzed)
            await self._session.execute(f"ANALYZE {names}")
            await self._session.execute(_FLUSH)
        # Few rows died: without being told to, VACUUM would leave their places and so their pages.
        await self._vacuum(changes.catalogs, "FREEZE, INDEX_CLEANUP ON")
        for repair in repairs:
            await self._check(repair, xmin)
        for table in changes.locked:
            if table.paged:
                await self._remember(table, await open_pages(self._session, table))
        self._large.displaced |= {table.oid: None for table in whole if table.paged}
        return [*whole, *changes.locked, *changes.analyzed, *(repair.table for repair in repairs)]

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
            return table, table.rows, table.count
        async with self._borrow() as reference:
            return (table, *await reference.rows(table, None))

    async def _put_back(
        self,
        fills: list[tuple[Table, bytes, int]],
        repairs: list[Repair],
        sequences: dict[int, tuple[int, bool]],
    ) -> int:
        """Do it in one transaction; return which it was. Sequences know no transactions."""
        xmin = 0
        last = [
            f"SELECT setval({oid}::oid::regclass, {value}, {called})"
            for oid, (value, called) in sequences.items()
        ]
        if fills or repairs:
            first = [f"DELETE FROM ONLY {table.name}" for table, _, _ in fills]
            first += [repair.deletion for repair in repairs]
            await self._session.execute("; ".join(["BEGIN", *first]))
            for table, rows, count in fills:
                await self._copy_in(table, rows, count)
            for repair in repairs:
                await self._copy_in(repair.table, repair.rows, repair.count)
                self._large.moved_bytes += len(repair.rows)
            if repairs:
                number = await self._session.value("SELECT pg_current_xact_id()::text")
                xmin = int(number) % 2**32
            last = ["COMMIT", *last]
        if last:
            await self._session.execute("; ".join([*last, _FLUSH]))
        return xmin

    async def _copy_in(self, table: Table, rows: bytes, count: int) -> None:
        if not count:
            return
        written = await self._session.copy_in(table.schema, table.relation, table.columns, rows)
        if written != count:
            raise CannotRewindError(f"{table.name}: {written} rows instead of {count}")

    async def _check(self, repair: Repair, xmin: int) -> None:
        async with self._borrow() as reference:
            now, opened = await check_repair(
                self._session, repair, xmin, self._large.clean_at, reference
            )
        self._large.displaced[repair.table.oid] = now
        await self._remember(repair.table, opened)

    async def _remember(self, table: Table, opened: list[int]) -> None:
        """Remember that a large table has pages without their bits; with too many, VACUUM."""
        self._large.opened.pop(table.oid, None)
        if len(opened) > MOST_OPEN_PAGES:
            await self._vacuum([table.name], "FREEZE, INDEX_CLEANUP ON, TRUNCATE OFF")
        elif opened:
            self._large.opened[table.oid] = table

    async def _vacuum(self, names: list[str], how: str) -> None:
        if names:
            await self._session.execute(f"VACUUM ({how}{self._skip}) {', '.join(names)}")
