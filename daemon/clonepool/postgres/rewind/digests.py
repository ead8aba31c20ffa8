"""Digests of the rows of tables and catalogs, which do not depend on the order of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.postgres.quoting import identifier
from clonepool.postgres.rewind.relations import FIRST_USER_OID

if TYPE_CHECKING:
    from clonepool.postgres.session import Session

DIGEST_SECONDS = 600.0
"""Time limit of a query that reads a whole table or index."""

_VOLATILE = {
    "pg_class": {
        "relfilenode", "relpages", "reltuples", "relallvisible", "relallfrozen", "relfrozenxid",
        "relminmxid",
    },
}  # fmt: skip
"""Columns that PostgreSQL changes on its own; they are left out."""
_CONDITIONS = {
    "pg_namespace": "nspname !~ '^pg_(toast_)?temp_[0-9]+$' OR nspacl IS NOT NULL",
}
"""Rows that count. The first temporary table of a database leaves schemas behind."""
_HASHED = ", ".join(
    f"'{name}'"
    for name in (
        "bool", "char", "float4", "int2", "int4", "int8", "name", "oid", "_oid", "oidvector",
        "regproc", "text", "_text", "timestamptz", "xid",
    )
)  # fmt: skip
"""Types of catalogs' columns that have a hash function; columns of other types are cast to text,
which takes longer."""
_CATALOGS = f"""\
SELECT c.oid::bigint AS oid, c.oid::regclass::text AS name,
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0
                    AND NOT attisdropped ORDER BY attnum) AS columns,
       ARRAY(SELECT typname IN ({_HASHED}) FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
              WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum) AS hashed
  FROM pg_class c WHERE relkind = 'r' AND NOT relisshared AND c.oid < {FIRST_USER_OID}
"""
ROWS_DIGEST = "count(*) || ',' || coalesce(sum(hashtextextended({line}, 0)), 0)"
"""SQL of the digest of rows, each of which is given as text."""


async def read_catalogs(session: Session) -> tuple[dict[int, str], dict[str, str]]:
    """Return the names of the catalogs by OID, and the query of each one's digest by name."""
    rows = await session.rows(_CATALOGS)
    return {row["oid"]: row["name"] for row in rows}, {
        row["name"]: _digest_sql(row["name"], dict(zip(row["columns"], row["hashed"], strict=True)))
        for row in rows
    }


async def read_digests(
    session: Session, digest_sql: dict[str, str], catalogs: set[str]
) -> dict[str, str]:
    """Return the digest of each of these catalogs, by name."""
    wanted = sorted(catalogs)
    if not wanted:
        return {}
    (row,) = await session.rows(
        "SELECT " + ", ".join(f"({digest_sql[name]}) AS {identifier(name)}" for name in wanted)
    )
    return {name: row[name] for name in wanted}


async def read_rows_digest(session: Session, table: str) -> str:
    """Return a digest of a table's rows.

    ROW(whole.*) is of type record. The table's own row type may have a user's cast to text.
    """
    digest = ROWS_DIGEST.format(line="ROW(whole.*)::text")
    (row,) = await session.rows(
        f"SELECT {digest} AS digest FROM ONLY {table} AS whole", seconds=DIGEST_SECONDS
    )
    return str(row["digest"])


def _digest_sql(catalog: str, columns: dict[str, bool]) -> str:
    """Return the query of a catalog's digest.

    Args:
        catalog: its name.
        columns: whether the type of each column has a hash function, by name.
    """
    kept = ", ".join(
        identifier(name) if hashed else f"{identifier(name)}::text"
        for name, hashed in columns.items()
        if name not in _VOLATILE.get(catalog, set())
    )
    condition = _CONDITIONS.get(catalog, "true")
    return (
        f"SELECT count(*) || ',' || coalesce(sum(hash_record_extended(ROW({kept}), 0)), 0)"
        f" FROM {catalog} WHERE {condition}"
    )
