"""The properties of a database that CREATE DATABASE does not copy.

These are settings made with ALTER DATABASE … SET and ALTER ROLE … IN DATABASE … SET, privileges on
the database, and its connection limit. They are read from a template before it is sealed, kept in
its comment, and given to every clone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from clonepool.postgres.quoting import identifier, literal

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.session import Session


class Setting(msgspec.Struct, frozen=True):
    """A setting of the database, for one role or, if `role` is empty, for all."""

    role: str
    name: str
    value: str


class Privilege(msgspec.Struct, frozen=True):
    """A privilege on the database; an empty `role` stands for PUBLIC."""

    role: str
    privilege: str
    grantable: bool


class Properties(msgspec.Struct, frozen=True):
    """All properties; `privileges` is None if they are PostgreSQL's defaults."""

    settings: list[Setting] = []
    privileges: list[Privilege] | None = None
    connection_limit: int = -1


NO_PROPERTIES = Properties()
_LISTS = {
    "local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces",
    "unix_socket_directories",
}  # fmt: skip
"""Settings that are lists of names; given as one string they would mean one long name."""
_ELEMENT = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",]+?))\s*(?:,|$)')


async def read_properties(session: Session) -> Properties:
    """Read the properties of the session's own database."""
    return await properties_of(session, await session.value("SELECT current_database()::text"))


async def properties_of(session: Session, database: str) -> Properties:
    """Read the properties of a database, from any session of its server."""
    settings = await session.rows(
        "SELECT coalesce(rolname, '') AS role, split_part(setting, '=', 1) AS name,"
        " substr(setting, strpos(setting, '=') + 1) AS value"
        " FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase"
        " CROSS JOIN unnest(setconfig) AS setting LEFT JOIN pg_roles r ON r.oid = setrole"
        " WHERE datname = $1 ORDER BY 1, 2",
        database,
    )
    privileges = await session.rows(
        "SELECT coalesce(rolname, '') AS role, privilege_type AS privilege,"
        " is_grantable AS grantable FROM pg_database CROSS JOIN aclexplode(datacl) AS acl"
        " LEFT JOIN pg_roles r ON r.oid = acl.grantee"
        " WHERE datname = $1 ORDER BY 1, 2",
        database,
    )
    (row,) = await session.rows(
        "SELECT datacl IS NULL AS default_acl, datconnlimit FROM pg_database WHERE datname = $1",
        database,
    )
    return Properties(
        [Setting(**setting) for setting in settings],
        None if row["default_acl"] else [Privilege(**privilege) for privilege in privileges],
        row["datconnlimit"],
    )


async def give_properties(gateway: Gateway, name: str, properties: Properties) -> None:
    """Give properties to the database `name`, which has none yet."""
    if properties == NO_PROPERTIES:
        return
    async with gateway.session(gateway.endpoint.maintenance) as session:
        for setting in properties.settings:
            await _give_setting(session, name, setting)
        if properties.privileges is not None:
            await session.execute(f"REVOKE ALL ON DATABASE {identifier(name)} FROM PUBLIC")
        for privilege in properties.privileges or []:
            to = identifier(privilege.role) if privilege.role else "PUBLIC"
            option = "WITH GRANT OPTION" if privilege.grantable else ""
            await session.execute(
                f"GRANT {privilege.privilege} ON DATABASE {identifier(name)} TO {to} {option}"
            )
        if properties.connection_limit != NO_PROPERTIES.connection_limit:
            limit = properties.connection_limit
            await session.execute(f"ALTER DATABASE {identifier(name)} CONNECTION LIMIT {limit}")


async def _give_setting(session: Session, name: str, setting: Setting) -> None:
    """Give one setting, so that it reads the same; lists stay lists."""
    variable = ".".join(identifier(part) for part in setting.name.split("."))
    whose = f"ROLE {identifier(setting.role)} IN " if setting.role else ""
    value = ", ".join(map(literal, elements(setting.name, setting.value))) or "''"
    await session.execute(f"ALTER {whose}DATABASE {identifier(name)} SET {variable} = {value}")


def elements(name: str, value: str) -> list[str]:
    """Return the elements of a setting that is a list of names, some of them in double quotes.

    The value of any other setting is its only element.
    """
    if name not in _LISTS:
        return [value]
    return [
        quoted.replace('""', '"') if quoted or not plain else plain
        for quoted, plain in _ELEMENT.findall(value)
    ]
