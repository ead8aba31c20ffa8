"""Answers over HTTP are made one at a time, and take a small part of the event loop's time.

Whoever asks without end waits longer for each answer; leases do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_SHARE = 0.25
"""Of the loop's time."""
_LONGEST_REST_SECONDS = 1.0
_OVERHEAD_SECONDS = 0.0005
"""What reading a request and sending its answer takes beside making it."""


class Throttle:
    """An application whose answers are small, made in one piece, and sent when they are made.

    Args:
        app: makes them.
        now: monotonic seconds.
    """

    def __init__(self, app: ASGIApp, now: Callable[[], float]) -> None:
        self._app = app
        self._now = now
        self._turn = anyio.Lock()
        self._free_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer when it is its turn, unless the client has gone."""
        made: list[Message] = []

        async def keep(message: Message) -> None:
            made.append(message)

        visit = scope.get("state", {}).get("visit")
        async with self._turn:
            if visit is not None and visit.gone:
                return
            await anyio.sleep(max(0.0, self._free_at - self._now()))
            began = self._now()
            await self._app(scope, receive, keep)
            now = self._now()
            rest = (now - began + _OVERHEAD_SECONDS) * (1 / LARGEST_SHARE - 1)
            self._free_at = now + min(rest, _LONGEST_REST_SECONDS)
        for message in made:
            await send(message)
