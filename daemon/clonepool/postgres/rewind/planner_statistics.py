"""The numbers in pg_class from which the planner estimates the sizes of relations.

VACUUM and ANALYZE write them, so that plans would drift from lease to lease. A rewind puts them
back where they differ. The planner multiplies the rows per page that it finds here by the size of
the file. So for a file that could not be made as small as it was, the page count that is put back
is that of the file now, and the planner expects as many rows as in the generation.

The numbers of catalogs are not changed. What ANALYZE finds out about values is in catalogs that are
compared like all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.rewind.relations import FIRST_USER_OID, PAGE_BYTES

if TYPE_CHECKING:
    from clonepool.postgres.session import Session

ALL_FROZEN_MAJOR = 18
"""First version in which pg_class counts the pages that are all-frozen."""
_MISSING, _FROZEN = "0 AS relallfrozen", "relallfrozen"
_READ = f"""\
SELECT oid::bigint AS oid, relpages, reltuples, relallvisible, {_MISSING},
       relkind IN ('r', 't', 'm', 'i')
           AND relpages = pg_relation_size(oid) / {PAGE_BYTES} AS is_exact
  FROM pg_catalog.pg_class
 WHERE oid >= {FIRST_USER_OID} AND relkind IN ('r', 't', 'm', 'i', 'p', 'I') ORDER BY oid
"""
_COMPARED = f"""\
       (SELECT *, CASE WHEN visible_then = pages_then THEN pages ELSE visible_then END AS visible,
               CASE WHEN frozen_then = pages_then THEN pages ELSE frozen_then END AS frozen
          FROM (SELECT *, CASE WHEN exact_then THEN pg_relation_size(oid) / {PAGE_BYTES}
                               ELSE pages_then END AS pages
                  FROM unnest($1::oid[], $2::int[], $3::real[], $4::int[], $5::int[], $6::bool[])
                       AS was (oid, pages_then, tuples, visible_then, frozen_then, exact_then)
               ) AS sized) AS wanted
 WHERE c.oid = wanted.oid
"""
_VISIBLE = "relpages, reltuples, relallvisible"
_WANTED = "wanted.pages, wanted.tuples, wanted.visible"


class Estimates(msgspec.Struct, frozen=True):
    """The numbers of all tables and indexes of a template, including TOAST.

    Attributes:
        oids: of the relations; the other lists are in the same order.
        pages: relpages.
        tuples: reltuples; -1 if they were never counted.
        visible: relallvisible.
        frozen: relallfrozen; 0 in versions that do not have it.
        exact: whether the file had as many pages as relpages says. VACUUM may skip indexes, and a
            partitioned table has no file.
    """

    oids: list[int]
    pages: list[int]
    tuples: list[float]
    visible: list[int]
    frozen: list[int]
    exact: list[bool]

    async def differences(self, session: Session) -> list[str]:
        """Return the names of relations whose numbers differ.

        Those of a relation that has grown may be the old ones until VACUUM has counted it.
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
        """Put the numbers back; say whether any differed. Requires a superuser."""
        columns, wanted = _compared(major)
        written = await session.rows(
            f"UPDATE pg_catalog.pg_class AS c SET ({columns}) = ROW({wanted}) FROM {_COMPARED}"
            f" AND ROW({columns}) IS DISTINCT FROM ROW({wanted}) RETURNING 1",
            *self._arguments,
        )
        return bool(written)

    @property
    def _arguments(self) -> tuple[list[Any], ...]:
        return self.oids, self.pages, self.tuples, self.visible, self.frozen, self.exact


async def read_estimates(session: Session, major: int) -> Estimates:
    """Read the numbers from a clone that was never leased."""
    rows = await session.rows(
        _READ.replace(_MISSING, _FROZEN) if major >= ALL_FROZEN_MAJOR else _READ
    )
    names = ("oid", "relpages", "reltuples", "relallvisible", "relallfrozen", "is_exact")
    return Estimates(*([row[name] for row in rows] for name in names))


def _compared(major: int) -> tuple[str, str]:
    """Return the columns that this version has, and SQL of their values."""
    if major >= ALL_FROZEN_MAJOR:
        return f"{_VISIBLE}, relallfrozen", f"{_WANTED}, wanted.frozen"
    return _VISIBLE, _WANTED
