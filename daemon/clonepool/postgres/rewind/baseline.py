"""What a generation holds, read once from a clone that nobody has had: the measure of every rewind.

The rows of small tables are kept in memory, as the text of a record each, by their places. Those of
larger ones are read when they are needed, from a reference.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.gateway import identifier
from clonepool.postgres.rewind.digests import (
    ROWS_DIGEST,
    read_catalogs,
    read_digests,
    read_rows_digest,
)
from clonepool.postgres.rewind.layout import Place, page_of
from clonepool.postgres.rewind.planner_statistics import Estimates, read_estimates
from clonepool.postgres.rewind.relations import FIRST_USER_OID, PAGE_BYTES, read_files
from clonepool.postgres.rewind.row_locations import read_sent
from clonepool.postgres.rewind.unstable_expressions import DOMAINS, depends_on_settings
from clonepool.postgres.rewind.untrusted_code import read_owners

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.relations import Files

LARGEST_IN_MEMORY_BYTES = 128 * 1024
LARGEST_ALL_BYTES = 16 * 1024 * 1024
"""So much of tables is kept in memory together, the smallest first."""
LONGEST_TEXT_BYTES = 1024 * 1024
"""Of one table: stored, its values may have been compressed."""
LARGEST_UNLOGGED_BYTES = 4 * 1024 * 1024
"""Unlogged tables are read whole after each lease: with more of them nothing is rewound."""
LARGEST_DIGEST_BYTES = 16 * 1024 * 1024
"""The digest of a larger table is taken when a proof first needs it."""
_READ_BYTES, _READ_TABLES = 1024 * 1024, 50
"""So much is read at a time."""

_TABLES = f"""\
SELECT c.oid::bigint AS oid, relkind::text AS kind, nspname AS schema, relname AS name,
       reltoastrelid::bigint AS toast,
       pg_relation_size(c.oid) + CASE WHEN reltoastrelid <> 0 THEN pg_relation_size(reltoastrelid)
                                      ELSE 0 END AS bytes,
       pg_relation_size(c.oid) / {PAGE_BYTES} AS pages,
       relpersistence = 'u' AS unlogged,
       ARRAY(SELECT attname::text FROM pg_attribute
              WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
              ORDER BY attnum) AS columns,
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
       (SELECT amhandler = 'heap_tableam_handler'::regproc FROM pg_am WHERE oid = relam) AS is_heap,
       getdatabaseencoding() = 'SQL_ASCII' AS no_encoding,
       EXISTS (SELECT FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
                       LEFT JOIN pg_type b ON b.oid IN (t.typelem, t.typbasetype)
                WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
                      AND 'xml' IN (t.typname, b.typname)) AS has_xml,
       relispopulated AS populated
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
 WHERE relkind IN ('r', 'm') AND c.oid >= {FIRST_USER_OID}
"""
_SEQUENCES = """\
SELECT c.oid::bigint AS oid, nspname AS schema, relname AS name, relpersistence = 'u' AS unlogged
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'S' ORDER BY c.oid
"""
_ROWS = f"""\
SELECT {{oid}}::bigint AS oid, {ROWS_DIGEST.format(line="line")} AS digest,
       CASE WHEN sum(octet_length(line)) <= {LONGEST_TEXT_BYTES} THEN array_agg(line) END AS lines,
       array_send(array_agg(ctid)) AS places
  FROM (SELECT ctid, ROW(whole.*)::text AS line FROM ONLY {{name}} AS whole) AS rows
"""


class Table(msgspec.Struct, frozen=True):
    """One table of the template.

    Attributes:
        name: the table's, for SQL.
        columns: those that can be written, for SQL.
        values: the same, of a row that is called r.
        obstacle: why its rows cannot be put back; empty when they can.
        toast: OID of its TOAST table, 0 for none.
        size: in bytes, TOAST included, but neither indexes nor maps.
        pages: how many it has.
        populated: whether there is anything in it: not a materialized view that never was filled.
        readable: whether it can be read: not a materialized view that never was filled, nor a table
            with functions of others, some of which run already when a query is planned.
        unlogged: whether the log does not tell of it.
        foreign: whether it is kept by code that may write to it without telling the log.
        rows: the text of each row by its place; None where they are read from the reference.
        on_page: the places of these by the number of the page.
        digest: of its rows, whatever their order; empty when it was not taken yet.
    """

    oid: int
    name: str
    columns: str
    values: str
    obstacle: str
    toast: int
    size: int
    pages: int
    populated: bool
    readable: bool
    unlogged: bool
    foreign: bool
    rows: dict[Place, str] | None = None
    on_page: dict[int, set[Place]] = {}
    digest: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether its rows are in memory, or need not be anywhere."""
        return self.rows is not None or bool(self.obstacle)

    def places(self, pages: Iterable[int] | None) -> set[Place]:
        """Return where there are rows, of those in memory, on some pages or on all."""
        wanted = self.on_page if pages is None else self.on_page.keys() & set(pages)
        return set().union(*(self.on_page[page] for page in wanted))


