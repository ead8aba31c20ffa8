"""The result of `define`: a template that exists, or a database that this client has to fill."""

from __future__ import annotations

import contextlib

from clonepool.client.holding import Holding
from clonepool.errors import ConnectionLostError, NotYourDefinitionError

TYPE_CHECKING = False  # importing typing takes as long as all of the client
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from clonepool.client.connection import Connection
    from clonepool.client.sync import Client


class Definition(Holding):
    """The result of `Client.define`.

    A definition that is garbage-collected before it was finalized or abandoned is abandoned, with a
    ResourceWarning that names it.

    Attributes:
        template: the name by which the template is leased.
        filled: whether the template exists; if not, this client must fill `url`, then `finalize`.
        url: libpq URL of the database to fill. Like the following, empty when `filled` is true.
        database: the name of that database.
        env: `DATABASE_URL` and the `PG*` variables for it.
        expires_in_seconds: seconds after which another client may fill the template instead.
    """

    filled: bool

    @classmethod
    def told(cls, client: Client, connection: Connection, told: dict[str, Any]) -> Definition:
        """Return a definition made from the daemon's reply.

        Args:
            client: the client that will finalize it.
            connection: the connection over which the reply came.
            told: the reply.
        """
        definition = cls(client, connection)
        definition._take(told)
        definition._held = not definition.filled
        return definition

    def finalize(self) -> None:
        """Turn the filled database into the template; sessions that are open on it are ended.

        If interrupted before the reply, the template may exist; if it does not, it is abandoned.

        Raises:
            NotYourDefinitionError: its time was over, or it was finalized or abandoned before.
            TemplateFailedError: PostgreSQL refused; another client may fill the template.
        """
        self._end("finalize", {"definition": self._token})
        self.filled = True

    def abandon(self) -> None:
        """Drop the database, so that another client may fill the template.

        Raises:
            NotYourDefinitionError: as `finalize`.
        """
        self._end(*self._way_back())

    def __enter__(self) -> Definition:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.filled:
            return
        if error is None:
            self.finalize()
            return
        with contextlib.suppress(NotYourDefinitionError, ConnectionLostError):
            self.abandon()

    def _way_back(self) -> tuple[str, dict[str, Any]]:
        return "finalize", {"definition": self._token, "abandon": True}

    def _complaint(self) -> str:
        return (
            f"the template {self.template} was to be filled, and neither finalized nor abandoned;"
            " use what define() returns in a `with` block"
        )

    def _take(self, told: dict[str, Any]) -> None:
        self._token: str = told["definition"]
        self.template: str = told["template"]
        self.filled = told["filled"]
        self.url: str = told["url"]
        self.database: str = told["database"]
        self.env: dict[str, str] = told["env"]
        self.expires_in_seconds: float = told["expires_in_seconds"]
