"""What is known of a clone without connecting to it.

Some of it changes without a trace in the WAL: sessions, prepared transactions, replication slots.
The rest is in shared catalogs, and is read again only after a write to those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError, LeftoversError

if TYPE_CHECKING:
    from clonepool.postgres.session import Session

NOTHING_SHARED = "NULL::text"
"""SQL to be used where there is no digest of the state that all databases share."""
_ACTIVITY = """\
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
       CASE WHEN {in_transaction} <> '{{}}' THEN ARRAY(
           SELECT b FROM unnest({in_transaction}) AS b WHERE NOT EXISTS (
               SELECT FROM pg_stat_get_activity(NULL) AS a
                WHERE a.pid = b AND a.state IS DISTINCT FROM 'starting')) END AS logging_in
  FROM unnest({clones}, {ours}) AS w (name, ours)
       LEFT JOIN pg_database d ON d.datname = w.name
       LEFT JOIN pg_authid login ON login.rolname = w.name
"""
IN_TRANSACTION = """\
SELECT coalesce(array_agg(pid), '{}') FROM pg_locks
 WHERE locktype = 'virtualxid' AND pid <> pg_backend_pid()"""
"""SQL of the process ids of the backends that are in a transaction.

Logging in is one transaction, and a backend is not listed as a session before it is over. So a
backend that is in a transaction and not listed is logging in. This must be asked before the list of
sessions: otherwise a backend that logs in between the two would be missed."""
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


class Activity(msgspec.Struct, frozen=True):
    """What changes without a trace in the WAL.

    Attributes:
        name: the clone's.
        oid: the database's; 0 if there is none.
        next_xid: the number of the next transaction, in digits.
        server_started: when the server was started.
        leftovers: the numbers of prepared transactions and of replication slots.
        others: how many backends are connected to it, except the daemon's own.
        sessions: of clients, on this database or elsewhere with the clone's login. Each has pid and
            state and, in hexadecimal digits of whatever encoding, application_name and query. None
            if there are none.
        logging_in: process ids of backends that are logging in to any database.
    """

    name: str
    oid: int
    next_xid: str
    server_started: str
    leftovers: str
    others: int
    sessions: list[dict[str, Any]] | None
    logging_in: list[int] | None


class CatalogEntries(msgspec.Struct, frozen=True):
    """What shared catalogs say of a clone.

    Attributes:
        name: the clone's.
        properties: a digest of the database's owner, privileges, settings and flags.
        subscriptions: how many subscriptions belong to it.
        comment: the database's comment, in hexadecimal digits.
    """

    name: str
    properties: str
    subscriptions: int
    comment: str


NO_ENTRIES = CatalogEntries("", "", 0, "")


class DatabaseFacts(msgspec.Struct, frozen=True):
    """What is known of one database.

    Attributes:
        activity: what changes without a trace in the WAL.
        entries: what shared catalogs say of it.
        shared: a digest of the state that all databases share; None if it was not asked for.
    """

    activity: Activity
    entries: CatalogEntries
    shared: str | None = None

    @property
    def oid(self) -> int:
        """The database's OID; 0 if there is none."""
        return self.activity.oid

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The sessions of clients, each with pid, application_name, state and query."""
        return [
            {
                **session,
                "application_name": _text(session["application_name"]),
                "query": _text(session["query"])[:_QUERY_LENGTH],
            }
            for session in self.activity.sessions or ()
        ]

    def check(self, before: DatabaseFacts) -> None:
        """Check that nothing has changed since `before` that a rewind does not undo.

        Raises:
            LeftoversError: something has to be removed first.
            CannotRewindError: the clone cannot be rewound.
        """
        if self.oid == 0:
            raise CannotRewindError("the database is gone")
        if self.activity.server_started != before.activity.server_started:
            raise CannotRewindError("the server was restarted")
        if self.entries.properties != before.entries.properties:
            raise CannotRewindError("the database's own properties were changed")
        if self.activity.leftovers != _NO_LEFTOVERS or self.entries.subscriptions:
            raise LeftoversError("a prepared transaction, slot or subscription is left")


def _text(digits: str) -> str:
    return bytes.fromhex(digits).decode(errors="replace")


def activity_sql(clones: str, ours: str, in_transaction: str) -> str:
    """Return the query of a JSON array of `Activity`.

    Args:
        clones: SQL of an array of the clones' names.
        ours: SQL of an array of the process ids of the daemon's own backends on them, 0 for none.
        in_transaction: SQL of what `IN_TRANSACTION` returned before.
    """
    activity = _ACTIVITY.format(clones=clones, ours=ours, in_transaction=in_transaction)
    return f"SELECT json_agg(f) FROM ({activity}) AS f"


def entries_sql(clones: str) -> str:
    """Return the query of a JSON array of `CatalogEntries`.

    Args:
        clones: SQL of an array of the clones' names.
    """
    return f"SELECT json_agg(f) FROM ({_ENTRIES.format(clones=clones)}) AS f"


async def read_entries(session: Session) -> CatalogEntries:
    """Read what shared catalogs say of the session's own database."""
    text = await session.value(entries_sql("ARRAY[current_database()::text]"))
    (entries,) = msgspec.json.decode(text, type=list[CatalogEntries])
    return entries
