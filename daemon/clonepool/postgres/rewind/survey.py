"""What a clone looks like at one moment, in so few numbers that no change escapes them.

For each relation with rows of its own: its file, how many rows were ever inserted, updated and
deleted in it, its size, how many of its pages the visibility map calls all-visible and all-frozen,
and the age of its oldest row. Any change of rows moves one of these:

- with counting on, each insert, update and delete counts, rolled back or not;
- with counting off (a superuser may), a changed page loses its bits in the visibility map, which
  was complete, because every table was vacuumed and frozen last;
- VACUUM gives the bit for visible back, the one for frozen only if it freezes, and freezing moves
  `relfrozenxid`;
- TRUNCATE, CLUSTER, VACUUM FULL and REFRESH change the file.

A counter that went backwards is a change as well; that the server lost them all is seen by when
they were reset. Sequences count nothing and are compared themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session

FIRST_USER_OID = 16_384
MAP_SUMMARY = "pg_catalog.clonepool_map_summary"
"""The function of contrib's pg_visibility, under a name that no dump contains."""

CREATE_MAP_SUMMARY = f"""\
CREATE OR REPLACE FUNCTION {MAP_SUMMARY}(
    regclass, OUT all_visible bigint, OUT all_frozen bigint)
RETURNS record LANGUAGE c STRICT AS '$libdir/pg_visibility', 'pg_visibility_map_summary'
"""

_RELATIONS = f"""\
SELECT c.oid::bigint AS oid,
       concat_ws(',', pg_relation_filenode(c.oid), relfrozenxid, relminmxid,
           pg_stat_get_tuples_inserted(c.oid), pg_stat_get_tuples_updated(c.oid),
           pg_stat_get_tuples_deleted(c.oid), pg_relation_size(c.oid),
           seen.all_visible, seen.all_frozen) AS state,
       concat_ws(',', relpages, reltuples) AS statistics,
       pg_relation_size(c.oid) AS bytes
  FROM pg_catalog.pg_class c, {MAP_SUMMARY}(c.oid) AS seen
 WHERE relkind IN ('r', 'm', 't') AND NOT relisshared
"""

_DATABASE = """\
SELECT concat_ws(';', d.oid, datdba, encoding, datcollate, datctype, datconnlimit, datistemplate,
           datallowconn, dattablespace, datacl::text,
           (SELECT string_agg(concat_ws(',', setrole, setconfig::text), ';' ORDER BY setrole)
              FROM pg_db_role_setting WHERE setdatabase = d.oid),
           (SELECT string_agg(concat_ws(',', provider, label), ';' ORDER BY provider)
              FROM pg_shseclabel WHERE objoid = d.oid AND classoid = 'pg_database'::regclass)
       ) AS properties,
       concat_ws(';', pg_postmaster_start_time(), pg_stat_get_db_stat_reset_time(d.oid))
           AS counting,
       concat_ws(';',
           (SELECT count(*) FROM pg_prepared_xacts WHERE database = d.datname),
           (SELECT count(*) FROM pg_replication_slots WHERE database = d.datname),
           (SELECT count(*) FROM pg_subscription WHERE subdbid = d.oid)) AS leftovers,
       coalesce(shobj_description(d.oid, 'pg_database'), '') AS comment
  FROM pg_database d WHERE datname = current_database()
"""
NO_LEFTOVERS = "0;0;0"


class Relation(msgspec.Struct, frozen=True):
    """One relation: what every change of its rows changes, and what only ANALYZE does."""

    state: str
    statistics: str
    bytes: int


class Survey(msgspec.Struct, frozen=True):
    """A clone at one moment.

    Attributes:
        relations: by OID.
        sequences: last value and whether it was called, by OID.
        properties: of the database itself, and not in it.
        counting: since when the server counts.
        leftovers: how much there is that outlives sessions.
        comment: the database's.
    """

    relations: dict[int, Relation]
    sequences: dict[int, tuple[int, bool]]
    properties: str
    counting: str
    leftovers: str
    comment: str

    @property
    def bytes(self) -> int:
        """What all relations take."""
        return sum(relation.bytes for relation in self.relations.values())


async def read_properties(session: Session) -> str:
    """Return what belongs to the session's database itself and is not in it."""
    (database,) = await session.rows(_DATABASE)
    return str(database["properties"])


async def take_survey(session: Session, sequences_sql: str) -> Survey:
    """Look at the session's database.

    Args:
        session: to the clone, nobody else being connected to it.
        sequences_sql: selects oid, last_value and is_called of every sequence; may be empty.
    """
    relations = await session.rows(_RELATIONS)
    sequences = await session.rows(sequences_sql) if sequences_sql else []
    (database,) = await session.rows(_DATABASE)
    return Survey(
        {row["oid"]: Relation(row["state"], row["statistics"], row["bytes"]) for row in relations},
        {row["oid"]: (row["last_value"], row["is_called"]) for row in sequences},
        database["properties"],
        database["counting"],
        database["leftovers"],
        database["comment"],
    )
