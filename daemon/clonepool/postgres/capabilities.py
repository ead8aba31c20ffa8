"""What a server, and the daemon's role on it, can do; read once at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clonepool.errors import CapabilityError, StatementError
from clonepool.postgres.server_errors import CONNECT_REMEDIES

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Gateway

OLDEST_MAJOR = 13
NEWEST_MAJOR = 18
"""Versions of PostgreSQL that are supported."""
_OLDEST_REWINDABLE_MAJOR = 15
"""First version that has pg_walinspect."""


class Capabilities(msgspec.Struct, frozen=True):
    """Facts about the server.

    Attributes:
        version: as in `server_version_num`.
        version_text: as in `server_version`.
        system_identifier: of the cluster.
        superuser: whether the daemon's role is one.
        max_connections: as in the setting.
        encoding: of template0.
        locale: of template0.
        createrole: whether the daemon's role may create others; superusers may in any case.
        has_walinspect: whether contrib's pg_walinspect is installed, which reads the WAL.
        file_copy_methods: the values that file_copy_method may have; none if there is no such
            setting.
    """

    version: int
    version_text: str
    system_identifier: int
    superuser: bool
    max_connections: int
    encoding: str
    locale: str
    createrole: bool = False
    has_walinspect: bool = False
    file_copy_methods: tuple[str, ...] = ()

    @property
    def rewinds(self) -> bool:
        """Whether clones can be rewound."""
        return not self.no_rewinds_because

    @property
    def no_rewinds_because(self) -> str:
        """Why clones cannot be rewound on this server; empty if they can.

        Only superusers can read the WAL, and disable triggers and foreign keys.
        """
        if not self.superuser:
            return "the daemon's role is not a superuser, so it cannot read the server's WAL"
        if self.major < _OLDEST_REWINDABLE_MAJOR:
            return (
                f"PostgreSQL {self.major} has no function to read its WAL;"
                f" {_OLDEST_REWINDABLE_MAJOR} and later have one"
            )
        if not self.has_walinspect:
            return "pg_walinspect of PostgreSQL's contrib is not installed"
        return ""

    @property
    def major(self) -> int:
        """The major version, such as 18."""
        return self.version // 10_000


async def inspect(gateway: Gateway) -> Capabilities:
    """Read the capabilities of a server.

    Raises:
        CapabilityError: version, database or role cannot be used; says what is missing.
        ServerUnavailableError: the server cannot be reached.
    """
    try:
        async with gateway.control() as session:
            (row,) = await session.rows(
                "SELECT current_setting('server_version_num')::int AS version,"
                " current_setting('server_version') AS version_text,"
                " rolsuper AS superuser, rolcreatedb AS createdb,"
                " rolcreaterole AS createrole, rolname AS role,"
                " EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_walinspect')"
                " AS has_walinspect,"
                " current_setting('max_connections')::int AS max_connections,"
                " pg_is_in_recovery() AS standby,"
                " (SELECT pg_encoding_to_char(encoding) FROM pg_database"
                "   WHERE datname = 'template0') AS encoding,"
                " (SELECT datcollate || ',' || datctype FROM pg_database"
                "   WHERE datname = 'template0') AS locale,"
                " (SELECT enumvals FROM pg_settings"
                "   WHERE name = 'file_copy_method') AS file_copy_methods"
                " FROM pg_roles WHERE rolname = current_user"
            )
            identifier = await session.value("SELECT system_identifier FROM pg_control_system()")
    except StatementError as error:
        raise CapabilityError(f"server: {error}", remedy=_remedy(error.sqlstate)) from error
    missing = missing_requirement(row)
    if missing:
        raise CapabilityError(f"server: {missing[0]}", remedy=missing[1])
    return Capabilities(
        version=row["version"],
        version_text=row["version_text"],
        system_identifier=identifier,
        superuser=row["superuser"],
        max_connections=row["max_connections"],
        encoding=row["encoding"],
        locale=row["locale"],
        createrole=row["createrole"],
        has_walinspect=row["has_walinspect"],
        file_copy_methods=tuple(row["file_copy_methods"] or ()),
    )


def missing_requirement(row: dict[str, object]) -> tuple[str, str] | None:
    """Return what is missing and the remedy, if anything is."""
    version, role = row["version"], row["role"]
    if not isinstance(version, int) or not OLDEST_MAJOR <= version // 10_000 <= NEWEST_MAJOR:
        return (
            f"PostgreSQL {row['version_text']} is not supported",
            f"use one from {OLDEST_MAJOR} to {NEWEST_MAJOR}",
        )
    if row["standby"]:
        return "the server is a standby and cannot create databases", "name its primary"
    if not (row["superuser"] or row["createdb"]):
        return (
            f"role {role} lacks CREATEDB",
            f"as a superuser: ALTER ROLE {role} CREATEDB",
        )
    return None


def _remedy(sqlstate: str) -> str:
    return {
        **CONNECT_REMEDIES,
        "42501": "as a superuser: GRANT EXECUTE ON FUNCTION pg_control_system() TO the role,"
        " in the database that the URL names",
    }.get(sqlstate, "")
