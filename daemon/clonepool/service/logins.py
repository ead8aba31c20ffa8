"""As whom a leaseholder logs in, and the URL that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from clonepool.core.decisions import Lease
    from clonepool.postgres.endpoint import Endpoint

_DATABASE, _ROLE, _PASSWORD = "a-database", "a-role", "a-secret"


class Login(msgspec.Struct, frozen=True):
    """All that is needed to connect to one clone."""

    url: str
    user: str
    password: str
    env: dict[str, str]


class _Recipe:
    """A URL with gaps.

    Quoting one takes longer than all else in an acquire; what goes into the gaps, our own names
    and passwords, needs no quotes.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._head, self._tail = endpoint.url(_DATABASE).split(_DATABASE)
        self._env = endpoint.env(_DATABASE)

    def login(self, database: str) -> Login:
        """Fill in the database."""
        url = f"{self._head}{database}{self._tail}"
        env = {**self._env, "DATABASE_URL": url, "PGDATABASE": database}
        return Login(url, self.endpoint.user, self.endpoint.password, env)

    def login_as(self, database: str, role: str, password: str) -> Login:
        """Fill in the database and who."""
        login = self.login(database)
        who = f"{_ROLE}:{_PASSWORD}@"
        url = login.url.replace(who, f"{role}:{password}@", 1)
        env = {**login.env, "DATABASE_URL": url, "PGUSER": role, "PGPASSWORD": password}
        return Login(url, role, password, env)


class Logins:
    """Knows the role of each template, and the password of each clone that has a role of its own.

    Args:
        endpoint: of the server, as whom leases log in unless a template says otherwise.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._common = _Recipe(endpoint)
        self._of_template: dict[str, _Recipe] = {}
        self._of_clone: dict[str, str] = {}
        self._owners: dict[str, Endpoint] = {}

    def use_role(self, template: str, role: str, password: str) -> None:
        """Let the leases of a template log in as that role, and what fills it too."""
        owner = msgspec.structs.replace(self._endpoint, user=role, password=password)
        self._owners[template] = owner
        self._of_template[template] = _Recipe(owner)

    def use_lease_roles(self, template: str) -> None:
        """Let each lease of a template log in as the role that is called like its clone."""
        self._of_template[template] = _Recipe(
            msgspec.structs.replace(self._endpoint, user=_ROLE, password=_PASSWORD)
        )

    def to_fill(self, template: str, database: str) -> Login:
        """Return how a client connects to a database that it is to fill, as a template's owner."""
        return _Recipe(self._owners.get(template, self._endpoint)).login(database)

    def forget_template(self, template: str) -> None:
        """Forget a template that is gone."""
        self._owners.pop(template, None)
        self._of_template.pop(template, None)

    def owner(self, template: str) -> Endpoint | None:
        """Return as whom to log in to fill a template; None for our own role."""
        return self._owners.get(template)

    def set_password(self, clone: str, password: str) -> None:
        """Remember the password of the clone's own role."""
        self._of_clone[clone] = password

    def forget(self, clone: str) -> None:
        """Forget a clone that is gone."""
        self._of_clone.pop(clone, None)

    def of(self, lease: Lease) -> Login:
        """Return how the holder of that lease connects."""
        recipe = self._of_template.get(lease.template, self._common)
        password = self._of_clone.get(lease.clone)
        if password is None:
            return recipe.login(lease.clone)
        return recipe.login_as(lease.clone, lease.clone, password)
