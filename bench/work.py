"""The templates that are leased, and what the leases do to their clones."""

from __future__ import annotations

import asyncpg

TABLES, ROWS = 20, 100
CHANGED = 4
"""Tables that an ordinary lease changes."""

SMALL = "".join(
    f"CREATE TABLE t{n} (id int PRIMARY KEY, v text, at timestamptz DEFAULT now());\n"
    f"INSERT INTO t{n} SELECT i, 'row ' || i FROM generate_series(1, {ROWS}) i;\n"
    for n in range(TABLES)
)
"""SQL of the template of 20 tables with 100 rows each; 10 MB, most of them the catalogs."""
READS = "SELECT count(*) FROM t0"
ROW_BYTES = 200
"""What a row of the big table takes, with its share of the index."""


def writes(tables: int) -> str:
    """Return SQL that updates 5 rows, adds one and deletes one in so many of the small tables."""
    return "; ".join(
        f"UPDATE t{n} SET v = 'x' WHERE id < 6; INSERT INTO t{n} VALUES (1000);"
        f" DELETE FROM t{n} WHERE id = 50"
        for n in range(tables)
    )


WRITES = writes(CHANGED)


def big(rows: int) -> str:
    """Return SQL of a template with one table of so many rows, some 200 bytes each."""
    return (
        "CREATE TABLE big (id int PRIMARY KEY, v text, at timestamptz DEFAULT now());\n"
        "INSERT INTO big SELECT i, repeat('lorem ipsum ', 10) || i"
        f" FROM generate_series(1, {rows}) i;\n"
    )


def big_writes(rows: int, changed: int = 5) -> str:
    """Return SQL that updates `changed` rows in the midst of the big table, adds one, deletes one.

    Args:
        rows: that the table has.
        changed: how many of them to update.
    """
    first = max(1, rows // 2 - changed // 2)
    return (
        f"UPDATE big SET v = 'x' WHERE id BETWEEN {first} AND {first + changed - 1};"
        f" INSERT INTO big VALUES ({rows + 1}, 'one more'); DELETE FROM big WHERE id = {rows // 4}"
    )


async def visit(url: str, script: str) -> None:
    """Connect, run the script, disconnect: what every client does with its database."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(script)
    finally:
        await connection.close()
