"""Which relation each file of a database belongs to."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from clonepool.postgres.rewind.touched_pages import File

if TYPE_CHECKING:
    from clonepool.postgres.session import Session

FIRST_USER_OID = 16_384
"""Least OID of an object that initdb did not make (FirstNormalObjectId)."""
PAGE_BYTES = 8192
"""Size of a page, as nearly all servers are built."""

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
"""pg_relation_filenode also knows the files of mapped catalogs, which pg_class does not name."""


class RelationKind(Enum):
    """What a change of a relation's file means."""

    CATALOG = "a catalog, or its TOAST table"
    TABLE = "a table or materialized view"
    TOAST = "a table's TOAST table, which is not written to without the table"
    SEQUENCE = "a sequence"
    DERIVED = "an index, whose contents follow from its table"


class Relation(NamedTuple):
    """A relation that has a file.

    Attributes:
        oid: its OID.
        kind: what it is.
        owner: for a TOAST table, the OID of its table or catalog; else its own OID.
    """

    oid: int
    kind: RelationKind
    owner: int


Files = dict[File, Relation]
"""All relations of a database, except temporary and shared ones, by their files."""


async def read_files(session: Session) -> Files:
    """Read which relation each file of the session's database belongs to now."""
    (row,) = await session.rows(_FILES)
    files = map(File, row["tablespaces"], row["files"])
    relations = zip(row["oids"], row["kinds"], row["owners"], strict=True)
    return {
        file: Relation(oid, _kind(relkind, owner), owner)
        for file, (oid, relkind, owner) in zip(files, relations, strict=True)
    }


def _kind(relkind: str, owner: int) -> RelationKind:
    if relkind == "S":
        return RelationKind.SEQUENCE
    if relkind not in ("r", "m", "t"):
        return RelationKind.DERIVED
    if owner < FIRST_USER_OID:
        return RelationKind.CATALOG
    return RelationKind.TOAST if relkind == "t" else RelationKind.TABLE
