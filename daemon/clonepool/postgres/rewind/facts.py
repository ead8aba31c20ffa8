"""What stands in shared catalogs, and can be known of a clone without connecting to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError, LeftoversError

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Gateway, Session

_COLUMNS = """\
       concat_ws(';', d.oid, datdba, encoding, datcollate, datctype, datconnlimit, datistemplate,
           datallowconn, dattablespace, datacl::text,
           (SELECT string_agg(concat_ws(',', setrole, setconfig::text), ';' ORDER BY setrole)
              FROM pg_db_role_setting WHERE setdatabase = d.oid),
           (SELECT string_agg(concat_ws(',', roleid, member), ';' ORDER BY roleid, member)
              FROM pg_auth_members WHERE login.oid IN (roleid, member)),
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
       CASE WHEN pg_stat_get_db_numbackends(d.oid) > {ours} THEN (SELECT json_agg(s) FROM (
           SELECT pid, coalesce(application_name, '') AS application_name,
                  coalesce(state, '') AS state, left(coalesce(query, ''), 500) AS query
             FROM pg_stat_activity
            WHERE datid = d.oid AND pid <> {pid} AND backend_type = 'client backend') AS s
       )::text END AS sessions,
       (SELECT array_agg(b) FROM unnest(busy.pids) AS b WHERE NOT EXISTS (
            SELECT FROM pg_stat_get_activity(NULL) AS a
             WHERE a.pid = b AND a.state IS DISTINCT FROM 'starting')) AS arriving,
       {{shared}} AS shared
"""
NOTHING_SHARED = "NULL::text"
_BUSY = """\
(SELECT array_agg(pid) AS pids FROM pg_locks
  WHERE locktype = 'virtualxid' AND pid <> pg_backend_pid()) AS busy
"""
"""Backends in a transaction; those that nothing else is known of are logging in.

To be asked before who is connected, and so it stands in FROM: else one could be missed that comes
in between the two questions.
"""
_DATABASE = "pg_database d LEFT JOIN pg_authid login ON login.rolname = d.datname"
_FROM_OUTSIDE = f"""\
SELECT {_COLUMNS.format(ours=0, pid="$2")} FROM {_BUSY} CROSS JOIN {_DATABASE} WHERE datname = $1
"""
_FROM_INSIDE = f"""\
SELECT {_COLUMNS.format(ours=1, pid="pg_backend_pid()")},
       CASE WHEN pg_stat_get_db_numbackends(d.oid) = 1 THEN ({{more}}) END AS more
  FROM {_BUSY} CROSS JOIN {_DATABASE} WHERE datname = current_database()
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
        arriving: process ids of backends that are logging in, into whichever database.
        shared: what stands for the server as a whole; None where that was not asked.
    """

    properties: str
    counting: str
    leftovers: str
    comment: str
    sessions: list[dict[str, Any]]
    arriving: list[int] = []
    shared: str | None = None

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


async def read_facts(
    gateway: Gateway, clone: str, ours: int = 0, shared: str = NOTHING_SHARED
) -> Facts:
    """Look at a clone from outside.

    Args:
        gateway: the way to the server.
        clone: its name.
        ours: process id of a backend there that is no client's.
        shared: SQL of one text that stands for the server as a whole.

    Returns:
        `GONE` when there is no such database.
    """
    async with gateway.control() as session:
        rows = await session.rows(_FROM_OUTSIDE.format(shared=shared), clone, ours)
    return _facts(rows[0]) if rows else GONE


async def read_facts_inside(
    session: Session, more: str, shared: str = NOTHING_SHARED
) -> tuple[Facts, str | None]:
    """Look at a clone over a session of ours that stays there, and ask something more.

    Args:
        session: to the clone.
        more: SQL of one text, answered only where nobody else is connected.
        shared: SQL of one text that stands for the server as a whole.

    Returns:
        The facts, and the answer; None where somebody is.
    """
    (row,) = await session.rows(_FROM_INSIDE.format(more=more, shared=shared))
    answer = row.pop("more")
    return _facts(row), answer


def _facts(row: dict[str, Any]) -> Facts:
    sessions = msgspec.json.decode(row["sessions"] or "[]")
    return Facts(**{**row, "sessions": sessions, "arriving": row["arriving"] or []})
