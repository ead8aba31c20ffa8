"""What a generation holds, read once from a clone that nobody has had: the measure of every rewind.

Small tables are kept in memory, as COPY wrote them, to be put back without asking anybody.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import msgspec

from clonepool.postgres.gateway import identifier
from clonepool.postgres.rewind.survey import FIRST_USER_OID

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session

LARGEST_TABLE_BYTES = 1024 * 1024
LARGEST_PROVEN_BYTES = 64 * 1024 * 1024
LARGEST_ALL_BYTES = 64 * 1024 * 1024

_VOLATILE = {
    "pg_class": {
        "relfilenode", "relpages", "reltuples", "relallvisible", "relallfrozen", "relfrozenxid",
        "relminmxid",
    },
}  # fmt: skip
"""Columns that change without anybody having changed anything."""
_CONDITIONS = {"pg_namespace": "nspname !~ '^pg_(toast_)?temp_'"}
"""The first temporary table of a database makes schemas that stay."""
STATISTICS = ("pg_statistic", "pg_statistic_ext_data")
"""ANALYZE alone writes these: they are made anew and not compared."""

_TABLES = f"""\
SELECT c.oid::bigint AS oid, relkind::text AS kind, nspname AS schema, relname AS name,
       reltoastrelid::bigint AS toast, pg_table_size(c.oid) AS bytes,
       ARRAY(SELECT attname::text FROM pg_attribute
              WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
              ORDER BY attnum) AS columns,
       EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgenabled IN ('A', 'R'))
           OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid AND ev_enabled IN ('A', 'R'))
           AS watched
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
 WHERE relkind IN ('r', 'm') AND c.oid >= {FIRST_USER_OID}
"""

_CATALOGS = f"""\
SELECT c.oid::bigint AS oid, c.oid::regclass::text AS name, reltoastrelid::bigint AS toast,
       ARRAY(SELECT attname::text FROM pg_attribute
              WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum) AS columns
  FROM pg_class c WHERE relkind = 'r' AND NOT relisshared AND c.oid < {FIRST_USER_OID}
"""

_SEQUENCES = """\
SELECT c.oid::bigint AS oid, nspname AS schema, relname AS name
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'S' ORDER BY c.oid
"""


class Table(msgspec.Struct, frozen=True):
    """One table of the template.

    Attributes:
        name: qualified and quoted.
        columns: quoted, those that can be written.
        obstacle: why its rows cannot be put back; empty when they can.
        rows: as COPY wrote them in binary; empty when there is an obstacle.
        count: how many they are.
        digest: of its rows, whatever their order; empty for a table too large to be read whole.
    """

    oid: int
    schema: str
    relation: str
    columns: list[str]
    obstacle: str
    rows: bytes
    count: int
    digest: str

    @property
    def name(self) -> str:
        """The table's name for SQL."""
        return f"{identifier(self.schema)}.{identifier(self.relation)}"


class Pristine(msgspec.Struct, frozen=True):
    """The measure of one generation.

    Attributes:
        tables: by OID.
        owner_of_toast: the table whose long values a toast table holds.
        catalogs: names by OID, those of their toast tables too.
        digest_sql: how the digest of a catalog is read, by name.
        digests: what that says of the template.
        sequences: last value and whether it was called, by OID.
        sequences_sql: reads them all.
    """

    tables: dict[int, Table]
    owner_of_toast: dict[int, int]
    catalogs: dict[int, str]
    digest_sql: dict[str, str]
    digests: dict[str, str]
    sequences: dict[int, tuple[int, bool]]
    sequences_sql: str


async def read_pristine(session: Session) -> Pristine:
    """Read the measure from a session to a clone that nobody has had."""
    catalogs = await session.rows(_CATALOGS)
    digest_sql = {row["name"]: _digest_sql(row["name"], row["columns"]) for row in catalogs}
    sequences = {
        row["oid"]: f"{identifier(row['schema'])}.{identifier(row['name'])}"
        for row in await session.rows(_SEQUENCES)
    }
    rows = await session.rows(_TABLES)
    sequences_sql = _sequences_sql(sequences)
    values = await session.rows(sequences_sql) if sequences_sql else []
    return Pristine(
        tables=await _read_tables(session, rows),
        owner_of_toast={row["toast"]: row["oid"] for row in rows if row["toast"]},
        catalogs={
            oid: row["name"] for row in catalogs for oid in (row["oid"], row["toast"]) if oid
        },
        digest_sql=digest_sql,
        digests=await read_digests(session, digest_sql, set(digest_sql)),
        sequences={row["oid"]: (row["last_value"], row["is_called"]) for row in values},
        sequences_sql=sequences_sql,
    )


async def read_digests(
    session: Session, digest_sql: dict[str, str], catalogs: set[str]
) -> dict[str, str]:
    """Return a digest of the rows of each of these catalogs."""
    wanted = sorted(catalogs - set(STATISTICS))
    if not wanted:
        return {}
    (row,) = await session.rows(
        "SELECT " + ", ".join(f"({digest_sql[name]}) AS {identifier(name)}" for name in wanted)
    )
    return {name: row[name] for name in wanted}


async def read_rows_digest(session: Session, table: str) -> str:
    """Return a digest of a table's rows, whatever their order."""
    return str(
        await session.value(
            "SELECT count(*) || ',' || coalesce(sum(hashtextextended((whole.*)::text, 0)), 0)"
            f" FROM ONLY {table} AS whole"
        )
    )


def _digest_sql(catalog: str, columns: list[str]) -> str:
    kept = [identifier(name) for name in columns if name not in _VOLATILE.get(catalog, set())]
    condition = _CONDITIONS.get(catalog, "true")
    return (
        f"SELECT count(*) || ',' || coalesce(sum(hashtextextended(ROW({', '.join(kept)})::text, 0)"
        f"), 0) FROM {catalog} WHERE {condition}"
    )


def _sequences_sql(sequences: dict[int, str]) -> str:
    return " UNION ALL ".join(
        f"SELECT {oid}::bigint AS oid, last_value, is_called FROM {name}"
        for oid, name in sequences.items()
    )


async def _read_tables(session: Session, rows: list[dict[str, object]]) -> dict[int, Table]:
    """Read the rows of small tables, the smallest first, as far as memory is meant to go."""
    tables: dict[int, Table] = {}
    left = LARGEST_ALL_BYTES
    for row in sorted(rows, key=lambda row: int(str(row["bytes"]))):
        size = int(str(row["bytes"]))
        table = msgspec.convert(
            {
                **{key: row[key] for key in ("oid", "schema", "columns")},
                "relation": row["name"],
                "obstacle": _obstacle(row, size, left),
                "rows": b"",
                "count": 0,
                "digest": "",
            },
            Table,
        )
        if not table.obstacle:
            written = io.BytesIO()
            count = await session.copy_out(table.schema, table.relation, table.columns, written)
            table = msgspec.structs.replace(table, rows=written.getvalue(), count=count)
            left -= size
        if size <= LARGEST_PROVEN_BYTES:
            digest = await read_rows_digest(session, table.name)
            table = msgspec.structs.replace(table, digest=digest)
        tables[table.oid] = table
    return tables


def _obstacle(row: dict[str, object], size: int, left: int) -> str:
    if row["kind"] == "m":
        return "it is a materialized view"
    if row["watched"]:
        return "it has triggers or rules that cannot be kept out"
    return "it is too large" if size > min(LARGEST_TABLE_BYTES, left) else ""
