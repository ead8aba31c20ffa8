"""Which relation each file of a database belongs to."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from clonepool.postgres.rewind.touched_pages import File

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session

FIRST_USER_OID = 16_384
PAGE_BYTES = 8192
"""Of a server that was built as nearly all are."""

_FILES = """\
SELECT array_agg(oid) AS oids, array_agg(tablespace) AS tablespaces, array_agg(file) AS files,
       array_agg(kind) AS kinds, array_agg(owner) AS owners
  FROM (SELECT c.oid::int8 AS oid, pg_relation_filenode(c.oid)::int8 AS file,
               coalesce(nullif(c.reltablespace, 0), dattablespace)::int8 AS tablespace,
               c.relkind::text AS kind, coalesce(o.oid, c.oid)::int8 AS owner
          FROM pg_class c CROSS JOIN pg_database
               LEFT JOIN pg_class o ON c.relkind = 't' AND o.reltoastrelid = c.oid
         WHERE datname = current_database() AND NOT c.relisshared AND c.relpersistence <> 't'
       ) AS relations
 WHERE file IS NOT NULL
"""
"""pg_relation_filenode knows the files of catalogs too that pg_class does not name."""


class Kind(Enum):
    """What a change of a relation's file means."""

    CATALOG = "a catalog, or the long values of one"
    TABLE = "a table or materialized view"
    TOAST = "the long values of a table: nothing is written there without a row of that"
    SEQUENCE = "a sequence"
    DERIVED = "an index: it follows from its table"


class Relation(NamedTuple):
    """A relation that has a file.

    Attributes:
        oid: its own.
        kind: what it is.
        owner: the OID of the table or catalog whose long values it holds; else its own.
    """

    oid: int
    kind: Kind
    owner: int


Files = dict[File, Relation]
"""All relations of a database but temporary ones and those of the server as a whole."""


async def read_files(session: Session) -> Files:
    """Read which relation each file of the session's database belongs to now."""
    (row,) = await session.rows(_FILES)
    files = map(File, row["tablespaces"], row["files"])
    relations = zip(row["oids"], row["kinds"], row["owners"], strict=True)
    return {
        file: Relation(oid, _kind(kind, owner), owner)
        for file, (oid, kind, owner) in zip(files, relations, strict=True)
    }


def _kind(relkind: str, owner: int) -> Kind:
    if relkind == "S":
        return Kind.SEQUENCE
    if relkind not in ("r", "m", "t"):
        return Kind.DERIVED
    if owner < FIRST_USER_OID:
        return Kind.CATALOG
    return Kind.TOAST if relkind == "t" else Kind.TABLE
