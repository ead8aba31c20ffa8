"""Reverts what a lease changed in the state that all databases of a server share."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from clonepool.errors import StatementError
from clonepool.postgres.clones.properties import elements
from clonepool.postgres.quoting import identifier, literal
from clonepool.postgres.roles import SUPERUSER_OWNER
from clonepool.postgres.shared_objects import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.session import Session
    from clonepool.postgres.shared_objects import Difference, Entry


async def disown(gateway: Gateway, role: str, database: str) -> None:
    """Drop what a role owns in the database of a clone that will be recreated, and its privileges.

    Raises:
        StatementError, ServerUnavailableError: some of it may be left.
    """
    async with gateway.session(database, {"lock_timeout": "500ms"}) as session:
        await session.execute(f"DROP OWNED BY {identifier(role)} CASCADE")


async def revert(gateway: Gateway, difference: Difference) -> bool:
    """Revert one difference; say whether the server allowed it.

    Raises:
        ServerUnavailableError: it may be reverted in part.
    """
    try:
        async with gateway.control() as session:
            for statement in _statements(difference):
                await session.execute(statement)
            await _revert_privileges(session, difference)
    except StatementError:
        return False
    return True


def _statements(difference: Difference) -> list[str]:
    """Return statements that revert a difference, except privileges; each runs by itself."""
    before, now, entry = difference.before, difference.now, difference.entry
    statements: list[str] = []
    match entry.kind:
        case Kind.DATABASE:
            statements = _database(before, now)
        case Kind.ROLE:
            statements = _role(before, now)
        case Kind.MEMBERSHIP:
            statements = _membership(before, now)
        case Kind.SETTING:
            statements = _setting(before, now)
        case Kind.SYSTEM:
            # The embedded server itself has no such settings.
            statements = ["ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()"]
        case Kind.TABLESPACE | Kind.SLOT | Kind.ORIGIN:
            # One that is gone cannot be made again.
            statements = [_DROPS[entry.kind](entry.name)] if difference.is_new else []
        case Kind.PARAMETER:
            pass  # it has only privileges
        case _:
            assert_never(entry.kind)
    return statements


_DROPS: dict[Kind, Callable[[str], str]] = {
    Kind.TABLESPACE: lambda name: f"DROP TABLESPACE {identifier(name)}",
    Kind.SLOT: lambda name: f"SELECT pg_drop_replication_slot({literal(name)})",
    Kind.ORIGIN: lambda name: f"SELECT pg_replication_origin_drop({literal(name)})",
}
_ATTRIBUTES = {
    "rolsuper": "SUPERUSER",
    "rolinherit": "INHERIT",
    "rolcreaterole": "CREATEROLE",
    "rolcreatedb": "CREATEDB",
    "rolcanlogin": "LOGIN",
    "rolreplication": "REPLICATION",
    "rolbypassrls": "BYPASSRLS",
}


def _role(before: Entry | None, now: Entry | None) -> list[str]:
    if before is None:
        return [f"DROP ROLE {identifier(now.name)}"] if now else []
    was, name = before.value, identifier(before.name)
    words = [word if was[column] else f"NO{word}" for column, word in _ATTRIBUTES.items()]
    password = literal(was["rolpassword"]) if was["rolpassword"] else "NULL"
    until = literal(was["rolvaliduntil"])
    attributes = " ".join(words)
    attributes += f" CONNECTION LIMIT {was['rolconnlimit']} VALID UNTIL {until}"
    statements = []
    if now is None:
        statements.append(f"CREATE ROLE {name}")
    elif now.name != before.name:
        # A role cannot rename itself, and this may be the daemon's own role.
        statements.append(
            f"SET LOCAL SESSION AUTHORIZATION {SUPERUSER_OWNER};"
            f" ALTER ROLE {identifier(now.name)} RENAME TO {name}"
        )
    statements.append(f"ALTER ROLE {name} WITH {attributes} PASSWORD {password}")
    comment = literal(was["comment"]) if was["comment"] else "NULL"
    return [*statements, f"COMMENT ON ROLE {name} IS {comment}"]


def _membership(before: Entry | None, now: Entry | None) -> list[str]:
    statements = []
    if now is not None:
        value = now.value
        by = f" GRANTED BY {identifier(value['grantor_name'])}" if "set_option" in value else ""
        statements.append(
            f"REVOKE {identifier(value['role_name'])} FROM {identifier(value['member_name'])}{by}"
        )
    if before is not None:
        value = before.value
        role, member = identifier(value["role_name"]), identifier(value["member_name"])
        options = "WITH ADMIN OPTION" if value["admin_option"] else ""
        if "set_option" in value:
            options = (
                f"WITH ADMIN {value['admin_option']}, INHERIT {value['inherit_option']},"
                f" SET {value['set_option']}"
            )
        statements.append(f"GRANT {role} TO {member} {options}")
    return statements


def _setting(before: Entry | None, now: Entry | None) -> list[str]:
    entry = now or before
    if entry is None:
        return []
    value = entry.value
    database = value["database_name"]
    if value["setrole"] != "0":
        whose = f"ROLE {identifier(value['role_name'])}"
        whose += f" IN DATABASE {identifier(database)}" if database else ""
    else:
        whose = f"DATABASE {identifier(database)}" if database else "ROLE ALL"
    statements = [f"ALTER {whose} RESET ALL"]
    for each in (before.value["setconfig"] if before else None) or []:
        variable, _, text = each.partition("=")
        named = ".".join(identifier(part) for part in variable.split("."))
        shown = ", ".join(map(literal, elements(variable, text))) or "''"
        statements.append(f"ALTER {whose} SET {named} = {shown}")
    return statements


def _database(before: Entry | None, now: Entry | None) -> list[str]:
    if before is None:
        if now is None:
            return []
        name = identifier(now.name)
        return [
            f"ALTER DATABASE {name} WITH IS_TEMPLATE false",
            f"DROP DATABASE {name} WITH (FORCE)",
        ]
    name, was = identifier(before.name), before.value
    statements = []
    if now is None:
        statements.append(f"CREATE DATABASE {name} TEMPLATE template0")
    elif now.name != before.name:
        statements.append(f"ALTER DATABASE {identifier(now.name)} RENAME TO {name}")
    flags = f"ALLOW_CONNECTIONS {was['datallowconn']} IS_TEMPLATE {was['datistemplate']}"
    limit = f"CONNECTION LIMIT {was['datconnlimit']}"
    return [*statements, f"ALTER DATABASE {name} WITH {flags} {limit}"]


_WITH_PRIVILEGES = {
    Kind.DATABASE: "DATABASE",
    Kind.TABLESPACE: "TABLESPACE",
    Kind.PARAMETER: "PARAMETER",
}
_EXPLODE = """\
SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS who,
       privilege_type AS what, is_grantable AS grantable
  FROM aclexplode(nullif($1::text[], '{}')::aclitem[]) WHERE grantee <> 10
