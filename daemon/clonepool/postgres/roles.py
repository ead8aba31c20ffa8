"""Roles: the owner of a template's objects, and the login of each database.

The *owner* of a template owns what is in it, and cannot log in. A *login* has the same name as its
database, which is a clone or a template that is being built, so its name proves whose it is. Its
password is known to one leaseholder or one build, and is replaced for the next.

What a login may do is determined by the template's `rights`. With `owner` it has the privileges of
the owner in its own database and cannot become another role, and on the embedded server pg_hba.conf
lets it only into the database of its own name. With `superuser` it may do whatever PostgreSQL lets
superusers do.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from clonepool.errors import ConfigError, StatementError
from clonepool.postgres.passwords import ITERATIONS, ITERATIONS_OF_RANDOM, scram_verifier
from clonepool.postgres.quoting import identifier, literal

if TYPE_CHECKING:
    from clonepool.core.naming import Namer
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.session import Session

LOGINS = "clonepool_logins"
"""Group of logins that pg_hba.conf of the embedded server lets into their own databases only."""
SUPERUSERS = "clonepool_superusers"
"""Group of superusers that pg_hba.conf of the embedded server keeps out of the daemon's
databases."""
OWNER = "clonepool_owner"
"""Default owner of templates whose leases are not superusers."""
SUPERUSER_OWNER = "postgres"
"""Default owner of templates whose leases are superusers; dumps and scripts expect this role."""
_MARK = "made by clonepool"
"""Comment of the roles that the daemon made."""
_OWNED = """\
SELECT CASE o.type WHEN 'statistics object' THEN 'STATISTICS' WHEN 'composite type' THEN 'type'
            ELSE o.type END AS type, o.identity
  FROM pg_shdepend d CROSS JOIN LATERAL pg_identify_object(classid, objid, objsubid) AS o
 WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND refclassid = 'pg_authid'::regclass AND deptype = 'o'
   AND refobjid = (SELECT oid FROM pg_authid WHERE rolname = $1)
   AND o.type NOT IN ('extension', 'index', 'toast table', 'user mapping', 'default acl')
   AND NOT EXISTS (SELECT FROM pg_depend p WHERE p.classid = d.classid AND p.objid = d.objid
                      AND p.deptype IN ('i', 'e'))
 ORDER BY d.objid
"""
"""Query of what a role owns in a database, without parts of other objects."""
_UNDEFINED_OBJECT, _DEPENDENT_OBJECTS = "42704", "2BP01"
_MEMBERSHIP_OPTIONS_MAJOR = 16
_PARAMETER_PRIVILEGES_MAJOR = 15


class Rights(StrEnum):
    """What a lease may do."""

    OWNER = "owner"
    SUPERUSER = "superuser"


class Ownership(msgspec.Struct, frozen=True):
    """The owner of a template, and what its logins may do.

    Attributes:
        owner: a role's name; empty for the daemon's own role, if that cannot create roles.
        rights: of leases and of builds.
    """

    owner: str
    rights: Rights

    @property
    def has_logins(self) -> bool:
        """Whether each database has a login of its own."""
        return bool(self.owner)


OURS = Ownership("", Rights.OWNER)
"""Ownership where the daemon's role cannot create roles: it owns all, and leases log in as it."""


def derived_password(secret: bytes, what: str) -> str:
    """Return a password of 160 bits that only the holder of `secret` can derive.

    Args:
        secret: of the state directory.
        what: names the role and the occasion; each occasion has a password of its own.
    """
    return hmac.digest(secret, what.encode(), hashlib.sha256).hex()[:40]


def choose_ownership(
    rights: str, owner: str, capabilities: Capabilities, *, embedded: bool
) -> Ownership:
    """Return the owner of a template and what its leases may do.

    Args:
        rights: as configured; empty for those of a superuser on the embedded server, and of the
            owner elsewhere.
        owner: as configured; empty for the default.
        capabilities: of the server and the daemon's role.
        embedded: whether the server is the embedded one.

    Raises:
        ConfigError: the daemon's role cannot grant that.
    """
    default = Rights.SUPERUSER if embedded else Rights.OWNER
    chosen = Rights(rights) if rights else default
    if chosen is Rights.SUPERUSER:
        if not capabilities.superuser:
            raise ConfigError(
                "rights: the daemon's own role is not a superuser and cannot create superusers",
                remedy='remove `rights` or set it to "owner"',
            )
        return Ownership(owner or SUPERUSER_OWNER, chosen)
    if not (capabilities.superuser or capabilities.createrole):
        if owner:
            raise ConfigError(
                f"owner: the daemon's own role lacks CREATEROLE, so {owner} cannot own a template",
                remedy="as a superuser: ALTER ROLE … CREATEROLE; or remove `owner`",
            )
        return Ownership("", chosen)
    return Ownership(owner or OWNER, chosen)


