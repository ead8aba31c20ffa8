"""The roles that own templates and their clones, and as whom leases log in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.postgres.roles import derived_password

if TYPE_CHECKING:
    from clonepool.config import CloneOptions
    from clonepool.postgres.roles import Roles
    from clonepool.service.logins import Logins


class Owners:
    """Makes them before they are needed.

    Args:
        roles: of the server.
        logins: are told as whom the leases of a template log in.
        secret: what passwords are derived from.
    """

    def __init__(self, roles: Roles, logins: Logins, secret: bytes) -> None:
        self._roles = roles
        self._logins = logins
        self._secret = secret

    async def prepare(self, template: str, options: CloneOptions) -> None:
        """Make the template's role, and remember as whom its leases and its command log in.

        Raises:
            ConfigError: the role cannot serve.
            StatementError, ServerUnavailableError: it could not be made.
        """
        if not options.role:
            return
        derived = derived_password(self._secret, options.role)
        password = await self._roles.ensure(options.role, derived, options.password)
        self._logins.use_role(template, options.role, password)
        if options.lease_roles:
            await self._roles.ensure_lease_group()
            self._logins.use_lease_roles(template)
