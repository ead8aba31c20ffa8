"""What can be known of a clone without connecting to it.

Part of it changes without a word in the log: who is connected, prepared transactions, slots. The
rest stands in shared catalogs, and need not be asked again while nobody has written to those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError, LeftoversError

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session

NOTHING_SHARED = "NULL::text"
_PRESENCE = """\
SELECT w.name, coalesce(d.oid, 0)::bigint AS oid,
       pg_snapshot_xmax(pg_current_snapshot())::text AS next_xid,
       pg_postmaster_start_time()::text AS server_started,
       concat_ws(';',
           (SELECT count(*) FROM pg_prepared_xacts WHERE database = d.datname),
           (SELECT count(*) FROM pg_replication_slots WHERE database = d.datname)) AS leftovers,
       (SELECT count(*) FROM pg_stat_get_activity(NULL)
         WHERE datid = d.oid AND pid <> w.ours) AS others,
       (SELECT json_agg(s) FROM (
            SELECT pid, encode(textsend(coalesce(application_name, '')), 'hex') AS application_name,
                   coalesce(state, '') AS state,
                   encode(substring(textsend(coalesce(query, '')) FOR 2000), 'hex') AS query
              FROM pg_stat_get_activity(NULL)
             WHERE (datid = d.oid OR usesysid = login.oid) AND pid <> w.ours
                   AND backend_type = 'client backend') AS s) AS sessions,
       CASE WHEN {busy} <> '{{}}' THEN ARRAY(
           SELECT b FROM unnest({busy}) AS b WHERE NOT EXISTS (
               SELECT FROM pg_stat_get_activity(NULL) AS a
                WHERE a.pid = b AND a.state IS DISTINCT FROM 'starting')) END AS arriving
  FROM unnest({clones}, {ours}) AS w (name, ours)
       LEFT JOIN pg_database d ON d.datname = w.name
       LEFT JOIN pg_authid login ON login.rolname = w.name
"""
BUSY = """\
SELECT coalesce(array_agg(pid), '{}') FROM pg_locks
 WHERE locktype = 'virtualxid' AND pid <> pg_backend_pid()"""
"""Backends in a transaction. Those of which nothing else is known are logging in. To be asked
before it is asked who is connected: else one could be missed that comes in between."""
_ENTRIES = """\
SELECT d.datname AS name,
       encode(sha256(textsend(concat_ws(
           ';', d.oid, datdba, encoding, datcollate, datctype, datconnlimit, datistemplate,
           datallowconn, dattablespace, datacl::text,
           (SELECT string_agg(concat_ws(',', setrole, setconfig::text), ';' ORDER BY setrole)
              FROM pg_db_role_setting WHERE setdatabase = d.oid),
           (SELECT string_agg(concat_ws(',', roleid, member), ';' ORDER BY roleid, member)
              FROM pg_auth_members WHERE login.oid IN (roleid, member)),
           (SELECT string_agg(concat_ws(',', provider, label), ';' ORDER BY provider)
              FROM pg_shseclabel WHERE objoid = d.oid AND classoid = 'pg_database'::regclass)
       ))), 'hex') AS properties,
       (SELECT count(*) FROM pg_subscription WHERE subdbid = d.oid) AS subscriptions,
       encode(textsend(coalesce(shobj_description(d.oid, 'pg_database'), '')), 'hex') AS comment
  FROM pg_database d LEFT JOIN pg_authid login ON login.rolname = d.datname
 WHERE d.datname = ANY ({clones})
"""
_NO_LEFTOVERS = "0;0"
_QUERY_LENGTH = 500


class Presence(msgspec.Struct, frozen=True):
    """What the log does not tell of a clone.

    Attributes:
        name: the clone's.
        oid: the database's, 0 when there is none.
        next_xid: the number that the next transaction gets, in digits.
        server_started: when.
        leftovers: how many prepared transactions and slots there are.
        others: how many backends are connected to it beside ours, clients' or not.
        sessions: of clients, there or elsewhere as the clone's login: pid, state, and in
            hexadecimal digits application_name and query, in whatever encoding; None for none.
        arriving: process ids of backends that are logging in, into whichever database.
    """

    name: str
    oid: int
    next_xid: str
    server_started: str
    leftovers: str
    others: int
    sessions: list[dict[str, Any]] | None
    arriving: list[int] | None


class Entries(msgspec.Struct, frozen=True):
    """What shared catalogs say of a clone.

    Attributes:
        name: the clone's.
        properties: a digest of those of the database: owner, privileges, settings, flags.
        subscriptions: how many belong to it.
        comment: the database's, in hexadecimal digits.
    """

    name: str
    properties: str
    subscriptions: int
    comment: str


NO_ENTRIES = Entries("", "", 0, "")


class Facts(msgspec.Struct, frozen=True):
    """One database, seen from outside.

    Attributes:
        presence: what the log does not tell.
        entries: what shared catalogs say.
        shared: what stands for the server as a whole; None where that was not asked.
    """

    presence: Presence
    entries: Entries
    shared: str | None = None

    @property
    def oid(self) -> int:
        """The database's OID, 0 when there is none."""
        return self.presence.oid

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The sessions of clients: pid, application_name, state and query."""
        return [
            {
                **session,
                "application_name": _text(session["application_name"]),
                "query": _text(session["query"])[:_QUERY_LENGTH],
            }
            for session in self.presence.sessions or ()
        ]

    def check(self, before: Facts) -> None:
        """See that nothing changed since `before` that a rewind does not undo.

        Raises:
            LeftoversError: something is to be cleared away first.
            CannotRewindError: something changed for good, or nothing is known any more.
        """
        if self.oid == 0:
            raise CannotRewindError("the database is gone")
        if self.presence.server_started != before.presence.server_started:
            raise CannotRewindError("the server was started anew")
        if self.entries.properties != before.entries.properties:
            raise CannotRewindError("the database's own properties were changed")
        if self.presence.leftovers != _NO_LEFTOVERS or self.entries.subscriptions:
            raise LeftoversError("a prepared transaction, slot or subscription is left")


def _text(digits: str) -> str:
    return bytes.fromhex(digits).decode(errors="replace")


def presence_sql(clones: str, ours: str, busy: str) -> str:
    """Return the query of a JSON array of `Presence`.

    Args:
        clones: SQL of an array of the clones' names.
        ours: SQL of an array of the process ids of our own backends on them, 0 for none.
        busy: SQL of what `BUSY` said before.
    """
    presence = _PRESENCE.format(clones=clones, ours=ours, busy=busy)
    return f"SELECT json_agg(f) FROM ({presence}) AS f"


def entries_sql(clones: str) -> str:
    """Return the query of a JSON array of `Entries`.

    Args:
        clones: SQL of an array of the clones' names.
    """
    return f"SELECT json_agg(f) FROM ({_ENTRIES.format(clones=clones)}) AS f"


async def read_entries(session: Session) -> Entries:
    """Ask shared catalogs of the session's own database, whatever is remembered."""
    told = await session.value(f"{entries_sql('ARRAY[current_database()::text]')}")
    (entries,) = msgspec.json.decode(told, type=list[Entries])
    return entries
