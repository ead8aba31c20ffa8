"""Roles: who owns what is in a template, and the login that each database has to itself.

*The owner* of a template owns what is in it, and can't log in. *A login* is called like the
database that it is for, a clone or a template that is being built, so that its name proves whose it
is; its password is known to one leaseholder, or one build, and is another one for the next.

What a login may do is the template's `rights`: with `owner` it has the privileges of the owner in
its own database, can become nobody else, and on the embedded server pg_hba.conf lets it into the
database of its own name alone. With `superuser` it may do whatever PostgreSQL lets superusers do.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from clonepool.errors import ConfigError, StatementError
from clonepool.postgres.gateway import identifier, literal
from clonepool.postgres.passwords import ITERATIONS, ITERATIONS_OF_RANDOM, scram_verifier

if TYPE_CHECKING:
    from clonepool.core.naming import Namer
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.gateway import Gateway, Session

LOGINS = "clonepool_logins"
"""On the embedded server: the group that pg_hba.conf lets into their own databases only."""
SUPERUSERS = "clonepool_superusers"
"""On the embedded server: the group that pg_hba.conf keeps out of the daemon's databases."""
OWNER = "clonepool_owner"
"""Who owns a template whose leases are no superusers', unless another one is named."""
SUPERUSER_OWNER = "postgres"
"""Who owns a template whose leases are superusers': what dumps and scripts expect to find."""
_MARK = "made by clonepool"
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
"""What a role owns in a database and can be given to another, parts of something else left out."""
_UNDEFINED_OBJECT, _DEPENDENT_OBJECTS = "42704", "2BP01"
_MEMBERSHIP_OPTIONS_MAJOR = 16
_PARAMETER_PRIVILEGES_MAJOR = 15


class Rights(StrEnum):
    """What a lease may do."""

    OWNER = "owner"
    SUPERUSER = "superuser"


class Ownership(msgspec.Struct, frozen=True):
    """Who owns a template, and what its logins may do.

    Attributes:
        owner: a role's name; empty for the daemon's own role, where it can't make others.
        rights: of leases and of builds.
    """

    owner: str
    rights: Rights

    @property
    def has_logins(self) -> bool:
        """Whether each database has a login of its own."""
        return bool(self.owner)


OURS = Ownership("", Rights.OWNER)
"""Where the daemon's own role can't make others: it owns everything, and leases log in as it."""


def derived_password(secret: bytes, what: str) -> str:
    """Return a password that only the holder of `secret` can derive, 160 bits of it.

    Args:
        secret: of this daemon's state directory.
        what: names the role and the occasion; another occasion has another password.
    """
    return hmac.digest(secret, what.encode(), hashlib.sha256).hex()[:40]


def choose_ownership(
    rights: str, owner: str, capabilities: Capabilities, *, embedded: bool
) -> Ownership:
    """Return who owns a template and what its leases may do.

    Args:
        rights: as configured; empty for a superuser's on the embedded server, an owner's elsewhere.
        owner: as configured; empty for the usual one.
        capabilities: of the server and our role.
        embedded: whether the server is the daemon's own.

    Raises:
        ConfigError: our role can't give that.
    """
    default = Rights.SUPERUSER if embedded else Rights.OWNER
    chosen = Rights(rights) if rights else default
    if chosen is Rights.SUPERUSER:
        if not capabilities.superuser:
            raise ConfigError(
                "rights: the daemon's own role is no superuser and can't make superusers",
                remedy='leave `rights` out or set it to "owner"',
            )
        return Ownership(owner or SUPERUSER_OWNER, chosen)
    if not (capabilities.superuser or capabilities.createrole):
        if owner:
            raise ConfigError(
                f"owner: the daemon's own role lacks CREATEROLE, so {owner} can't own a template",
                remedy="as a superuser: ALTER ROLE … CREATEROLE; or leave `owner` out",
            )
        return Ownership("", chosen)
    return Ownership(owner or OWNER, chosen)


