"""Where the rows of a clone are that an earlier daemon rewound."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from clonepool.postgres.rewind.layout import Batch, Place
from clonepool.postgres.rewind.row_locations import read_places, runs_of, together
from clonepool.postgres.rewind.verify import VerificationError

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.baseline import Baseline
    from clonepool.postgres.rewind.restore import Rows


async def find_rows(session: Session, pristine: Baseline, rows: Rows) -> None:
    """Find out which rows of tables that are kept in memory are in other places, and enter it.

    Args:
        session: to the clone, which is proven to hold what it should.
        pristine: what that is.
        rows: what is remembered of the clone's rows: nothing yet.

    Raises:
        VerificationError: there are not as many as there should be.
    """
    tables = [table for table in pristine.tables.values() if table.rows is not None]
    found: defaultdict[int, set[Place]] = defaultdict(set)
    for runs in together(run for table in tables for run in runs_of(table, None)):
        for (oid, _), places in (await read_places(session, runs)).items():
            found[oid] |= places
    for table in tables:
        originals = frozenset(table.rows or ())
        gone, moved = originals - found[table.oid], frozenset(found[table.oid] - originals)
        if len(gone) != len(moved):
            raise VerificationError(f"{table.name} has other rows than the template")
        if gone:
            rows.layout(table).remember([], [Batch(gone, moved)])
