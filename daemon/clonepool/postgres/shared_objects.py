"""State that all databases of a server share: roles, their settings and memberships, databases.

No copy of a database contains it, so what one lease changed there would affect all later leases. It
is read as entries that can be compared; `shared_object_reverts` reverts what differs. The
instance's own logins and databases are left out: logins are renewed, and both are dropped with
their clones.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.core.naming import PREFIX

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Gateway


class Kind(StrEnum):
    """The kinds of objects, in the order in which differences are reverted."""

    DATABASE = "database"
    TABLESPACE = "tablespace"
    PARAMETER = "privileges on parameter"
    ROLE = "role"
    MEMBERSHIP = "membership"
    SETTING = "setting"
    SYSTEM = "setting of the server"
    SLOT = "replication slot"
    ORIGIN = "replication origin"


class Entry(msgspec.Struct, frozen=True):
    """The state of one object.

    Attributes:
        kind: of the object.
        key: identifies it among those of its kind.
        name: for messages and SQL.
        owner: OID of the role that owns it; 0 for none.
        value: what is compared, by column.
    """

    kind: Kind
    key: str
    name: str
    owner: int
    value: dict[str, Any]


State = dict[tuple[Kind, str], Entry]
"""All entries, by kind and key."""


class Difference(msgspec.Struct, frozen=True):
    """An object that was created, dropped or changed."""

    before: Entry | None
    now: Entry | None

    @property
    def entry(self) -> Entry:
        """The entry as it is now, or was if it is gone."""
        entry = self.now or self.before
        assert entry is not None  # noqa: S101 - one of the two is there
        return entry

    @property
    def is_new(self) -> bool:
        """Whether the object was created."""
        return self.before is None

    def __str__(self) -> str:
        """Return what happened."""
        what = "was made" if self.is_new else "was dropped" if self.now is None else "was changed"
        return f"{self.entry.kind} {self.entry.name} {what}"


_NOT_OWN = f"left({{column}}, {len(PREFIX) + 1}) <> '{PREFIX}_'"
_ROLES = f"""\
SELECT oid, rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication,
       rolbypassrls, rolconnlimit, rolpassword,
       coalesce(rolvaliduntil, 'infinity') AS rolvaliduntil,
       coalesce(shobj_description(oid, 'pg_authid'), '') AS comment
  FROM pg_authid a WHERE {_NOT_OWN.format(column="rolname")}"""
_MEMBERSHIPS = f"""\
SELECT m.*, r.rolname AS role_name, u.rolname AS member_name, g.rolname AS grantor_name
  FROM pg_auth_members m JOIN pg_authid r ON r.oid = roleid JOIN pg_authid u ON u.oid = member
       JOIN pg_authid g ON g.oid = grantor
 WHERE {_NOT_OWN.format(column="u.rolname")}"""
_SETTINGS = f"""\
SELECT s.*, r.rolname AS role_name, d.datname AS database_name
  FROM pg_db_role_setting s LEFT JOIN pg_authid r ON r.oid = setrole
       LEFT JOIN pg_database d ON d.oid = setdatabase
 WHERE (setdatabase = 0 AND (setrole = 0 OR {_NOT_OWN.format(column="r.rolname")}))
    OR {_NOT_OWN.format(column="d.datname")}"""
_ACL = """\
(SELECT array_agg(i::text ORDER BY i::text)
   FROM unnest(coalesce({column}, acldefault('{kind}', {owner}))) AS i) AS acl"""
_DATABASES = f"""\
SELECT oid, datname, datdba, datistemplate, datallowconn, datconnlimit, dattablespace,
       {_ACL.format(column="datacl", kind="d", owner="datdba")}
  FROM pg_database WHERE {_NOT_OWN.format(column="datname")}"""
_TABLESPACES = f"""\
SELECT oid, spcname, spcowner, spcoptions,
       {_ACL.format(column="spcacl", kind="t", owner="spcowner")}
  FROM pg_tablespace"""
_PARAMETERS = f"""\
SELECT parname, {_ACL.format(column="paracl", kind="p", owner="10")} FROM pg_parameter_acl"""
_SLOTS = f"""\
SELECT slot_name, slot_type, database FROM pg_replication_slots
 WHERE database IS NULL OR {_NOT_OWN.format(column="database")}"""
_SYSTEM = """\
SELECT name, setting FROM pg_file_settings WHERE sourcefile LIKE '%/postgresql.auto.conf'"""
_ORIGINS = "SELECT roname FROM pg_replication_origin"
_PARAMETERS_MAJOR = 15
_ALTER_SYSTEM_REFUSED_MAJOR = 17
_QUERIES = {
    Kind.ROLE: (_ROLES, "oid::text", "rolname", "0"),
    Kind.MEMBERSHIP: (
        _MEMBERSHIPS,
        "concat_ws(',', roleid, member, grantor)",
        "role_name || ' of ' || member_name",
        "0",
    ),
    Kind.SETTING: (
        _SETTINGS,
        "concat_ws(',', setdatabase, setrole)",
        "concat_ws(' in ', coalesce(role_name, 'of all roles'), database_name)",
        "0",
    ),
    Kind.DATABASE: (_DATABASES, "oid::text", "datname", "datdba"),
    Kind.TABLESPACE: (_TABLESPACES, "oid::text", "spcname", "spcowner"),
    Kind.PARAMETER: (_PARAMETERS, "parname", "parname", "0"),
    Kind.SYSTEM: (_SYSTEM, "name", "name", "0"),
    Kind.SLOT: (_SLOTS, "slot_name::text", "slot_name", "0"),
    Kind.ORIGIN: (_ORIGINS, "roname", "roname", "0"),
}


def _queries(major: int) -> dict[Kind, tuple[str, str, str, str]]:
    left_out = set()
    if major < _PARAMETERS_MAJOR:
        left_out.add(Kind.PARAMETER)
    if major >= _ALTER_SYSTEM_REFUSED_MAJOR:
        left_out.add(Kind.SYSTEM)
    return {kind: query for kind, query in _QUERIES.items() if kind not in left_out}


_LOGINS_LEFT_OUT = _NOT_OWN.format(column="u.rolname")
_DATABASES_LEFT_OUT = _NOT_OWN.format(column="datname")
_OF_DATABASE = (
    "concat_ws(',', oid, datname, datdba, datistemplate, datallowconn, datconnlimit, dattablespace,"
    " datacl::text)"
)
_MEMBERS = "pg_auth_members m JOIN pg_authid u ON u.oid = member"
_SUMMED = [
    f"SELECT sum(hashtextextended(u::text, 1)) FROM pg_authid u WHERE {_LOGINS_LEFT_OUT}",
    f"SELECT sum(hashtextextended(m::text, 2)) FROM {_MEMBERS} WHERE {_LOGINS_LEFT_OUT}",
    f"SELECT sum(hashtextextended(e::text, 3)) FROM ({_SETTINGS}) AS e",
    f"SELECT sum(hashtextextended({_OF_DATABASE}, 4)) FROM pg_database WHERE {_DATABASES_LEFT_OUT}",
    "SELECT sum(hashtextextended(t::text, 5)) FROM pg_tablespace t",
    f"SELECT sum(hashtextextended(e::text, 6)) FROM ({_SLOTS}) AS e",
    "SELECT sum(hashtextextended(o::text, 7)) FROM pg_replication_origin o",
]
_SUMMED_PARAMETERS = "SELECT sum(hashtextextended(p::text, 8)) FROM pg_parameter_acl p"
_SUMMED_SYSTEM = f"SELECT sum(hashtextextended(e::text, 9)) FROM ({_SYSTEM}) AS e"


def digest_sql(major: int) -> str:
    """Return an SQL expression of a text that changes with any entry, and is cheap to compute."""
    sums = list(_SUMMED)
    if major >= _PARAMETERS_MAJOR:
        sums.append(_SUMMED_PARAMETERS)
    if major < _ALTER_SYSTEM_REFUSED_MAJOR:
        sums.append(_SUMMED_SYSTEM)
    return f"concat_ws(';', {', '.join(f'coalesce(({each}), 0)' for each in sums)})"


async def read_state(gateway: Gateway, major: int) -> State:
    """Read all entries. The daemon's role must be a superuser.

    Raises:
        StatementError, ServerUnavailableError: the server did not answer.
    """
    whole = " UNION ALL ".join(
        f"SELECT '{kind.value}' AS kind, ({key})::text AS key, ({name})::text AS name,"
        f" ({owner})::bigint AS owner, to_jsonb(e)::text AS value FROM ({query}) AS e"
        for kind, (query, key, name, owner) in _queries(major).items()
    )
    async with gateway.control() as session:
        rows = await session.rows(whole)
    entries = [
        Entry(
            Kind(row["kind"]),
            row["key"],
            row["name"],
            row["owner"],
            msgspec.json.decode(row["value"]),
        )
        for row in rows
    ]
    return {(entry.kind, entry.key): entry for entry in entries}


def compare(before: State, now: State) -> list[Difference]:
    """Return the differences, in the order in which they can be reverted."""
    keys = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
    order = list(Kind)
    keys.sort(key=lambda key: (order.index(key[0]), key[1]))
    return [Difference(before.get(key), now.get(key)) for key in keys]


async def is_used_elsewhere(gateway: Gateway, role: str, databases: set[str]) -> bool:
    """Say whether a role has sessions, or anything outside of these databases depends on it."""
    async with gateway.control() as session:
        rows = await session.rows(
            "SELECT FROM pg_shdepend s JOIN pg_authid a ON a.oid = refobjid"
            " AND refclassid = 'pg_authid'::regclass LEFT JOIN pg_database d ON d.oid = dbid"
            " WHERE rolname = $1 AND NOT coalesce(d.datname = ANY ($2), false) UNION ALL"
            " SELECT FROM pg_stat_activity WHERE usename = $1",
            role,
            sorted(databases),
        )
    return bool(rows)
