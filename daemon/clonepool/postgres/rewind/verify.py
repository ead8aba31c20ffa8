"""Compares a rewound clone with its generation in full: all rows, sequences and catalogs.

It shares nothing with the rewind but the baseline, and does not read the WAL. Indexes of tables
that are never put back are left out: they may depend on other settings, or on users' functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.errors import ClonepoolError
from clonepool.postgres.rewind.digests import read_digests, read_rows_digest
from clonepool.postgres.rewind.indexes import broken_indexes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.postgres.rewind.baseline import Baseline, Table
    from clonepool.postgres.rewind.database_facts import DatabaseFacts
    from clonepool.postgres.session import Session


class VerificationError(ClonepoolError):
    """A rewound clone differs from its generation by a bug of the daemon; it is not granted."""

    code = "proof_failed"


async def verify(
    session: Session,
    baseline: Baseline,
    facts: tuple[DatabaseFacts, DatabaseFacts],
    digest: Callable[[Table], Awaitable[str]] | None,
) -> None:
    """Check that the session's database holds what the generation holds.

    Args:
        session: to the clone.
        baseline: of the generation.
        facts: of the clone's database, now and when it was made.
        digest: returns the digest of a table that the baseline has none of; None leaves such tables
            out.

    Raises:
        VerificationError: it does not; names what differs.
    """
    found = await read_digests(session, baseline.digest_sql, set(baseline.digests))
    different = [name for name, digest in found.items() if digest != baseline.digests[name]]
    for table in baseline.tables.values():
        if table.readable and (table.digest or digest):
            wanted = table.digest or (await digest(table) if digest else "")
            if await read_rows_digest(session, table.name) != wanted:
                different.append(table.name)
    restorable = [table.oid for table in baseline.tables.values() if not table.obstacle]
    different += await broken_indexes(session, restorable)
    different += await baseline.estimates.differences(session)
    if baseline.sequences_sql:
        rows = await session.rows(baseline.sequences_sql)
        now = {row["oid"]: (row["last_value"], row["is_called"]) for row in rows}
        if now != baseline.sequences:
            different.append("sequences")
    if facts[0].entries.properties != facts[1].entries.properties:
        different.append("the database's own properties")
    if different:
        raise VerificationError(f"these differ from the template: {', '.join(sorted(different))}")
