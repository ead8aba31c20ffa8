"""The common part of leases and definitions: each is given back, at the latest by the collector."""

from __future__ import annotations

import sys
import warnings

from clonepool.errors import ClientLimitError, ClonepoolError, LeaseBusyError

TYPE_CHECKING = False  # importing typing takes as long as all of the client
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from clonepool.client.connection import Connection
    from clonepool.client.sync import Client


class Holding:
    """Base of leases and definitions, which are given back when they are garbage-collected.

    Args:
        client: the client that uses it.
        connection: the connection over which it was granted, and with which it ends.
    """

    _held = False  # until it is certain that the caller gets it

    def __init__(self, client: Client, connection: Connection) -> None:
        self._client = client
        self._connection = connection

    def _way_back(self) -> tuple[str, dict[str, Any]]:
        """Return the method and the parameters of the request that gives it back."""
        raise NotImplementedError

    def _complaint(self) -> str:
        """Return the warning for one that was forgotten, with the remedy."""
        raise NotImplementedError

    def _end(self, method: str, params: dict[str, Any]) -> Any:
        """Send the request that ends it; if interrupted before the reply, give it back.

        Giving it back twice is harmless: no token is used twice.
        """
        try:
            ended = self._client.call(method, **params)
        except (LeaseBusyError, ClientLimitError):
            raise  # nothing has changed
        except ClonepoolError:
            self._held = False
            raise
        except BaseException:
            self._client.post(method, **params)
            self._go_back()
            raise
        self._held = False
        return ended

    def _go_back(self) -> None:
        method, params = self._way_back()
        self._client.post(method, **params)
        self._held = False

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Give it back without waiting: finalizers may run at any moment, in any thread."""
        forgotten = self._held
        try:
            forgotten = forgotten and not (is_finalizing() or self._connection.has_ended)
            if forgotten:
                self._go_back()
        except BaseException:  # an interrupt: Python continues, and there is no second finalizer
            if forgotten:
                self._go_back()
            raise
        if forgotten:
            warnings.warn(self._complaint(), ResourceWarning, stacklevel=2, source=self)
