"""Login roles: the one of a template, and the one that each lease can have to itself.

A lease's role is called like its clone, so that the name proves whose it is, owns that clone, and
is a member of the template's role, so that it may do with the contents what that one may. Nobody
else may connect to the clone. On the embedded server pg_hba.conf lets such a role into the database
of its own name and nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

import msgspec

from clonepool.errors import ConfigError, StatementError
from clonepool.postgres.gateway import identifier, literal
from clonepool.postgres.passwords import ITERATIONS, ITERATIONS_OF_RANDOM, scram_verifier

if TYPE_CHECKING:
    from clonepool.core.naming import Namer
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.gateway import Gateway, Session

LEASE_GROUP = "clonepool_lease"
"""On the embedded server: the group that pg_hba.conf confines."""
_MARK = "made by clonepool"
_UNDEFINED_OBJECT, _DEPENDENT_OBJECTS = "42704", "2BP01"


class CloneRole(msgspec.Struct, frozen=True):
    """The role that a clone is to have to itself.

    Attributes:
        password: letters, digits, `-` and `_` only.
        groups: the roles whose rights it has.
    """

    password: str
    groups: list[str]


def derived_password(secret: bytes, role: str) -> str:
    """Return the password of a role of ours: the same after a restart, told to leases only."""
    return hmac.digest(secret, role.encode(), hashlib.sha256).hex()[:40]


class Roles:
    """Makes, confines and removes roles on one server."""

    def __init__(self, gateway: Gateway, capabilities: Capabilities, *, embedded: bool) -> None:
        self._gateway = gateway
        self._superuser = capabilities.superuser
        self._embedded = embedded

    async def ensure(self, role: str, password: str, given: str) -> str:
        """Make the role of a template, or see that it can be used, and return its password.

        Args:
            role: its name.
            password: of a role that we make.
            given: the configured password, of a role that somebody else made; may be empty.

        Raises:
            ConfigError: the role cannot serve; nothing was changed.
            StatementError: our own role may not do this.
        """
        async with self._gateway.control() as session:
            rows = await session.rows(
                "SELECT rolsuper AS superuser, rolcanlogin AS login,"
                " coalesce(shobj_description(oid, 'pg_authid'), '') = $2 AS ours"
                " FROM pg_roles WHERE rolname = $1",
                role,
                _MARK,
            )
            if not rows:
                await session.execute(
                    f"CREATE ROLE {identifier(role)} LOGIN NOSUPERUSER {self._membership()}"
                )
                await session.execute(f"COMMENT ON ROLE {identifier(role)} IS {literal(_MARK)}")
            elif rows[0]["superuser"] or not rows[0]["login"]:
                what = "is a superuser" if rows[0]["superuser"] else "may not log in"
                raise ConfigError(
                    f"role {role} {what}", remedy="name another as the template's `role`"
                )
            elif not rows[0]["ours"]:
                if not given:
                    raise ConfigError(
                        f"role {role} was not made by clonepool and its password is not known",
                        remedy="set the template's `password`, or name a role that does not exist",
                    )
                return given
            password = given or password
            await self._set_password(session, role, password)
        return password

    def groups(self, role: str) -> list[str]:
        """Return the groups of the lease roles of a template whose role that is."""
        return [role, LEASE_GROUP] if self._embedded else [role]

    async def ensure_lease_group(self) -> None:
        """Make the group that pg_hba.conf confines."""
        if not self._embedded:
            return
        async with self._gateway.control() as session:
            if not await session.rows("SELECT FROM pg_roles WHERE rolname = $1", LEASE_GROUP):
                await session.execute(f"CREATE ROLE {LEASE_GROUP} NOLOGIN")

    async def give(self, clone: str, role: CloneRole) -> None:
        """Make the clone's own role, the clone its property, and lock everybody else out."""
        name = identifier(clone)
        groups = ", ".join(identifier(group) for group in role.groups)
        async with self._gateway.control() as session:
            await session.execute(
                f"CREATE ROLE {name} LOGIN NOSUPERUSER IN ROLE {groups} {self._membership()}"
            )
            await self._set_password(session, clone, role.password)
            await session.execute(f"ALTER DATABASE {name} OWNER TO {name}")
            await session.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
            for group in role.groups:
                await session.execute(f"REVOKE ALL ON DATABASE {name} FROM {identifier(group)}")

    async def set_password(self, role: str, password: str) -> None:
        """Give a role of ours a fresh password."""
        async with self._gateway.control() as session:
            await self._set_password(session, role, password)

    async def renew(self, role: str, password: str) -> None:
        """Make a clone's role as it was when it was made, with a fresh password."""
        async with self._gateway.control() as session:
            await session.execute(f"ALTER ROLE {identifier(role)} RESET ALL")
            await self._set_password(session, role, password)

    async def remove(self, clone: str) -> None:
        """Remove the role of a clone whose database is gone; there need not be one."""
        try:
            await self._gateway.ddl(f"DROP ROLE IF EXISTS {identifier(clone)}")
        except StatementError as error:
            if error.sqlstate not in {_UNDEFINED_OBJECT, _DEPENDENT_OBJECTS}:
                raise

    async def sweep(self, namer: Namer) -> list[str]:
        """Remove roles of ours whose clones are gone; return their names."""
        async with self._gateway.control() as session:
            rows = await session.rows(
                "SELECT rolname FROM pg_roles WHERE NOT EXISTS"
                " (SELECT FROM pg_database WHERE datname = rolname) ORDER BY rolname"
            )
        orphans = [row["rolname"] for row in rows if namer.parse(row["rolname"]) is not None]
        for role in orphans:
            await self.remove(role)
        return orphans

    async def _set_password(self, session: Session, role: str, password: str) -> None:
        iterations = ITERATIONS_OF_RANDOM if self._embedded else ITERATIONS
        verifier = scram_verifier(password, iterations)
        await session.execute(f"ALTER ROLE {identifier(role)} PASSWORD {literal(verifier)}")

    def _membership(self) -> str:
        """Let an ordinary role of ours act for the roles that it makes; a superuser may anyway."""
        if self._superuser:
            return ""
        return f"ROLE {identifier(self._gateway.endpoint.user)}"
