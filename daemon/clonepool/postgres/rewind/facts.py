"""What can be known of a clone without connecting to it: all that stands in shared catalogs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError, LeftoversError

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Gateway

_FACTS = """\
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
       coalesce(shobj_description(d.oid, 'pg_database'), '') AS comment,
       coalesce((SELECT json_agg(s) FROM (
           SELECT pid, coalesce(application_name, '') AS application_name,
                  coalesce(state, '') AS state, left(coalesce(query, ''), 500) AS query
             FROM pg_stat_activity
            WHERE datid = d.oid AND pid <> $2 AND backend_type = 'client backend') AS s
       )::text, '[]') AS sessions
  FROM pg_database d WHERE datname = $1
"""
_NO_LEFTOVERS = "0;0;0"


class Facts(msgspec.Struct, frozen=True):
    """One database, seen from outside.

    Attributes:
        properties: of the database itself: owner, privileges, settings, flags.
        counting: since when the server counts.
        leftovers: how much there is that outlives sessions.
        comment: the database's.
        sessions: of clients: pid, application_name, state and query.
    """

    properties: str
    counting: str
    leftovers: str
    comment: str
    sessions: list[dict[str, Any]]

    def check(self, before: Facts) -> None:
        """See that nothing changed since `before` that a rewind does not undo.

        Raises:
            LeftoversError: something is to be cleared away first.
            CannotRewindError: something changed for good, or nothing is known any more.
        """
        if self == GONE:
            raise CannotRewindError("the database is gone")
        if self.counting != before.counting:
            raise CannotRewindError("the server lost its counters")
        if self.properties != before.properties:
            raise CannotRewindError("the database's own properties were changed")
        if self.leftovers != _NO_LEFTOVERS:
            raise LeftoversError("a prepared transaction, slot or subscription is left")


GONE = Facts("", "", "", "", [])


async def read_facts(gateway: Gateway, clone: str, ours: int = 0) -> Facts:
    """Look at a clone from outside.

    Args:
        gateway: the way to the server.
        clone: its name.
        ours: process id of a backend there that is no client's.

    Returns:
        `GONE` when there is no such database.
    """
    async with gateway.control() as session:
        rows = await session.rows(_FACTS, clone, ours)
    if not rows:
        return GONE
    (row,) = rows
    return Facts(**{**row, "sessions": msgspec.json.decode(row["sessions"])})