class Roles:
    """Makes, renews and removes roles on one server."""

    def __init__(self, gateway: Gateway, capabilities: Capabilities, *, embedded: bool) -> None:
        self._gateway = gateway
        self._superuser = capabilities.superuser
        self._options = capabilities.major >= _MEMBERSHIP_OPTIONS_MAJOR
        self._embedded = embedded

    async def ensure_owner(self, ownership: Ownership) -> None:
        """Make the owner of a template, or see that the role of that name can be it.

        Raises:
            ConfigError: the role can't serve; nothing was changed.
            StatementError: our own role may not do this.
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
                    f"owner: role {owner} is no superuser, and rights are a superuser's",
                    remedy='name another as the template\'s `owner`, or set rights = "owner"',
                )
            elif rows[0]["login"] and (rows[0]["ours"] or self._embedded):
                # What is not a lease's own login never logs in on a server of ours.
                await session.execute(f"ALTER ROLE {identifier(owner)} NOLOGIN PASSWORD NULL")

    async def give(self, database: str, ownership: Ownership, password: str) -> None:
        """Make the login of a clone.

        One without a superuser's rights owns its database, which makes it `pg_database_owner` there
        and nowhere else, and everybody else is locked out. A superuser's lets those roles in that
        its holder makes.
        """
        name = identifier(database)
        statements = self._create(database, ownership, password, become=False)
        if ownership.rights is Rights.OWNER:
            statements.append(f"ALTER DATABASE {name} OWNER TO {name}")
            statements.append(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
        async with self._gateway.control() as session:
            await session.execute("; ".join(statements))

    async def give_builder(self, database: str, ownership: Ownership, password: str) -> None:
        """Make the login by which a template is filled.

        It acts as the owner from the start, so that what it makes is the owner's, but there is
        nothing that `RESET ROLE` could take it back to beyond the owner's own rights.
        """
        statements = self._create(database, ownership, password, become=True)
        statements.append(
            f"ALTER ROLE {identifier(database)} SET role = {literal(ownership.owner)}"
        )
        async with self._gateway.control() as session:
            await session.execute("; ".join(statements))

    async def hand_over(self, database: str, former: str, owner: str) -> None:
        """Make what is one role's in a database another's; nothing outside of it changes hands.

        REASSIGN OWNED would also hand over the databases that the role owns elsewhere.
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
        """Give what a builder's login has in a database to the owner, and remove the login."""
        login = identifier(builder)
        async with self._gateway.session(database) as session:
            await session.execute(
                f"REASSIGN OWNED BY {login} TO {identifier(owner)}; DROP OWNED BY {login}"
            )
        await self.remove(builder)

    def renewal(self, name: str, ownership: Ownership, password: str) -> str:
        """Return SQL that makes a login as it was when it was made, with another password.

        From then on nobody comes in who knew the one before. What is in its settings is gone.

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
        """Do as `renewal` says."""
        async with self._gateway.control() as session:
            await session.execute(self.renewal(name, ownership, password))

    async def remove(self, name: str) -> None:
        """Remove the login of a database that is gone; there need not be one."""
        try:
            await self._gateway.ddl(f"DROP ROLE IF EXISTS {identifier(name)}")
        except StatementError as error:
            if error.sqlstate not in {_UNDEFINED_OBJECT, _DEPENDENT_OBJECTS}:
                raise

    async def sweep(self, namer: Namer) -> list[str]:
        """Remove logins of ours whose databases are gone; return their names."""
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
        """Return what makes a login that has the owner's rights, and may `become` the owner."""
        role, owner = identifier(name), identifier(ownership.owner)
        attributes = self._attributes(ownership, password)
        statements = [f"CREATE ROLE {role} {attributes} {self._membership()}"]
        if ownership.rights is Rights.SUPERUSER:
            if self._embedded:
                statements.append(f"GRANT {SUPERUSERS} TO {role}")
            return statements
        # Before 16 every member may SET ROLE; but the owner can't log in, and so it leads nowhere.
        options = f" WITH INHERIT TRUE, SET {become}" if self._options else ""
        statements.append(f"GRANT {owner} TO {role}{options}")
        if self._embedded:
            statements.append(f"GRANT {LOGINS} TO {role}")
        return statements

    def _attributes(self, ownership: Ownership, password: str) -> str:
        """Return all attributes of a login, those too that are the default."""
        iterations = ITERATIONS_OF_RANDOM if self._embedded else ITERATIONS
        verifier = literal(scram_verifier(password, iterations))
        common = f"LOGIN INHERIT CONNECTION LIMIT -1 VALID UNTIL 'infinity' PASSWORD {verifier}"
        if not self._superuser:
            return common  # an ordinary role may not even say what it can't give
        if ownership.rights is Rights.SUPERUSER:
            return f"SUPERUSER CREATEDB CREATEROLE REPLICATION BYPASSRLS {common}"
        return f"NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS {common}"

    def _membership(self) -> str:
        """Let an ordinary role of ours act for the roles that it makes; a superuser may anyway."""
        if self._superuser:
            return ""
        return f"ROLE {identifier(self._gateway.endpoint.user)}"


async def prepare_embedded(session: Session, itself: str, major: int) -> None:
    """See that the roles are there that the embedded server's pg_hba.conf and templates name.

    The daemon's own role is put right as well: a lease that is a superuser's may have changed it.

    Args:
        session: the daemon's own, to any database.
        itself: the daemon's own role.
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
    statements += [f"ALTER ROLE {identifier(role)} RESET ALL" for role in (itself, SUPERUSER_OWNER)]
    statements.append(
        f"ALTER ROLE {identifier(itself)} WITH LOGIN SUPERUSER PASSWORD NULL"
        " CONNECTION LIMIT -1 VALID UNTIL 'infinity'"
    )
    if major >= _PARAMETER_PRIVILEGES_MAJOR:
        # Fixture loaders keep triggers and foreign keys out by this.
        statements.append(f"GRANT SET ON PARAMETER session_replication_role TO {LOGINS}")
    await session.execute("; ".join(statements))
