"""Finds tables for which functions of untrusted owners would run.

A rewind writes with a superuser's rights. A function of an owner without those rights must not run
then, because it could use them. It would run as a check of the table or of a domain of its columns,
as part of an index, of a generated column or of a partition's bounds, or as the implementation of
an operator of one of these. Some of these functions run as soon as a query is planned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.postgres.rewind.relations import FIRST_USER_OID

if TYPE_CHECKING:
    from clonepool.postgres.session import Session

_CATALOGS = {
    "relation": "pg_class",
    "type": "pg_type",
    "constraint": "pg_constraint",
    "attrdef": "pg_attrdef",
    "opclass": "pg_opclass",
    "family": "pg_opfamily",
    "operator": "pg_operator",
    "function": "pg_proc",
}
_EDGES = f"""\
    SELECT classid, objid, refclassid, refobjid FROM pg_depend
     WHERE refobjid >= {FIRST_USER_OID}
           AND refclassid NOT IN ('pg_namespace'::regclass, 'pg_extension'::regclass)
    UNION ALL SELECT {{relation}}, conrelid, {{constraint}}, oid FROM pg_constraint
     WHERE conrelid <> 0 AND contype = 'c'
    UNION ALL SELECT {{type}}, contypid, {{constraint}}, oid FROM pg_constraint WHERE contypid <> 0
    UNION ALL SELECT {{relation}}, adrelid, {{attrdef}}, e.oid
      FROM pg_attrdef e JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
     WHERE attgenerated <> ''
    UNION ALL SELECT {{relation}}, indrelid, {{relation}}, indexrelid FROM pg_index
    UNION ALL SELECT {{relation}}, inhrelid, {{relation}}, inhparent FROM pg_inherits
    UNION ALL SELECT {{relation}}, attrelid, {{type}}, atttypid FROM pg_attribute
     WHERE attnum > 0 AND NOT attisdropped
    UNION ALL SELECT {{type}}, oid, {{type}}, refers
      FROM pg_type, unnest(ARRAY[typelem, typbasetype]) AS refers WHERE refers <> 0
    UNION ALL SELECT {{type}}, oid, {{relation}}, typrelid FROM pg_type WHERE typrelid <> 0
    UNION ALL SELECT {{type}}, rngtypid, {{type}}, rngsubtype FROM pg_range
    UNION ALL SELECT {{type}}, rngmultitypid, {{type}}, rngtypid FROM pg_range
    UNION ALL SELECT {{opclass}}, oid, {{family}}, opcfamily FROM pg_opclass
    UNION ALL SELECT {{family}}, amopfamily, {{operator}}, amopopr FROM pg_amop
    UNION ALL SELECT {{family}}, amprocfamily, {{function}}, amproc::oid FROM pg_amproc
    UNION ALL SELECT {{operator}}, oid, {{function}}, oprcode::oid FROM pg_operator
""".format(**{name: f"'{catalog}'::regclass" for name, catalog in _CATALOGS.items()})
"""Edges from the object in the first two columns to the one in the last two. Most are those of
pg_depend; the rest are reversed in pg_depend, or have another object in between."""
_OWNERS = f"""\
WITH RECURSIVE edge (class, object, next_class, next) AS MATERIALIZED (
    SELECT * FROM (
{_EDGES}    ) AS edges (class, object, next_class, next)
     WHERE object >= {FIRST_USER_OID} AND next >= {FIRST_USER_OID}
), reached (root, class, object) AS (
    SELECT oid, 'pg_class'::regclass::oid, oid FROM pg_class
     WHERE relkind IN ('r', 'm') AND oid >= {FIRST_USER_OID}
           AND EXISTS (SELECT FROM pg_proc JOIN pg_roles r ON r.oid = proowner WHERE NOT rolsuper)
    UNION
    SELECT root, next_class, next FROM reached JOIN edge USING (class, object)
)
SELECT root::bigint AS oid, min(rolname)::text AS owner
  FROM reached JOIN pg_proc p ON p.oid = object AND class = 'pg_proc'::regclass
               JOIN pg_roles r ON r.oid = proowner
 WHERE NOT rolsuper GROUP BY root
"""


async def read_untrusted_owners(session: Session) -> dict[int, str]:
    """Return, by the table's OID, a role that is not a superuser and whose function would run."""
    return {row["oid"]: row["owner"] for row in await session.rows(_OWNERS)}