class Baseline(msgspec.Struct, frozen=True):
    """The measure of one generation.

    Attributes:
        tables: by OID.
        files: which relation each file belongs to.
        catalogs: names by OID.
        digest_sql: how the digest of a catalog is read, by name.
        digests: what that says of the template.
        values: of sequences, last value and whether it was called, by OID.
        values_sql: reads these.
        unlogged: OIDs of the tables and sequences of which the log does not tell.
        estimates: what the planner believes of the sizes of tables and indexes.
    """

    tables: dict[int, Table]
    files: Files
    catalogs: dict[int, str]
    digest_sql: dict[str, str]
    digests: dict[str, str]
    values: dict[int, tuple[int, bool]]
    values_sql: str
    unlogged: frozenset[int]
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

    @property
    def needs_reference(self) -> bool:
        """Whether rows of any table are read from a reference."""
        return not all(table.is_kept for table in self.tables.values())

    @property
    def size(self) -> int:
        """What its tables take, in bytes."""
        return sum(table.size for table in self.tables.values())

    @property
    def obstacle(self) -> str:
        """Why no clone of it is ever rewound; empty when they are."""
        foreign = next((table.name for table in self.tables.values() if table.foreign), "")
        if foreign:
            return f"what is written to {foreign}, by its access method, may not be in the log"
        size = sum(table.size for table in self.tables.values() if table.unlogged)
        if size <= LARGEST_UNLOGGED_BYTES:
            return ""
        return f"its unlogged tables take {size} bytes, and the log does not tell of them"


async def read_baseline(session: Session, major: int) -> Baseline:
    """Read the measure from a session to a clone that nobody has had.

    Args:
        session: to the clone.
        major: the server's version.
    """
    catalogs, digest_sql = await read_catalogs(session)
    sequences = await session.rows(_SEQUENCES)
    tables = await _read_tables(session)
    values_sql = _values_sql(sequences)
    values = await session.rows(values_sql) if values_sql else []
    unlogged = [table.oid for table in tables.values() if table.unlogged]
    unlogged += [row["oid"] for row in sequences if row["unlogged"]]
    return Baseline(
        tables=tables,
        files=await read_files(session),
        catalogs=catalogs,
        digest_sql=digest_sql,
        digests=await read_digests(session, digest_sql, set(digest_sql)),
        values={row["oid"]: (row["last_value"], row["is_called"]) for row in values},
        values_sql=values_sql,
        unlogged=frozenset(unlogged),
        estimates=await read_estimates(session, major),
    )


def _values_sql(sequences: list[dict[str, Any]]) -> str:
    return " UNION ALL ".join(
        f"SELECT {row['oid']}::bigint AS oid, last_value, is_called"
        f" FROM {identifier(row['schema'])}.{identifier(row['name'])}"
        for row in sequences
    )


async def _read_tables(session: Session) -> dict[int, Table]:
    """Read all tables, and the rows of small ones as far as memory is meant to go."""
    domains = [(row["domain"], row["base"]) for row in await session.rows(DOMAINS)]
    owners = await read_owners(session)
    found: dict[int, Table] = {}
    small: list[Table] = []
    left = LARGEST_ALL_BYTES
    for row in sorted(await session.rows(_TABLES), key=lambda row: int(row["bytes"])):
        owner = owners.get(row["oid"], "")
        table = _table(row, _obstacle(row, owner, domains), trusted=not owner)
        largest = LARGEST_UNLOGGED_BYTES if table.unlogged else LARGEST_IN_MEMORY_BYTES
        found[table.oid] = table
        if not table.obstacle and table.size <= min(largest, left):
            small.append(table)
            left -= table.size
        elif table.readable and table.size <= LARGEST_DIGEST_BYTES:
            digest = await read_rows_digest(session, table.name)
            found[table.oid] = msgspec.structs.replace(table, digest=digest)
    for some in _batches(small):
        sql = " UNION ALL ".join(_ROWS.format(oid=table.oid, name=table.name) for table in some)
        for row in await session.rows(sql):
            found[row["oid"]] = _with_rows(found[row["oid"]], row)
    return found


def _batches(tables: list[Table]) -> Iterator[list[Table]]:
    """Yield the tables, together as many as are read at a time."""
    some: list[Table] = []
    for table in tables:
        if some and (
            len(some) >= _READ_TABLES or sum(t.size for t in some) + table.size > _READ_BYTES
        ):
            yield some
            some = []
        some.append(table)
    if some:
        yield some


def _with_rows(table: Table, row: dict[str, Any]) -> Table:
    places = read_sent(row["places"])
    lines = row["lines"] if places else []
    if lines is None:
        return msgspec.structs.replace(table, digest=row["digest"])
    on_page: defaultdict[int, set[Place]] = defaultdict(set)
    for place in places:
        on_page[page_of(place)].add(place)
    rows = dict(zip(places, lines, strict=True))
    return msgspec.structs.replace(table, digest=row["digest"], rows=rows, on_page=dict(on_page))


def _table(row: dict[str, Any], obstacle: str, *, trusted: bool) -> Table:
    columns = [identifier(column) for column in row["columns"]]
    return Table(
        oid=row["oid"],
        name=f"{identifier(row['schema'])}.{identifier(row['name'])}",
        columns=", ".join(columns),
        values=", ".join(f"r.{column}" for column in columns),
        obstacle=obstacle,
        toast=row["toast"],
        size=row["bytes"],
        pages=row["pages"],
        populated=row["populated"],
        readable=row["populated"] and trusted,
        unlogged=row["unlogged"],
        foreign=not row["is_heap"],
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
        "it has no columns that can be written": not row["columns"],
        "the text of XML does not say all of it": row["has_xml"],
        "the database has no encoding": row["no_encoding"],
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
