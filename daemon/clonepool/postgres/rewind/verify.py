"""A rewound clone compared with its generation in full: every row, every sequence, every catalog.

It shares nothing with finding and undoing changes but what is known of the generation, and does
not ask the log. Indexes of tables that are never put back are left out: they may have been computed
under other settings than ours, or by somebody's functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.errors import ClonepoolError
from clonepool.postgres.rewind.digests import read_digests, read_rows_digest
from clonepool.postgres.rewind.indexes import broken_indexes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.baseline import Baseline, Table
    from clonepool.postgres.rewind.database_facts import Facts


class VerificationError(ClonepoolError):
    """A rewound clone is not what its generation is: a mistake of ours. It is granted to nobody."""

    code = "proof_failed"


async def verify(
    session: Session,
    pristine: Baseline,
    facts: tuple[Facts, Facts],
    digest: Callable[[Table], Awaitable[str]] | None,
) -> None:
    """See that the session's database holds what the generation holds.

    Args:
        session: to the clone.
        pristine: the measure of the generation.
        facts: of the database itself, as they are and as they were when the clone was made.
        digest: returns that of a table too large for `pristine` to have it; None leaves such out.

    Raises:
        VerificationError: it does not; names what differs.
    """
    found = await read_digests(session, pristine.digest_sql, set(pristine.digests))
    other = [name for name, digest in found.items() if digest != pristine.digests[name]]
    for table in pristine.tables.values():
        if table.readable and (table.digest or digest):
            wanted = table.digest or (await digest(table) if digest else "")
            if await read_rows_digest(session, table.name) != wanted:
                other.append(table.name)
    written = [table.oid for table in pristine.tables.values() if not table.obstacle]
    other += await broken_indexes(session, written)
    other += await pristine.estimates.differ(session)
    if pristine.values_sql:
        rows = await session.rows(pristine.values_sql)
        now = {row["oid"]: (row["last_value"], row["is_called"]) for row in rows}
        if now != pristine.values:
            other.append("sequences")
    if facts[0].entries.properties != facts[1].entries.properties:
        other.append("the database's own properties")
    if other:
        raise VerificationError(f"these differ from the template: {', '.join(sorted(other))}")
