"""ANALYZE of a whole database in a few sessions: most of the time to seal a template."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.errors import ClonepoolError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.postgres.gateway import Gateway

SESSIONS = 2
"""Number of sessions that analyze at the same time."""
ANALYZE_SECONDS = 600.0
"""Time limit of one ANALYZE."""
QUIET = (
    "SET client_min_messages = error; SET default_transaction_read_only = off;"
    " SET exit_on_error = off"
)
"""Settings of the sessions that finish a template, as statements."""
_RELATIONS = """\
SELECT c.oid::regclass::text AS name,
       coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(c.oid)),
                pg_relation_size(c.oid), 0) + 8192 AS bytes
  FROM pg_class c
 WHERE relkind IN ('r', 'm', 'p') AND NOT relispartition AND relpersistence <> 't'
 ORDER BY 2 DESC
"""
"""Query of what ANALYZE works on; partitions are analyzed with their table."""


async def gather_statistics(gateway: Gateway, database: str) -> None:
    """Gather the statistics of all tables.

    Raises:
        ServerUnavailableError, StatementError: those of some tables may be gathered.
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
    """Split names into parts of about the same size; parts without names are left out.

    Args:
        sized: names with their sizes, the largest first. Each goes to the part that is smallest.
        parts: how many parts there are at most.
    """
    split_up: list[tuple[int, list[str]]] = [(0, []) for _ in range(parts)]
    for name, size in sized:
        smallest = min(range(parts), key=lambda n: split_up[n][0])
        total, names = split_up[smallest]
        names.append(name)
        split_up[smallest] = total + size, names
    return [names for _, names in split_up if names]
