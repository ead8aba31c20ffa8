"""Makes HTTP responses one at a time, in a small part of the event loop's time.

A client that asks again and again waits longer for each response; leases do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_SHARE = 0.25
"""The share of the loop's time that responses may take."""
_LONGEST_REST_SECONDS = 1.0
"""Seconds that the next response waits at most."""
_OVERHEAD_SECONDS = 0.0005
"""Seconds for reading a request and sending its response, besides making it."""


class Throttle:
    """An application whose responses are small, made in one piece, and sent when they are made.

    Args:
        app: makes the responses.
        now: monotonic seconds.
    """

    def __init__(self, app: ASGIApp, now: Callable[[], float]) -> None:
        self._app = app
        self._now = now
        self._turn = anyio.Lock()
        self._free_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond when it is the turn of the request, unless the client has gone."""
        made: list[Message] = []

        async def keep(message: Message) -> None:
            made.append(message)

        connection = scope.get("state", {}).get("connection")
        async with self._turn:
            if connection is not None and connection.is_gone:
                return
            await anyio.sleep(max(0.0, self._free_at - self._now()))
            began = self._now()
            await self._app(scope, receive, keep)
            now = self._now()
            rest = (now - began + _OVERHEAD_SECONDS) * (1 / LARGEST_SHARE - 1)
            self._free_at = now + min(rest, _LONGEST_REST_SECONDS)
        for message in made:
            await send(message)
