"""Locates the rows of a clone that an earlier daemon rewound."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from clonepool.postgres.rewind.layout import Batch, Ctid
from clonepool.postgres.rewind.row_locations import batched, page_ranges, read_ctids
from clonepool.postgres.rewind.verify import VerificationError

if TYPE_CHECKING:
    from clonepool.postgres.rewind.baseline import Baseline
    from clonepool.postgres.rewind.clean_state import RowHistory
    from clonepool.postgres.session import Session


async def locate_rows(session: Session, baseline: Baseline, history: RowHistory) -> None:
    """Find out which rows are not at their original ctids, in tables that are kept in memory.

    Args:
        session: to the clone, which was verified.
        baseline: of its generation.
        history: of the clone's rows, to which the layouts are added.

    Raises:
        VerificationError: a table does not have as many rows as it should.
    """
    tables = [table for table in baseline.tables.values() if table.rows is not None]
    found: defaultdict[int, set[Ctid]] = defaultdict(set)
    for ranges in batched(pages for table in tables for pages in page_ranges(table, None)):
        for (oid, _), ctids in (await read_ctids(session, ranges)).items():
            found[oid] |= ctids
    for table in tables:
        originals = frozenset(table.rows or ())
        gone, moved = originals - found[table.oid], frozenset(found[table.oid] - originals)
        if len(gone) != len(moved):
            raise VerificationError(f"{table.name} has other rows than the template")
        if gone:
            history.layout(table).remember([], [Batch(gone, moved)])
