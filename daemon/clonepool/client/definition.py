"""A template that clients define: there, or to be filled by this one."""

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
    """What `Client.define` returns.

    One that is neither finalized nor abandoned, and that nobody refers to any more, is abandoned,
    with a ResourceWarning that names it.

    Attributes:
        template: the name to lease it by.
        filled: whether it is there; if not, this client is to fill `url`, and then to `finalize`.
        url: libpq URL of the database to fill; it and what follows is empty when it is `filled`.
        database: its name.
        env: `DATABASE_URL` and the `PG*` variables.
        expires_in_seconds: after so long another client may fill it instead.
    """

    filled: bool

    @classmethod
    def told(cls, client: Client, connection: Connection, told: dict[str, Any]) -> Definition:
        """Make one of the daemon's answer.

        Args:
            client: by which it is finalized.
            connection: over which it was told.
            told: the answer.
        """
        definition = cls(client, connection)
        definition._take(told)
        definition._held = not definition.filled
        return definition

    def finalize(self) -> None:
        """Make the template of what was filled; sessions on the database are ended.

        Interrupted before it is answered, it may have been made or not; if not, it is given up.

        Raises:
            NotYourDefinitionError: it was too late, or finalized or given up before.
            TemplateFailedError: PostgreSQL refused; another client may fill it.
        """
        self._end("finalize", {"definition": self._token})
        self.filled = True

    def abandon(self) -> None:
        """Give up: the database is dropped, and another client may fill it.

        Raises:
            NotYourDefinitionError: as of `finalize`.
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