EXCEPT SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
       privilege_type, is_grantable FROM aclexplode(nullif($2::text[], '{}')::aclitem[])
"""


async def _revert_privileges(session: Session, difference: Difference) -> None:
    """Give an object its owner back, revoke what was granted, and grant what was revoked."""
    kind, before, now = difference.entry.kind, difference.before, difference.now
    if kind not in _WITH_PRIVILEGES or (before is None and kind is not Kind.PARAMETER):
        return
    noun, name = _WITH_PRIVILEGES[kind], difference.entry.name if before is None else before.name
    shown = name if kind is Kind.PARAMETER else identifier(name)
    if before is not None and now is not None and before.owner != now.owner:
        role = await session.value("SELECT $1::oid::regrole::text", before.owner)
        await session.execute(f"ALTER {noun} {shown} OWNER TO {role}")
        return  # privileges changed with the owner; further differences are found next time
    wanted = before.value["acl"] or [] if before is not None else []
    found = now.value["acl"] or [] if now is not None else []
    for row in await session.rows(_EXPLODE, found, wanted):
        await session.execute(f"REVOKE {row['what']} ON {noun} {shown} FROM {row['who']}")
    for row in await session.rows(_EXPLODE, wanted, found):
        option = "WITH GRANT OPTION" if row["grantable"] else ""
        await session.execute(f"GRANT {row['what']} ON {noun} {shown} TO {row['who']} {option}")
