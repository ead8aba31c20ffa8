"""As whom templates are filled and leases log in, and the URL that says so."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from clonepool.postgres.roles import Ownership, choose_ownership, derived_password

if TYPE_CHECKING:
    from clonepool.config import CloneOptions
    from clonepool.core.decisions import Lease
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.endpoint import Endpoint
    from clonepool.postgres.roles import Roles

_DATABASE, _ROLE, _PASSWORD = "a-database", "a-role", "a-secret"


class Login(msgspec.Struct, frozen=True):
    """All that is needed to connect to one database."""

    url: str
    user: str
    password: str
    env: dict[str, str]


class Credentials:
    """Knows the login of each clone, and makes another password for each lease.

    Passwords are derived from the daemon's secret, the clone's name and an *occasion*, a random
    word. So a later daemon that finds the occasion of a lease in its clone's comment knows the
    password too, which the comment, that everybody on the server can read, does not give away.

    Args:
        roles: of the server.
        endpoint: of the server as its clients reach it, as whom leases log in where our own role
            can't make others.
        capabilities: of the server and our own role.
        secret: of this daemon's state directory.
        embedded: whether the server is the daemon's own.
    """

    def __init__(
        self,
        roles: Roles,
        endpoint: Endpoint,
        capabilities: Capabilities,
        secret: bytes,
        *,
        embedded: bool,
    ) -> None:
        self._roles = roles
        self._endpoint = endpoint
        self._capabilities = capabilities
        self._secret = secret
        self._embedded = embedded
        self._known: dict[str, _Secret] = {}
        self._shared = _Gaps(endpoint)
        self._own = _Gaps(msgspec.structs.replace(endpoint, user=_ROLE, password=_PASSWORD))

    def ownership(self, options: CloneOptions) -> Ownership:
        """Return who owns a template with these options, and what its leases may do.

        Raises:
            ConfigError: the daemon's own role can't give that.
        """
        rights = "" if options.rights == "auto" else options.rights
        return choose_ownership(rights, options.owner, self._capabilities, embedded=self._embedded)

    async def prepare(self, options: CloneOptions) -> Ownership:
        """Make the owner of a template, before it is needed.

        Raises:
            ConfigError: the role of that name can't serve.
            StatementError, ServerUnavailableError: it could not be made.
        """
        ownership = self.ownership(options)
        await self._roles.ensure_owner(ownership)
        return ownership

    async def give(self, clone: str, options: CloneOptions) -> None:
        """Make the login of a clone that is nobody's yet.

        Raises:
            StatementError, ServerUnavailableError: it may be made, and goes with the clone.
        """
        ownership = self.ownership(options)
        if ownership.has_logins:
            fresh = self._fresh(clone)
            await self._roles.create_login(clone, ownership, fresh.password)
            self._known[clone] = fresh

    async def renew(self, clone: str, options: CloneOptions) -> None:
        """Lock out whoever had the clone: its login gets another password.

        Raises:
            StatementError, ServerUnavailableError: the former holder may still come in.
        """
        ownership = self.ownership(options)
        if ownership.has_logins:
            fresh = self._fresh(clone)
            await self._roles.renew(clone, ownership, fresh.password)
            self._known[clone] = fresh

    def lock_out(self, clone: str, options: CloneOptions, *, suspended: bool) -> str:
        """Return SQL that locks out whoever had a clone that came back; empty where none is needed.

        Args:
            clone: its name. If the SQL is not run, it is to be dropped.
            options: of its template.
            suspended: whether the holder is to be let in again later, by `resume`.
        """
        ownership = self.ownership(options)
        if not ownership.has_logins:
            return ""
        fresh = self._fresh(clone)
        if not suspended:
            self._known[clone] = fresh
        return self._roles.renewal(clone, ownership, fresh.password)

    async def resume(self, clone: str, options: CloneOptions) -> None:
        """Let the holder in again with the password that it knows.

        Raises:
            StatementError, ServerUnavailableError: it may still be locked out.
        """
        known = self._known.get(clone)
        if known is not None:
            await self._roles.renew(clone, self.ownership(options), known.password)

    async def remove(self, clone: str) -> None:
        """Remove the login of a clone whose database is gone, and forget it.

        Raises:
            StatementError, ServerUnavailableError: it may still be there.
        """
        if self._has_roles:
            await self._roles.remove(clone)
        self._known.pop(clone, None)

    def occasion(self, clone: str) -> str:
        """Return what the password of a clone's login depends on; empty where it has none."""
        known = self._known.get(clone)
        return known.occasion if known is not None else ""

    def found(self, clone: str, occasion: str) -> None:
        """Remember what an earlier daemon wrote down of a clone that is leased."""
        if occasion:
            self._known[clone] = self._secret_of(clone, occasion)

    def of(self, lease: Lease) -> Login:
        """Return how the holder of that lease connects."""
        known = self._known.get(lease.clone)
        if known is None:
            return self._shared.filled(lease.clone, self._endpoint.user, self._endpoint.password)
        return self._own.filled(lease.clone, lease.clone, known.password)

    @property
    def _has_roles(self) -> bool:
        return self._capabilities.superuser or self._capabilities.createrole

    def _fresh(self, clone: str) -> _Secret:
        return self._secret_of(clone, secrets.token_hex(8))

    def _secret_of(self, clone: str, occasion: str) -> _Secret:
        return _Secret(occasion, derived_password(self._secret, f"{clone}:{occasion}"))


class _Secret(NamedTuple):
    """The password of a clone's login, and the occasion for which it was made."""

    occasion: str
    password: str


class _Gaps:
    """A URL with gaps: quoting one takes longer than all else in an acquire.

    What goes into the gaps, our own names and passwords, needs no quotes.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        head, self._tail = endpoint.url(_DATABASE).split(_DATABASE)
        self._scheme, _, self._rest = head.partition(f"{_ROLE}:{_PASSWORD}")
        self._env = endpoint.env(_DATABASE)

    def filled(self, database: str, user: str, password: str) -> Login:
        """Return the login to that database."""
        who = f"{user}:{password}" if self._rest else ""
        url = f"{self._scheme}{who}{self._rest}{database}{self._tail}"
        env = {
            **self._env,
            "DATABASE_URL": url,
            "PGUSER": user,
            "PGPASSWORD": password,
            "PGDATABASE": database,
        }
        return Login(url, user, password, env)
