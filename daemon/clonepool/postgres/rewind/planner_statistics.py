"""What the planner believes of the sizes of relations: the numbers that pg_class keeps.

VACUUM and ANALYZE write them, whoever's they are, and so plans would drift from lease to lease.
They are put back where they differ. Pages are those that a relation has: the planner takes rows a
page from these numbers and multiplies by the size of the file. So a file that could not be made as
small as it was still is believed to hold as many rows as ever.

The numbers of catalogs are let be, and what ANALYZE finds out about values stands in catalogs that
are compared like all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.rewind.relations import FIRST_USER_OID, PAGE_BYTES

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session

ALL_FROZEN_MAJOR = 18
"""From this version on pg_class says how many pages are all-frozen."""
_MISSING, _FROZEN = "0 AS relallfrozen", "relallfrozen"
_READ = f"""\
SELECT oid::bigint AS oid, relpages, reltuples, relallvisible, {_MISSING},
       relkind IN ('r', 't', 'm', 'i')
           AND relpages = pg_relation_size(oid) / {PAGE_BYTES} AS is_true
  FROM pg_catalog.pg_class
 WHERE oid >= {FIRST_USER_OID} AND relkind IN ('r', 't', 'm', 'i', 'p', 'I') ORDER BY oid
"""
_COMPARED = f"""\
       (SELECT *, CASE WHEN visible_then = pages_then THEN pages ELSE visible_then END AS visible,
               CASE WHEN frozen_then = pages_then THEN pages ELSE frozen_then END AS frozen
          FROM (SELECT *, CASE WHEN true_then THEN pg_relation_size(oid) / {PAGE_BYTES}
                               ELSE pages_then END AS pages
                  FROM unnest($1::oid[], $2::int[], $3::real[], $4::int[], $5::int[], $6::bool[])
                       AS was (oid, pages_then, tuples, visible_then, frozen_then, true_then)
               ) AS sized) AS wanted
 WHERE c.oid = wanted.oid
"""
_VISIBLE = "relpages, reltuples, relallvisible"
_WANTED = "wanted.pages, wanted.tuples, wanted.visible"


class Estimates(msgspec.Struct, frozen=True):
    """The numbers of all tables and indexes of a template, those of TOAST included.

    Attributes:
        oids: whose; the other lists are in the same order.
        pages: how many there were.
        tuples: how many rows or entries, -1 where nobody has counted.
        visible: how many pages were all-visible.
        frozen: how many were all-frozen, 0 in versions that do not say.
        true: whether there were as many pages as that: VACUUM passes over indexes, and a parent of
            partitions has no file.
    """

    oids: list[int]
    pages: list[int]
    tuples: list[float]
    visible: list[int]
    frozen: list[int]
    true: list[bool]

    async def differ(self, session: Session) -> list[str]:
        """Return the names of relations of which the planner believes something else.

        Of one that has grown it may go on believing what it did until VACUUM has looked.
        """
        rows = await session.rows(
            f"SELECT c.oid::regclass::text AS name FROM pg_catalog.pg_class AS c, {_COMPARED}"
            " AND (reltuples <> tuples"
            " OR relpages NOT BETWEEN SYMMETRIC pages_then AND pages"
            " OR relallvisible NOT BETWEEN SYMMETRIC visible_then AND visible)",
            *self._arguments,
        )
        return [row["name"] for row in rows]

    async def put_back(self, session: Session, major: int) -> bool:
        """Let the planner believe what it did; say whether that had to be written.

        Only a superuser may write here.
        """
        columns, wanted = _compared(major)
        written = await session.rows(
            f"UPDATE pg_catalog.pg_class AS c SET ({columns}) = ROW({wanted}) FROM {_COMPARED}"
            f" AND ROW({columns}) IS DISTINCT FROM ROW({wanted}) RETURNING 1",
            *self._arguments,
        )
        return bool(written)

    @property
    def _arguments(self) -> tuple[list[Any], ...]:
        return self.oids, self.pages, self.tuples, self.visible, self.frozen, self.true


async def read_estimates(session: Session, major: int) -> Estimates:
    """Read the numbers of a clone that nobody has had."""
    rows = await session.rows(
        _READ.replace(_MISSING, _FROZEN) if major >= ALL_FROZEN_MAJOR else _READ
    )
    names = ("oid", "relpages", "reltuples", "relallvisible", "relallfrozen", "is_true")
    return Estimates(*([row[name] for row in rows] for name in names))


def _compared(major: int) -> tuple[str, str]:
    """Return the columns that this version has, and what they should be."""
    if major >= ALL_FROZEN_MAJOR:
        return f"{_VISIBLE}, relallfrozen", f"{_WANTED}, wanted.frozen"
    return _VISIBLE, _WANTED
