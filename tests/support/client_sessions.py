"""Sessions with the settings that a client has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.postgres.gateway import Gateway

if TYPE_CHECKING:
    from clonepool.postgres.endpoint import Endpoint


class ClientGateway(Gateway):
    """Opens sessions with the settings of server, database and role, and none of the daemon's."""

    def __init__(self, endpoint: Endpoint, application_name: str = "test") -> None:
        super().__init__(endpoint, application_name)
        self._settings.clear()
