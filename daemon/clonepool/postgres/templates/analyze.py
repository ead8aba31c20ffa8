"""ANALYZE of a whole database, a few sessions at a time: most of what sealing a template takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.errors import ClonepoolError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.postgres.gateway import Gateway

SESSIONS = 2
ANALYZE_SECONDS = 600.0
QUIET = (
    "SET client_min_messages = error; SET default_transaction_read_only = off;"
    " SET exit_on_error = off"
)
_RELATIONS = """\
SELECT c.oid::regclass::text AS name,
       coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(c.oid)),
                pg_relation_size(c.oid), 0) + 8192 AS bytes
  FROM pg_class c
 WHERE relkind IN ('r', 'm', 'p') AND NOT relispartition AND relpersistence <> 't'
 ORDER BY 2 DESC
"""
"""What ANALYZE alone takes on; partitions come with the table that they are of."""


async def gather_statistics(gateway: Gateway, database: str) -> None:
    """Gather the statistics of all tables.

    Raises:
        ServerUnavailableError, StatementError: some may be gathered.
    """
    async with gateway.session(database) as session:
        rows = await session.rows(_RELATIONS)
    errors: list[ClonepoolError] = []

    async def work(names: list[str]) -> None:
        try:
            async with gateway.session(database) as session:
                await session.execute(QUIET)
                await session.execute(f"ANALYZE {', '.join(names)}", seconds=ANALYZE_SECONDS)
        except ClonepoolError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for names in split(((row["name"], int(row["bytes"])) for row in rows), SESSIONS):
            tasks.start_soon(work, names)
    if errors:
        raise errors[0]


def split(sized: Iterable[tuple[str, int]], parts: int) -> list[list[str]]:
    """Deal names out, the largest first, each to whoever has the least; nobody gets nothing."""
    dealt: list[tuple[int, list[str]]] = [(0, []) for _ in range(parts)]
    for name, size in sized:
        least = min(range(parts), key=lambda n: dealt[n][0])
        total, names = dealt[least]
        names.append(name)
        dealt[least] = total + size, names
    return [names for _, names in dealt if names]
