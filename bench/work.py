"""The templates that are leased, and what the leases do to their clones."""

from __future__ import annotations

import asyncpg

from bench.cpu import task_seconds

TABLES, ROWS = 20, 100
CHANGED = 4
"""Tables that an ordinary lease changes."""


def many(tables: int) -> str:
    """Return SQL of a template of some tables with 100 rows each."""
    return "".join(
        f"CREATE TABLE t{n} (id int PRIMARY KEY, v text, at timestamptz DEFAULT now());\n"
        f"INSERT INTO t{n} SELECT i, 'row ' || i FROM generate_series(1, {ROWS}) i;\n"
        for n in range(tables)
    )


SMALL = many(TABLES)
"""The template of 20 tables; 10 MB, mostly catalogs."""
READS = "SELECT count(*) FROM t0"
ROW_BYTES = 200
"""Bytes of a row of the big table, with its share of the index."""


def writes(tables: int) -> str:
    """Return SQL that updates 5 rows, adds one and deletes one in some of the small tables."""
    return "; ".join(
        f"UPDATE t{n} SET v = 'x' WHERE id < 6; INSERT INTO t{n} VALUES (1000);"
        f" DELETE FROM t{n} WHERE id = 50"
        for n in range(tables)
    )


WRITES = writes(CHANGED)


def writes_everywhere(tables: int) -> str:
    """Return SQL that updates one row in each of some small tables."""
    return "; ".join(f"UPDATE t{n} SET v = 'x' WHERE id = 7" for n in range(tables))


def big(rows: int) -> str:
    """Return SQL of a template with one table of that many rows, some 200 bytes each."""
    return (
        "CREATE TABLE big (id int PRIMARY KEY, v text, at timestamptz DEFAULT now());\n"
        "INSERT INTO big SELECT i, repeat('lorem ipsum ', 10) || i"
        f" FROM generate_series(1, {rows}) i;\n"
    )


def big_writes(rows: int, changed: int = 5) -> str:
    """Return SQL that updates `changed` rows anywhere in the big table, adds one, deletes one.

    Which rows is left to chance, so that they are others each time; of very many a few are chosen
    twice.

    Args:
        rows: that the table has.
        changed: how many of them to update.
    """
    anywhere = f"1 + floor(random() * {rows})::int"
    return (
        f"UPDATE big SET v = 'x' WHERE id = ANY (ARRAY(SELECT {anywhere}"
        f" FROM generate_series(1, {changed})));"
        f" INSERT INTO big VALUES ({rows + 1}, 'one more');"
        f" DELETE FROM big WHERE id = (SELECT {anywhere})"
    )


def big_writes_together(rows: int, changed: int) -> str:
    """Return SQL that does as `big_writes`, to rows that follow each other anywhere."""
    return (
        f"DO $$ DECLARE first int := 1 + floor(random() * {rows - changed})::int; BEGIN"
        f" UPDATE big SET v = 'x' WHERE id BETWEEN first AND first + {changed - 1}; END $$;"
        f" INSERT INTO big VALUES ({rows + 1}, 'one more')"
    )


async def visit(url: str, script: str) -> float:
    """Connect, run the script, disconnect: what every client does with its database.

    Returns:
        the seconds of CPU that the client's own backend has used on this machine by then, but for
        those of its start within the postmaster, and of its end.
    """
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(script)
        return task_seconds(connection.get_server_pid())
    finally:
        await connection.close()
