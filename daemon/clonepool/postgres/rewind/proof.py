"""A rewound clone compared with its generation in full: every row, every sequence, every catalog.

It shares nothing with finding and undoing changes but the measure of the generation, and looks at
no counter. B-trees are compared with their tables, and in PostgreSQL 18 GIN indexes are looked
through. There is no such check of other access methods: an index of these is believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.errors import ClonepoolError, StatementError
from clonepool.postgres.rewind.pristine import DIGEST_SECONDS, read_digests, read_rows_digest
from clonepool.postgres.rewind.survey import CHECK_BTREE, CHECK_GIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.facts import Facts
    from clonepool.postgres.rewind.pristine import Pristine, Table


class ProofError(ClonepoolError):
    """A rewound clone is not what its generation is: a mistake of ours. It is granted to nobody."""

    code = "proof_failed"


_INDEXES = f"""\
SELECT i.oid::bigint AS oid, i.oid::regclass::text AS name, amname::text AS method
  FROM pg_index JOIN pg_class AS i ON i.oid = indexrelid JOIN pg_am AS a ON a.oid = i.relam
 WHERE i.relkind = 'i' AND indisvalid AND indrelid = ANY ($1::oid[]) AND CASE amname
       WHEN 'btree' THEN to_regprocedure('{CHECK_BTREE}(regclass, boolean)') IS NOT NULL
       WHEN 'gin' THEN to_regprocedure('{CHECK_GIN}(regclass)') IS NOT NULL END
"""
_CHECKS = {
    "btree": f"SELECT {CHECK_BTREE}($1::oid::regclass, true)",
    "gin": f"SELECT {CHECK_GIN}($1::oid::regclass)",
}
_CORRUPTED = ("XX001", "XX002")


async def prove(
    session: Session,
    pristine: Pristine,
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
        ProofError: it does not; names what differs.
    """
    found = await read_digests(session, pristine.digest_sql, set(pristine.digests))
    other = [name for name, digest in found.items() if digest != pristine.digests[name]]
    for table in pristine.tables.values():
        if table.readable and (table.digest or digest):
            wanted = table.digest or (await digest(table) if digest else "")
            if await read_rows_digest(session, table.name) != wanted:
                other.append(table.name)
    other += await _broken_indexes(session, pristine)
    other += await pristine.estimates.differ(session)
    if pristine.values_sql:
        rows = await session.rows(pristine.values_sql)
        now = {row["oid"]: (row["last_value"], row["is_called"]) for row in rows}
        if now != pristine.values:
            other.append("sequences")
    if facts[0].properties != facts[1].properties:
        other.append("the database's own properties")
    if other:
        raise ProofError(f"these differ from the template: {', '.join(sorted(other))}")


async def _broken_indexes(session: Session, pristine: Pristine) -> list[str]:
    """Return the names of indexes that do not hold what their tables hold.

    Of tables that are never put back they are left out: they may have been computed under other
    settings than ours, or by somebody's functions.
    """
    written = [table.oid for table in pristine.tables.values() if not table.obstacle]
    broken: list[str] = []
    for index in await session.rows(_INDEXES, written):
        try:
            await session.rows(_CHECKS[index["method"]], index["oid"], seconds=DIGEST_SECONDS)
        except StatementError as error:
            if error.sqlstate not in _CORRUPTED:
                raise
            broken.append(index["name"])
    return broken
