"""What a generation holds, read once from a clone that nobody has had: the measure of every rewind.

Small tables are kept in memory, to be put back without asking anybody: as text, row by row, where
that says everything, else as COPY wrote them. Of larger ones the rows that are needed are read
when they are, from a reference.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.errors import StatementError
from clonepool.postgres.gateway import identifier
from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.estimates import Estimates, read_estimates
from clonepool.postgres.rewind.expressions import DOMAINS, depends_on_settings
from clonepool.postgres.rewind.owners import read_owners
from clonepool.postgres.rewind.rows import TOLD_BY_TEXT, read_rows
from clonepool.postgres.rewind.survey import FIRST_USER_OID

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session

LARGEST_IN_MEMORY_BYTES = 128 * 1024
"""Putting back some hundred rows costs less than finding out which of them were changed."""
LARGEST_WITHOUT_PAGES_BYTES = 1024 * 1024
"""The same of unlogged tables: their pages do not tell when they were written."""
LARGEST_ALL_BYTES = 16 * 1024 * 1024
LARGEST_DIGEST_BYTES = 16 * 1024 * 1024
"""The digest of a larger table is taken when a proof first needs it."""

DIGEST_SECONDS = 600.0

_VOLATILE = {
    "pg_class": {
        "relfilenode", "relpages", "reltuples", "relallvisible", "relallfrozen", "relfrozenxid",
        "relminmxid",
    },
}  # fmt: skip
"""Columns that change without anybody having changed anything."""
_CONDITIONS = {
    "pg_namespace": "nspname !~ '^pg_(toast_)?temp_[0-9]+$' OR nspacl IS NOT NULL",
}
"""The first temporary table of a database makes schemas that stay."""

_TABLES = f"""\
SELECT c.oid::bigint AS oid, relkind::text AS kind, nspname AS schema, relname AS name,
       reltoastrelid::bigint AS toast, pg_table_size(c.oid) AS bytes,
       reltoastrelid <> 0 AND pg_relation_size(reltoastrelid) > 0 AS toasted,
       relpersistence = 'p' AS logged,
       ARRAY(SELECT attname::text FROM pg_attribute
              WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
              ORDER BY attnum) AS columns,
       getdatabaseencoding() <> 'SQL_ASCII' AND (
           SELECT bool_and(t.typtype = 'e'
                           OR coalesce(b.typnamespace, t.typnamespace) = 'pg_catalog'::regnamespace
                              AND coalesce(b.typname, t.typname) IN ({TOLD_BY_TEXT}))
             FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
                  LEFT JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype
            WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
       ) AS told_by_text,
       EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgenabled IN ('A', 'R'))
           OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid AND ev_enabled IN ('A', 'R'))
           AS watched,
       EXISTS (SELECT FROM pg_depend d JOIN pg_attrdef e ON e.oid = d.objid
                       JOIN pg_attribute a ON attrelid = adrelid AND attnum = adnum
                WHERE adrelid = c.oid AND attgenerated = 's'
                      AND d.classid = 'pg_attrdef'::regclass AND refobjid <> c.oid
                      AND refobjid >= {FIRST_USER_OID})
           OR EXISTS (SELECT FROM pg_depend JOIN pg_index ON indexrelid = objid
                       WHERE indrelid = c.oid AND classid = 'pg_class'::regclass
                             AND refclassid = 'pg_proc'::regclass AND refobjid >= {FIRST_USER_OID})
           AS computed,
       ARRAY(SELECT adbin::text FROM pg_attrdef
                    JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
              WHERE adrelid = c.oid AND attgenerated = 's'
             UNION ALL
             SELECT said FROM pg_index, unnest(ARRAY[indexprs::text, indpred::text]) AS said
              WHERE indrelid = c.oid AND said IS NOT NULL) AS expressions,
       (SELECT amname::text FROM pg_am WHERE oid = relam) AS method,
       relispopulated AS populated
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
 WHERE relkind IN ('r', 'm') AND c.oid >= {FIRST_USER_OID}
