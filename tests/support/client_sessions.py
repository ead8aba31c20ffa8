"""Sessions as a client has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.postgres.gateway import Gateway

if TYPE_CHECKING:
    from clonepool.postgres.endpoint import Endpoint


class ClientGateway(Gateway):
    """Opens sessions of which nothing is set that server, database and role do not set."""

    def __init__(self, endpoint: Endpoint, application_name: str = "test") -> None:
        super().__init__(endpoint, application_name)
        self._settings.clear()