class Roles:
    """Creates, renews and removes roles on one server."""

    def __init__(self, gateway: Gateway, capabilities: Capabilities, *, embedded: bool) -> None:
        self._gateway = gateway
        self._superuser = capabilities.superuser
        self._options = capabilities.major >= _MEMBERSHIP_OPTIONS_MAJOR
        self._embedded = embedded

    async def ensure_owner(self, ownership: Ownership) -> None:
        """Create the owner of a template, or check that the existing role can be it.

        Raises:
            ConfigError: the role cannot be the owner; nothing was changed.
            StatementError: the daemon's own role may not do this.
        """
        owner, superuser = ownership.owner, ownership.rights is Rights.SUPERUSER
        if not owner:
            return
        async with self._gateway.control() as session:
            rows = await session.rows(
                "SELECT rolsuper AS superuser, rolcanlogin AS login,"
                " coalesce(shobj_description(oid, 'pg_authid'), '') = $2 AS ours"
                " FROM pg_roles WHERE rolname = $1",
                owner,
                _MARK,
            )
            if not rows:
                kind = "SUPERUSER" if superuser else "NOSUPERUSER"
                await session.execute(
                    f"CREATE ROLE {identifier(owner)} NOLOGIN {kind} {self._membership()};"
                    f" COMMENT ON ROLE {identifier(owner)} IS {literal(_MARK)}"
                )
            elif rows[0]["superuser"] and not superuser:
                raise ConfigError(
                    f"owner: role {owner} is a superuser",
                    remedy='name another as the template\'s `owner`, or set rights = "superuser"',
                )
            elif superuser and not rows[0]["superuser"]:
                raise ConfigError(
                    f"owner: role {owner} is not a superuser, but the rights are those of one",
                    remedy='name another as the template\'s `owner`, or set rights = "owner"',
                )
            elif rows[0]["login"] and (rows[0]["ours"] or self._embedded):
                # On the embedded server, no roles but logins can log in.
                await session.execute(f"ALTER ROLE {identifier(owner)} NOLOGIN PASSWORD NULL")

    async def create_login(self, database: str, ownership: Ownership, password: str) -> None:
        """Create the login of a clone.

        A login that is not a superuser owns its database, which makes it `pg_database_owner` there
        and nowhere else, and no other role can connect. If it is a superuser, roles that it creates
        can connect.
        """
        name = identifier(database)
        statements = self._create(database, ownership, password, become=False)
        if ownership.rights is Rights.OWNER:
            statements.append(f"ALTER DATABASE {name} OWNER TO {name}")
            statements.append(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
        async with self._gateway.control() as session:
            await session.execute("; ".join(statements))

    async def create_builder(self, database: str, ownership: Ownership, password: str) -> None:
        """Create the login by which a template is filled.

        Its sessions act as the owner from the start, so the owner owns what they create. RESET ROLE
        gives them no rights that the owner does not have.
        """
        statements = self._create(database, ownership, password, become=True)
        statements.append(
            f"ALTER ROLE {identifier(database)} SET role = {literal(ownership.owner)}"
        )
        async with self._gateway.control() as session:
            await session.execute("; ".join(statements))

    async def hand_over(self, database: str, former: str, owner: str) -> None:
        """Give what a role owns in a database to another role.

        REASSIGN OWNED would also give away the databases that the role owns.
        """
        if not (former and owner):
            return
        async with self._gateway.session(database) as session:
            rows = await session.rows(_OWNED, former)
            statements = [
                f"ALTER {row['type']} {row['identity']} OWNER TO {identifier(owner)}"
                for row in rows
            ]
            if statements:
                await session.execute("; ".join(statements))

    async def take_back(self, database: str, builder: str, owner: str) -> None:
        """Give what a builder's login owns in a database to the owner, and remove the login."""
        login = identifier(builder)
        async with self._gateway.session(database) as session:
            await session.execute(
                f"REASSIGN OWNED BY {login} TO {identifier(owner)}; DROP OWNED BY {login}"
            )
        await self.remove(builder)

    def renewal(self, name: str, ownership: Ownership, password: str) -> str:
        """Return SQL that resets a login's attributes and settings, with a new password.

        The former password is invalid afterwards.

        Args:
            name: the login's.
            ownership: of its template.
            password: the new one.
        """
        role = identifier(name)
        return (
            f"ALTER ROLE {role} WITH {self._attributes(ownership, password)};"
            f" ALTER ROLE {role} RESET ALL"
        )

    async def renew(self, name: str, ownership: Ownership, password: str) -> None:
        """Reset a login, by the SQL of `renewal`."""
        async with self._gateway.control() as session:
            await session.execute(self.renewal(name, ownership, password))

    async def remove(self, name: str) -> None:
        """Remove the login of a database that is gone, if there is one."""
        try:
            await self._gateway.ddl(f"DROP ROLE IF EXISTS {identifier(name)}")
        except StatementError as error:
            if error.sqlstate not in {_UNDEFINED_OBJECT, _DEPENDENT_OBJECTS}:
                raise

    async def sweep(self, namer: Namer) -> list[str]:
        """Remove the instance's logins whose databases are gone; return their names."""
        async with self._gateway.control() as session:
            rows = await session.rows(
                "SELECT rolname FROM pg_roles WHERE NOT EXISTS"
                " (SELECT FROM pg_database WHERE datname = rolname) ORDER BY rolname"
            )
        orphans = [row["rolname"] for row in rows if namer.parse(row["rolname"]) is not None]
        for role in orphans:
            await self.remove(role)
        return orphans

    def _create(self, name: str, ownership: Ownership, password: str, *, become: bool) -> list[str]:
        """Return statements that create a login; `become`: whether it may SET ROLE to the owner."""
        role, owner = identifier(name), identifier(ownership.owner)
        attributes = self._attributes(ownership, password)
        statements = [f"CREATE ROLE {role} {attributes} {self._membership()}"]
        if ownership.rights is Rights.SUPERUSER:
            if self._embedded:
                statements.append(f"GRANT {SUPERUSERS} TO {role}")
            return statements
        # Before PostgreSQL 16 every member may SET ROLE, which gives it no further rights.
        options = f" WITH INHERIT TRUE, SET {become}" if self._options else ""
        statements.append(f"GRANT {owner} TO {role}{options}")
        if self._embedded:
            statements.append(f"GRANT {LOGINS} TO {role}")
        return statements

    def _attributes(self, ownership: Ownership, password: str) -> str:
        """Return all attributes of a login, including defaults."""
        iterations = ITERATIONS_OF_RANDOM if self._embedded else ITERATIONS
        verifier = literal(scram_verifier(password, iterations))
        common = f"LOGIN INHERIT CONNECTION LIMIT -1 VALID UNTIL 'infinity' PASSWORD {verifier}"
        if not self._superuser:
            return common  # an ordinary role may not even name the attributes that it cannot give
        if ownership.rights is Rights.SUPERUSER:
            return f"SUPERUSER CREATEDB CREATEROLE REPLICATION BYPASSRLS {common}"
        return f"NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS {common}"

    def _membership(self) -> str:
        """Return the options by which a daemon's role can act for roles that it creates."""
        if self._superuser:
            return ""
        return f"ROLE {identifier(self._gateway.endpoint.user)}"


async def prepare_embedded(session: Session, own_role: str, major: int) -> None:
    """Create the roles that the embedded server's pg_hba.conf and templates name.

    The daemon's own role and `postgres` are reset, because a superuser's lease may have changed
    them.

    Args:
        session: the daemon's own, to any database.
        own_role: the daemon's own role.
        major: the server's version.
    """
    found = {row["rolname"] for row in await session.rows("SELECT rolname FROM pg_roles")}
    statements = [
        f"CREATE ROLE {group} NOLOGIN" for group in (LOGINS, SUPERUSERS) if group not in found
    ]
    if SUPERUSER_OWNER not in found:
        statements.append(f"CREATE ROLE {SUPERUSER_OWNER} NOLOGIN SUPERUSER")
    statements.append(
        f"ALTER ROLE {SUPERUSER_OWNER} WITH NOLOGIN SUPERUSER CREATEDB CREATEROLE REPLICATION"
        " BYPASSRLS PASSWORD NULL"
    )
    statements += [
        f"ALTER ROLE {identifier(role)} RESET ALL" for role in (own_role, SUPERUSER_OWNER)
    ]
    statements.append(
        f"ALTER ROLE {identifier(own_role)} WITH LOGIN SUPERUSER PASSWORD NULL"
        " CONNECTION LIMIT -1 VALID UNTIL 'infinity'"
    )
    if major >= _PARAMETER_PRIVILEGES_MAJOR:
        # Fixture loaders disable triggers and foreign keys with it.
        statements.append(f"GRANT SET ON PARAMETER session_replication_role TO {LOGINS}")
    await session.execute("; ".join(statements))