"""

_HASHED = ", ".join(
    f"'{name}'"
    for name in (
        "bool", "char", "float4", "int2", "int4", "int8", "name", "oid", "_oid", "oidvector",
        "regproc", "text", "_text", "timestamptz", "xid",
    )
)  # fmt: skip
"""Types of catalogs' columns that go into a digest as they are; others have no hash, and go as
text, which takes longer."""
_CATALOGS = f"""\
SELECT c.oid::bigint AS oid, c.oid::regclass::text AS name, reltoastrelid::bigint AS toast,
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0
                    AND NOT attisdropped ORDER BY attnum) AS columns,
       ARRAY(SELECT typname IN ({_HASHED}) FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
              WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum) AS hashed
  FROM pg_class c WHERE relkind = 'r' AND NOT relisshared AND c.oid < {FIRST_USER_OID}
"""

_SEQUENCES = """\
SELECT c.oid::bigint AS oid, nspname AS schema, relname AS name
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'S' ORDER BY c.oid
"""


class Table(msgspec.Struct, frozen=True):
    """One table of the template.

    Attributes:
        columns: those that can be written.
        obstacle: why its rows cannot be put back; empty when they can.
        toast: OID of its TOAST table, 0 for none.
        size: in bytes, TOAST included.
        populated: whether there is anything in it: not a materialized view that never was filled.
        readable: whether it can be read: not a materialized view that never was filled, nor a table
            with functions of others, some of which run already when a query is planned.
        paged: whether its rows are put back by touched pages.
        toasted: whether values of it were stored apart.
        by_row: whether it is put back row by row.
        rows: those of a table that is, as `rows.read_rows` returns them.
        copied: those of any other that is kept in memory, as COPY wrote them in binary.
        count: how many these are.
        digest: of its rows, whatever their order; empty when it was not taken yet.
    """

    oid: int
    schema: str
    relation: str
    columns: list[str]
    obstacle: str
    toast: int
    size: int
    populated: bool
    readable: bool
    paged: bool
    toasted: bool
    by_row: bool = False
    rows: frozenset[str] = frozenset()
    copied: bytes = b""
    count: int = 0
    digest: str = ""

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
        values: of sequences, last value and whether it was called, by OID.
        values_sql: reads these.
        estimates: what the planner believes of the sizes of tables and indexes.
    """

    tables: dict[int, Table]
    owner_of_toast: dict[int, int]
    catalogs: dict[int, str]
    digest_sql: dict[str, str]
    digests: dict[str, str]
    values: dict[int, tuple[int, bool]]
    values_sql: str
    estimates: Estimates

    @property
    def pin(self) -> str:
        """What stands for all of it: one digest of the digests of catalogs, tables and sequences.

        Of tables whose digest was not taken only their names and columns go in, with the catalogs.
        """
        tables = sorted((table.oid, table.digest) for table in self.tables.values())
        told = [sorted(self.digests.items()), tables, sorted(self.values.items())]
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()

    @property
    def is_small(self) -> bool:
        """Whether there is a digest of every table that can be read."""
        return all(table.digest or not table.populated for table in self.tables.values())


async def read_pristine(session: Session, major: int) -> Pristine:
    """Read the measure from a session to a clone that nobody has had.

    Args:
        session: to the clone.
        major: the server's version.
    """
    catalogs = await session.rows(_CATALOGS)
    digest_sql = {
        row["name"]: _digest_sql(row["name"], dict(zip(row["columns"], row["hashed"], strict=True)))
        for row in catalogs
    }
    sequences = {
        row["oid"]: f"{identifier(row['schema'])}.{identifier(row['name'])}"
        for row in await session.rows(_SEQUENCES)
    }
    rows = await session.rows(_TABLES)
    values_sql = _values_sql(sequences)
    values = await session.rows(values_sql) if values_sql else []
    return Pristine(
        tables=await _read_tables(session, rows, await read_owners(session)),
        owner_of_toast={row["toast"]: row["oid"] for row in rows if row["toast"]},
        catalogs={
            oid: row["name"] for row in catalogs for oid in (row["oid"], row["toast"]) if oid
        },
        digest_sql=digest_sql,
        digests=await read_digests(session, digest_sql, set(digest_sql)),
        values={row["oid"]: (row["last_value"], row["is_called"]) for row in values},
        values_sql=values_sql,
        estimates=await read_estimates(session, major),
    )


