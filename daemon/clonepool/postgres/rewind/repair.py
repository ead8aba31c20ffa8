"""Putting a large table back by its touched pages: only rows that are not where they should be.

A rewind puts rows back in other places. `Displaced` remembers, for one table of one clone, which
rows of the reference live elsewhere, and where; of rows put back together it is not known which is
which, and they are put back together again when one of them is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.pages import (
    Tuple,
    open_pages,
    page_of,
    read_tuples,
    tids,
    written_since,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.changes import Attempts
    from clonepool.postgres.rewind.pristine import Table
    from clonepool.postgres.rewind.reference import Reference

MOST_PAGES = 1024
"""With more pages to compare, something else costs less."""
PAGES_AT_A_TIME = 64
"""The event loop does nothing else while what these hold is compared."""


class Batch(msgspec.Struct, frozen=True):
    """Rows that were put back together.

    Attributes:
        originals: the reference's rows that they stand for.
        tuples: where they are in the clone.
    """

    originals: frozenset[Tuple]
    tuples: frozenset[Tuple]


class Displaced(msgspec.Struct):
    """The rows of one table of one clone that do not live where the reference has them."""

    batches: list[Batch] = []

    def expected(self, reference: Iterable[Tuple], pages: Iterable[int]) -> set[Tuple]:
        """Return what these pages should hold, by what they hold in the reference."""
        wanted, found = set(pages), set(reference)
        for batch in self.batches:
            found -= batch.originals
            found |= {one for one in batch.tuples if page_of(one) in wanted}
        return found


class Difference(msgspec.Struct, frozen=True):
    """What is to be done to one table.

    Attributes:
        delete: row versions of the clone that should not be there.
        restore: rows of the reference that are missing.
        broken: batches of which a row is missing: the others are among `delete`.
    """

    delete: frozenset[Tuple]
    restore: frozenset[Tuple]
    broken: list[Batch]

    @property
    def nothing(self) -> bool:
        """Whether the table is as it should be."""
        return not self.delete and not self.restore


def compare(displaced: Displaced, expected: set[Tuple], found: set[Tuple]) -> Difference:
    """Find out what makes `found` what is `expected`; what is in both may be left out of both."""
    delete, missing = found - expected, expected - found
    broken = [batch for batch in displaced.batches if not missing.isdisjoint(batch.tuples)]
    restore = set(missing)
    for batch in broken:
        delete |= batch.tuples - missing
        restore = (restore - batch.tuples) | batch.originals
    return Difference(frozenset(delete), frozenset(restore), broken)


class Repair(msgspec.Struct, frozen=True):
    """How one table is put back.

    Attributes:
        before: what was displaced before.
        rows: those that are missing, in COPY's binary format.
    """

    table: Table
    before: Displaced
    difference: Difference
    rows: bytes

    @property
    def deletion(self) -> str:
        """The statement that removes what should not be there."""
        return (
            f"DELETE FROM ONLY {self.table.name} WHERE ctid = ANY ({tids(self.difference.delete)})"
        )

    @property
    def count(self) -> int:
        """How many rows are missing."""
        return len(self.difference.restore)


async def plan_repair(
    session: Session,
    table: Table,
    displaced: Displaced,
    clean_at: int,
    reference: Reference,
    attempts: Attempts | None,
) -> Repair:
    """Compare the touched pages with those of the reference.

    Args:
        session: to the clone.
        table: of which.
        displaced: what is known of it.
        clean_at: position in the WAL when the clone was last clean.
        reference: of the clone's generation.
        attempts: what was tried, which what is found must account for; None if it need not.

    Raises:
        CannotRewindError: that cannot be, or is not worth it.
    """
    opened = await open_pages(session, table)
    written = await written_since(session, table, opened, clean_at)
    if len(written) > MOST_PAGES:
        raise CannotRewindError(f"{table.name}: {len(written)} pages were touched")
    expected, found = await _read_differing(session, table, displaced, written, reference)
    if attempts is not None and not _accounts_for(attempts, expected, found):
        raise CannotRewindError(f"{table.name}: VACUUM may have hidden what was touched")
    difference = compare(displaced, expected, found)
    rows, count = b"", 0
    if difference.restore:
        rows, count = await reference.rows(table, difference.restore)
    if count != len(difference.restore):
        raise CannotRewindError(f"{table.name}: the reference lacks rows")
    return Repair(table, displaced, difference, rows)


async def _read_differing(
    session: Session,
    table: Table,
    displaced: Displaced,
    pages: list[int],
    reference: Reference,
) -> tuple[set[Tuple], set[Tuple]]:
    """Return what these pages should hold and do not, and what they hold and should not."""
    expected, found = set[Tuple](), set[Tuple]()
    for first in range(0, len(pages), PAGES_AT_A_TIME):
        some = pages[first : first + PAGES_AT_A_TIME]
        wanted = displaced.expected(await reference.tuples(table, some), some)
        there = set(await read_tuples(session, table, some))
        expected |= wanted - there
        found |= there - wanted
    return expected, found


def _accounts_for(attempts: Attempts, expected: set[Tuple], found: set[Tuple]) -> bool:
    """Say whether all that was tried is what is found: then no page is hidden."""
    new, missing = len(found - expected), len(expected - found)
    written = attempts.inserted + attempts.updated
    return new == written and missing == attempts.deleted + attempts.updated


async def check_repair(
    session: Session, repair: Repair, xmin: int, clean_at: int, reference: Reference
) -> tuple[Displaced, list[int]]:
    """See that every touched page holds what it should.

    Args:
        session: to the clone.
        repair: that was carried out.
        xmin: the transaction that did it.
        clean_at: position in the WAL when the clone was last clean.
        reference: of the clone's generation.

    Returns:
        Where the rows are now, and the pages that lack a bit.

    Raises:
        CannotRewindError: something is not as it should be.
    """
    table, difference = repair.table, repair.difference
    opened = await open_pages(session, table)
    written = await written_since(session, table, opened, clean_at)
    kept = [batch for batch in repair.before.batches if batch not in difference.broken]
    missing, new = await _read_differing(session, table, Displaced(kept), written, reference)
    ours = frozenset(row for row in new if row.endswith(b"\t%d" % xmin))
    pages = set(written)
    stood_for = {row for row in difference.restore if page_of(row) in pages}
    if len(ours) != repair.count or new != ours or missing != stood_for:
        raise CannotRewindError(f"{table.name} is not what it should be")
    return Displaced([*kept, Batch(difference.restore, ours)] if ours else kept), opened
