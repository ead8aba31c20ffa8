"""What stands in shared catalogs, and can be known of a clone without connecting to it."""

from __future__ import annotations

from typing import Any

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError, LeftoversError

NOTHING_SHARED = "NULL::text"
_FACTS = """\
SELECT w.name, coalesce(d.oid, 0)::bigint AS oid,
       pg_snapshot_xmax(pg_current_snapshot())::text AS next_xid,
       concat_ws(';', d.oid, datdba, encoding, datcollate, datctype, datconnlimit, datistemplate,
           datallowconn, dattablespace, datacl::text,
           (SELECT string_agg(concat_ws(',', setrole, setconfig::text), ';' ORDER BY setrole)
              FROM pg_db_role_setting WHERE setdatabase = d.oid),
           (SELECT string_agg(concat_ws(',', roleid, member), ';' ORDER BY roleid, member)
              FROM pg_auth_members WHERE login.oid IN (roleid, member)),
           (SELECT string_agg(concat_ws(',', provider, label), ';' ORDER BY provider)
              FROM pg_shseclabel WHERE objoid = d.oid AND classoid = 'pg_database'::regclass)
       ) AS properties,
       pg_postmaster_start_time()::text AS server_started,
       concat_ws(';',
           (SELECT count(*) FROM pg_prepared_xacts WHERE database = d.datname),
           (SELECT count(*) FROM pg_replication_slots WHERE database = d.datname),
           (SELECT count(*) FROM pg_subscription WHERE subdbid = d.oid)) AS leftovers,
       coalesce(shobj_description(d.oid, 'pg_database'), '') AS comment,
       coalesce(pg_stat_get_db_numbackends(d.oid) - (w.ours <> 0)::int, 0) AS others,
       CASE WHEN pg_stat_get_db_numbackends(d.oid) > (w.ours <> 0)::int THEN (
           SELECT json_agg(s) FROM (
               SELECT pid, coalesce(application_name, '') AS application_name,
                      coalesce(state, '') AS state, left(coalesce(query, ''), 500) AS query
                 FROM pg_stat_activity
                WHERE datid = d.oid AND pid <> w.ours AND backend_type = 'client backend') AS s
       ) END AS sessions,
       CASE WHEN busy.pids <> '{{}}' THEN ARRAY(
           SELECT b FROM unnest(busy.pids) AS b WHERE NOT EXISTS (
               SELECT FROM pg_stat_get_activity(NULL) AS a
                WHERE a.pid = b AND a.state IS DISTINCT FROM 'starting')) END AS arriving
  FROM (SELECT coalesce(array_agg(pid), '{{}}') AS pids FROM pg_locks
         WHERE locktype = 'virtualxid' AND pid <> pg_backend_pid()) AS busy
       CROSS JOIN unnest({clones}, {ours}) AS w (name, ours)
       LEFT JOIN pg_database d ON d.datname = w.name
       LEFT JOIN pg_authid login ON login.rolname = d.datname
"""
"""Asked of several clones at once: their names, and the process id of our backend on each, or 0.

Backends in a transaction of which nothing else is known are logging in. They are asked for before
who is connected, and so stand in FROM: else one could be missed that comes in between the two.
"""
_NO_LEFTOVERS = "0;0;0"


class Facts(msgspec.Struct, frozen=True):
    """One database, seen from outside.

    Attributes:
        oid: the database's, 0 when there is none.
        next_xid: the number that the next transaction gets.
        properties: of the database itself: owner, privileges, settings, flags.
        server_started: when.
        leftovers: how much there is that outlives sessions.
        comment: the database's.
        others: how many backends are connected to it beside ours, clients' or not.
        sessions: of clients: pid, application_name, state and query.
        arriving: process ids of backends that are logging in, into whichever database.
        shared: what stands for the server as a whole; None where that was not asked.
    """

    oid: int
    next_xid: int
    properties: str
    server_started: str
    leftovers: str
    comment: str
    others: int
    sessions: list[dict[str, Any]]
    arriving: list[int] = []
    shared: str | None = None

    def check(self, before: Facts) -> None:
        """See that nothing changed since `before` that a rewind does not undo.

        Raises:
            LeftoversError: something is to be cleared away first.
            CannotRewindError: something changed for good, or nothing is known any more.
        """
        if self.oid == 0:
            raise CannotRewindError("the database is gone")
        if self.server_started != before.server_started:
            raise CannotRewindError("the server was started anew")
        if self.properties != before.properties:
            raise CannotRewindError("the database's own properties were changed")
        if self.leftovers != _NO_LEFTOVERS:
            raise LeftoversError("a prepared transaction, slot or subscription is left")


def facts_sql(clones: str, ours: str) -> str:
    """Return the query of one JSON value about several clones.

    Args:
        clones: SQL of an array of their names.
        ours: SQL of an array of the process ids of our own backends on them, 0 for none.
    """
    return f"SELECT json_agg(f) FROM ({_FACTS.format(clones=clones, ours=ours)}) AS f"


def read_facts_json(clones: list[dict[str, Any]], shared: str | None) -> dict[str, Facts]:
    """Return what the query of `facts_sql` said, by the names of the clones.

    Args:
        clones: the JSON, decoded.
        shared: what stands for the server as a whole.
    """
    found = {}
    for row in clones:
        name = row.pop("name")
        row["next_xid"] = int(row["next_xid"])
        for several in ("sessions", "arriving"):
            row[several] = row[several] or []
        found[name] = Facts(**row, shared=shared)
    return found
