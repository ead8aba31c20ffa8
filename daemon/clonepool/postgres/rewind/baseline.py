"""What a generation holds: the baseline that rewound clones are put back to.

It is read once from a clone that was never leased. The rows of small tables are kept in memory,
each as the text of a record, by their ctids. Those of larger tables are read from a reference clone
when they are needed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.quoting import identifier
from clonepool.postgres.rewind.digests import (
    ROWS_DIGEST,
    read_catalogs,
    read_digests,
    read_rows_digest,
)
from clonepool.postgres.rewind.layout import Ctid, page_of
from clonepool.postgres.rewind.planner_statistics import Estimates, read_estimates
from clonepool.postgres.rewind.relations import FIRST_USER_OID, PAGE_BYTES, read_files
from clonepool.postgres.rewind.row_locations import decode_ctids
from clonepool.postgres.rewind.unstable_expressions import DOMAINS, depends_on_settings
from clonepool.postgres.rewind.untrusted_code import read_untrusted_owners

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clonepool.postgres.rewind.relations import Files
    from clonepool.postgres.session import Session

LARGEST_IN_MEMORY_BYTES = 128 * 1024
"""Largest table whose rows are kept in memory."""
LARGEST_ALL_BYTES = 16 * 1024 * 1024
"""Most bytes of tables whose rows are kept in memory together; the smallest tables come first."""
LONGEST_TEXT_BYTES = 1024 * 1024
"""Most bytes of text of one such table; on disk its values may be compressed."""
LARGEST_UNLOGGED_BYTES = 4 * 1024 * 1024
"""Most bytes of unlogged tables; with more, nothing is rewound, as they are read after each
lease."""
LARGEST_DIGEST_BYTES = 16 * 1024 * 1024
"""Largest table whose digest is part of the baseline; others are read when one is verified."""
_READ_BYTES, _READ_TABLES = 1024 * 1024, 50
"""Most bytes of tables, and most tables, whose rows are read by one query."""

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
           AS always_triggered,
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
             SELECT expr FROM pg_index, unnest(ARRAY[indexprs::text, indpred::text]) AS expr
              WHERE indrelid = c.oid AND expr IS NOT NULL) AS expressions,
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
       array_send(array_agg(ctid)) AS ctids
  FROM (SELECT ctid, ROW(whole.*)::text AS line FROM ONLY {{name}} AS whole) AS rows
"""


class Table(msgspec.Struct, frozen=True):
    """One table of the template.

    Attributes:
        oid: its OID.
        name: its qualified name, for SQL.
        columns: the columns that can be written, for SQL.
        row_values: the same columns of a row that is called r, for SQL.
        obstacle: why its rows cannot be put back; empty if they can.
        toast: OID of its TOAST table; 0 for none.
        size: in bytes, including TOAST, but neither indexes nor maps.
        pages: how many it has.
        populated: whether it can hold rows; false for a materialized view that was never filled.
        readable: whether it may be read: it is populated, and no functions of untrusted owners
            belong to it, some of which run as soon as a query is planned.
        unlogged: whether its changes are not in the WAL.
        custom_storage: whether its access method may write to it without the WAL.
        rows: the text of each row by its ctid; None if they are not kept in memory.
        on_page: the ctids of these rows by page number.
        digest: of its rows; empty if it is not known.
    """

    oid: int
    name: str
    columns: str
    row_values: str
    obstacle: str
    toast: int
    size: int
    pages: int
    populated: bool
    readable: bool
    unlogged: bool
    custom_storage: bool
    rows: dict[Ctid, str] | None = None
    on_page: dict[int, set[Ctid]] = {}
    digest: str = ""

    @property
    def needs_reference(self) -> bool:
        """Whether its rows, if they have to be put back, are read from a reference clone."""
        return self.rows is None and not self.obstacle

    def ctids(self, pages: Iterable[int] | None) -> set[Ctid]:
        """Return the ctids of the rows in memory on some pages; None for all pages."""
        wanted = self.on_page if pages is None else self.on_page.keys() & set(pages)
        return set().union(*(self.on_page[page] for page in wanted))


