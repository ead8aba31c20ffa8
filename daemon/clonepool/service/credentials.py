"""The roles that own templates and that leases log in as, and the URLs for clients."""

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
    """What a client needs to connect to one database."""

    url: str
    user: str
    password: str
    env: dict[str, str]


class Credentials:
    """Knows the login of each clone, and makes a new password for each lease.

    Passwords are derived from the daemon's secret, the clone's name and an *occasion*, a random
    word. A later daemon that finds the occasion in the clone's comment can derive the password
    again; others can read the comment too, but do not have the secret.

    Args:
        roles: of the server.
        endpoint: of the server for clients. Leases log in as its user where the daemon's role
            cannot make roles.
        capabilities: of the server and the daemon's role.
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
        self._shared = _UrlTemplate(endpoint)
        self._own = _UrlTemplate(msgspec.structs.replace(endpoint, user=_ROLE, password=_PASSWORD))

    def ownership(self, options: CloneOptions) -> Ownership:
        """Return which role owns a template with these options, and what its leases may do.

        Raises:
            ConfigError: the daemon's role cannot give that.
        """
        rights = "" if options.rights == "auto" else options.rights
        return choose_ownership(rights, options.owner, self._capabilities, embedded=self._embedded)

    async def prepare(self, options: CloneOptions) -> Ownership:
        """Make the owner of a template, before it is needed.

        Raises:
            ConfigError: the role of that name cannot be used.
            StatementError, ServerUnavailableError: it was not made.
        """
        ownership = self.ownership(options)
        await self._roles.ensure_owner(ownership)
        return ownership

    async def give(self, clone: str, options: CloneOptions) -> None:
        """Make the login of a clone that was never leased.

        Raises:
            StatementError, ServerUnavailableError: it may exist, and is removed with the clone.
        """
        ownership = self.ownership(options)
        if ownership.has_logins:
            fresh = self._fresh(clone)
            await self._roles.create_login(clone, ownership, fresh.password)
            self._known[clone] = fresh

    async def renew(self, clone: str, options: CloneOptions) -> None:
        """Lock the former holder of a clone out: its login gets a new password.

        Raises:
            StatementError, ServerUnavailableError: the former holder may still log in.
        """
        ownership = self.ownership(options)
        if ownership.has_logins:
            fresh = self._fresh(clone)
            await self._roles.renew(clone, ownership, fresh.password)
            self._known[clone] = fresh

    def lock_out(self, clone: str, options: CloneOptions, *, suspended: bool) -> str:
        """Return SQL that locks the former holder of a clone out; empty where none is needed.

        Args:
            clone: its name. If the SQL is not run, the clone must be dropped.
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
        """Enable the login of the holder again, with the password that it knows.

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
        """Return what the password of a clone's login is derived from; empty without a login."""
        known = self._known.get(clone)
        return known.occasion if known is not None else ""

    def found(self, clone: str, occasion: str) -> None:
        """Remember the occasion that an earlier daemon wrote down for a leased clone."""
        if occasion:
            self._known[clone] = self._secret_of(clone, occasion)

    def of(self, lease: Lease) -> Login:
        """Return the login of a lease's holder."""
        known = self._known.get(lease.clone)
        if known is None:
            return self._shared.fill(lease.clone, self._endpoint.user, self._endpoint.password)
        return self._own.fill(lease.clone, lease.clone, known.password)

    @property
    def _has_roles(self) -> bool:
        return self._capabilities.superuser or self._capabilities.createrole

    def _fresh(self, clone: str) -> _Secret:
        return self._secret_of(clone, secrets.token_hex(8))

    def _secret_of(self, clone: str, occasion: str) -> _Secret:
        return _Secret(occasion, derived_password(self._secret, f"{clone}:{occasion}"))


class _Secret(NamedTuple):
    """The password of a clone's login, and the occasion that it was derived from."""

    occasion: str
    password: str


class _UrlTemplate:
    """A URL with gaps to be filled: quoting a URL would take longer than the rest of an acquire.

    What goes into the gaps, the daemon's own names and passwords, needs no quoting.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        head, self._tail = endpoint.url(_DATABASE).split(_DATABASE)
        self._scheme, _, self._rest = head.partition(f"{_ROLE}:{_PASSWORD}")
        self._env = endpoint.env(_DATABASE)

    def fill(self, database: str, user: str, password: str) -> Login:
        """Return the login to that database."""
        user_info = f"{user}:{password}" if self._rest else ""
        url = f"{self._scheme}{user_info}{self._rest}{database}{self._tail}"
        env = {
            **self._env,
            "DATABASE_URL": url,
            "PGUSER": user,
            "PGPASSWORD": password,
            "PGDATABASE": database,
        }
        return Login(url, user, password, env)