async def read_digests(
    session: Session, digest_sql: dict[str, str], catalogs: set[str]
) -> dict[str, str]:
    """Return a digest of the rows of each of these catalogs."""
    wanted = sorted(catalogs)
    if not wanted:
        return {}
    (row,) = await session.rows(
        "SELECT " + ", ".join(f"({digest_sql[name]}) AS {identifier(name)}" for name in wanted)
    )
    return {name: row[name] for name in wanted}


async def read_rows_digest(session: Session, table: str) -> str:
    """Return a digest of a table's rows, whatever their order.

    A row of no named type: of one that has a name, somebody may have cast it to text in his way.
    """
    (row,) = await session.rows(
        "SELECT count(*) || ',' || coalesce(sum(hashtextextended(ROW(whole.*)::text, 0)), 0)"
        f" AS digest FROM ONLY {table} AS whole",
        seconds=DIGEST_SECONDS,
    )
    return str(row["digest"])


def _digest_sql(catalog: str, columns: dict[str, bool]) -> str:
    """Return the query of a catalog's digest; columns by name, and whether they have a hash."""
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


def _values_sql(sequences: dict[int, str]) -> str:
    return " UNION ALL ".join(
        f"SELECT {oid}::bigint AS oid, last_value, is_called FROM {name}"
        for oid, name in sequences.items()
    )


async def _read_tables(
    session: Session, rows: list[dict[str, Any]], owners: dict[int, str]
) -> dict[int, Table]:
    """Read the rows of small tables, the smallest first, as far as memory is meant to go."""
    domains = [(row["domain"], row["base"]) for row in await session.rows(DOMAINS)]
    tables: dict[int, Table] = {}
    left = LARGEST_ALL_BYTES
    for row in sorted(rows, key=lambda row: int(row["bytes"])):
        owner = owners.get(row["oid"], "")
        table = _table(row, left, _obstacle(row, owner, domains), trusted=not owner)
        if not table.obstacle and not table.paged:
            table = await _with_rows(session, table, by_row=row["told_by_text"])
            left -= table.size
        if table.readable and table.size <= LARGEST_DIGEST_BYTES:
            digest = await read_rows_digest(session, table.name)
            table = msgspec.structs.replace(table, digest=digest)
        tables[table.oid] = table
    return tables


async def _with_rows(session: Session, table: Table, *, by_row: bool) -> Table:
    if by_row:
        with contextlib.suppress(CannotRewindError):  # too long as text: it goes as a whole
            rows = await read_rows(session, [table])
            return msgspec.structs.replace(table, by_row=True, rows=rows)
    try:
        copied, count = await session.copy_out(table.schema, table.relation, table.columns)
    except StatementError as error:
        return msgspec.structs.replace(table, obstacle=f"its rows cannot be copied: {error}")
    return msgspec.structs.replace(table, copied=copied, count=count)


def _table(row: dict[str, Any], memory: int, obstacle: str, *, trusted: bool) -> Table:
    largest = LARGEST_IN_MEMORY_BYTES if row["logged"] else LARGEST_WITHOUT_PAGES_BYTES
    large = row["bytes"] > min(largest, memory)
    paged = large and row["logged"]
    if not obstacle and large and not paged:
        obstacle = "it is too large"
    return Table(
        oid=row["oid"],
        schema=row["schema"],
        relation=row["name"],
        columns=row["columns"],
        obstacle=obstacle,
        toast=row["toast"],
        size=row["bytes"],
        populated=row["populated"],
        readable=row["populated"] and trusted,
        paged=paged and not obstacle,
        toasted=row["toasted"],
    )


def _obstacle(row: dict[str, Any], owner: str, domains: list[tuple[str, str]]) -> str:
    """Return what stands in the way of putting a table's rows back, whatever its size."""
    reasons = {
        "it is a materialized view": row["kind"] == "m",
        f"it is kept by the access method {row['method']}": row["method"] != "heap",
        f"functions of {owner}'s run when its rows are written": bool(owner),
        "functions of its own compute what it holds, or its indexes": row["computed"],
        "what it or its indexes hold was computed under settings": any(
            depends_on_settings(said, domains) for said in row["expressions"]
        ),
        "it has triggers or rules that cannot be kept out": row["watched"],
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
