"""A template that clients define: there, or to be filled by this one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from clonepool.errors import ConnectionLostError, NotYourDefinitionError

if TYPE_CHECKING:
    from types import TracebackType

    from clonepool.client.sync import Client


class Definition:
    """What `Client.define` returns.

    Attributes:
        template: the name to lease it by.
        filled: whether it is there; if not, this client is to fill `url`, and then to `finalize`.
        url: libpq URL of the database to fill; it and what follows is empty when it is `filled`.
        database: its name.
        env: `DATABASE_URL` and the `PG*` variables.
        expires_in_seconds: after so long another client may fill it instead.
    """

    def __init__(self, client: Client, told: dict[str, Any]) -> None:
        self._client = client
        self._token: str = told["definition"]
        self.template: str = told["template"]
        self.filled: bool = told["filled"]
        self.url: str = told["url"]
        self.database: str = told["database"]
        self.env: dict[str, str] = told["env"]
        self.expires_in_seconds: float = told["expires_in_seconds"]

    def finalize(self) -> None:
        """Make the template of what was filled; sessions on the database are ended.

        Raises:
            NotYourDefinitionError: it was too late, or finalized or given up before.
            TemplateFailedError: PostgreSQL refused; another client may fill it.
        """
        self._client.call("finalize", definition=self._token)
        self.filled = True

    def abandon(self) -> None:
        """Give up: the database is dropped, and another client may fill it.

        Raises:
            NotYourDefinitionError: as of `finalize`.
        """
        self._client.call("finalize", definition=self._token, abandon=True)

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