class Baseline(msgspec.Struct, frozen=True):
    """What one generation holds.

    Attributes:
        tables: by OID.
        files: which relation each file belongs to.
        catalogs: names of the catalogs by OID.
        digest_sql: the query of each catalog's digest, by name.
        digests: the digest of each catalog, by name.
        sequences: last_value and is_called of each sequence, by OID.
        sequences_sql: the query of these; empty if there are no sequences.
        unlogged: OIDs of unlogged tables and sequences.
        estimates: the planner's numbers of tables and indexes.
    """

    tables: dict[int, Table]
    files: Files
    catalogs: dict[int, str]
    digest_sql: dict[str, str]
    digests: dict[str, str]
    sequences: dict[int, tuple[int, bool]]
    sequences_sql: str
    unlogged: frozenset[int]
    estimates: Estimates

    @property
    def pin(self) -> str:
        """A digest of the digests of catalogs, tables and sequences.

        Of a table whose digest is not known, only what catalogs say goes in.
        """
        tables = sorted((table.oid, table.digest) for table in self.tables.values())
        parts = [sorted(self.digests.items()), tables, sorted(self.sequences.items())]
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    @property
    def has_all_digests(self) -> bool:
        """Whether the digest of every populated table is known."""
        return all(table.digest or not table.populated for table in self.tables.values())

    @property
    def needs_reference(self) -> bool:
        """Whether the rows of any table are read from a reference clone."""
        return any(table.needs_reference for table in self.tables.values())

    @property
    def size(self) -> int:
        """Size of its tables in bytes."""
        return sum(table.size for table in self.tables.values())

    @property
    def obstacle(self) -> str:
        """Why no clone of it can be rewound; empty if clones can."""
        custom = next((table.name for table in self.tables.values() if table.custom_storage), "")
        if custom:
            return f"the access method of {custom} may write to it without the WAL"
        size = sum(table.size for table in self.tables.values() if table.unlogged)
        if size <= LARGEST_UNLOGGED_BYTES:
            return ""
        return f"its unlogged tables take {size} bytes, and their changes are not in the WAL"


async def read_baseline(session: Session, major: int) -> Baseline:
    """Read the baseline from a clone that was never leased.

    Args:
        session: to the clone.
        major: the server's version.
    """
    catalogs, digest_sql = await read_catalogs(session)
    sequences = await session.rows(_SEQUENCES)
    tables = await _read_tables(session)
    sequences_sql = _sequences_sql(sequences)
    values = await session.rows(sequences_sql) if sequences_sql else []
    unlogged = [table.oid for table in tables.values() if table.unlogged]
    unlogged += [row["oid"] for row in sequences if row["unlogged"]]
    return Baseline(
        tables=tables,
        files=await read_files(session),
        catalogs=catalogs,
        digest_sql=digest_sql,
        digests=await read_digests(session, digest_sql, set(digest_sql)),
        sequences={row["oid"]: (row["last_value"], row["is_called"]) for row in values},
        sequences_sql=sequences_sql,
        unlogged=frozenset(unlogged),
        estimates=await read_estimates(session, major),
    )


def _sequences_sql(sequences: list[dict[str, Any]]) -> str:
    return " UNION ALL ".join(
        f"SELECT {row['oid']}::bigint AS oid, last_value, is_called"
        f" FROM {identifier(row['schema'])}.{identifier(row['name'])}"
        for row in sequences
    )


async def _read_tables(session: Session) -> dict[int, Table]:
    """Read all tables, and the rows of the smallest up to `LARGEST_ALL_BYTES`."""
    domains = [(row["domain"], row["base"]) for row in await session.rows(DOMAINS)]
    owners = await read_untrusted_owners(session)
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
    """Yield the tables, in groups that are read by one query each."""
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
    ctids = decode_ctids(row["ctids"])
    lines = row["lines"] if ctids else []
    if lines is None:
        return msgspec.structs.replace(table, digest=row["digest"])
    on_page: defaultdict[int, set[Ctid]] = defaultdict(set)
    for ctid in ctids:
        on_page[page_of(ctid)].add(ctid)
    rows = dict(zip(ctids, lines, strict=True))
    return msgspec.structs.replace(table, digest=row["digest"], rows=rows, on_page=dict(on_page))


def _table(row: dict[str, Any], obstacle: str, *, trusted: bool) -> Table:
    columns = [identifier(column) for column in row["columns"]]
    return Table(
        oid=row["oid"],
        name=f"{identifier(row['schema'])}.{identifier(row['name'])}",
        columns=", ".join(columns),
        row_values=", ".join(f"r.{column}" for column in columns),
        obstacle=obstacle,
        toast=row["toast"],
        size=row["bytes"],
        pages=row["pages"],
        populated=row["populated"],
        readable=row["populated"] and trusted,
        unlogged=row["unlogged"],
        custom_storage=not row["is_heap"],
    )


def _obstacle(row: dict[str, Any], owner: str, domains: list[tuple[str, str]]) -> str:
    """Return why a table's rows cannot be put back, whatever its size; empty if they can."""
    reasons = {
        "it is a materialized view": row["kind"] == "m",
        f"it is stored by the access method {row['method']}": row["method"] != "heap",
        f"functions of {owner} run when its rows are written": bool(owner),
        "user-defined functions compute its generated columns or its indexes": row["computed"],
        "its generated columns or its indexes depend on settings": any(
            depends_on_settings(each, domains) for each in row["expressions"]
        ),
        "it has triggers or rules that cannot be kept out": row["always_triggered"],
        "it has no columns that can be written": not row["columns"],
        "the text of its XML values does not hold all of them": row["has_xml"],
        "the database has no encoding": row["no_encoding"],
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
