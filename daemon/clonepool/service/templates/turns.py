"""One piece of work on a template at a time: it is made, made again, or given up."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from clonepool.errors import TemplateFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

TURN_SECONDS = 30.0
"""Seconds that work on a template waits for its turn."""


class Turns:
    """The templates that are worked on, and the work that waits for its turn.

    Args:
        until_gone: returns when a template of that name that was given up is gone; at once if
            there is none.
    """

    def __init__(self, until_gone: Callable[[str], Awaitable[None]]) -> None:
        self._until_gone = until_gone
        self._locks: dict[str, anyio.Lock] = {}

    def __contains__(self, template: str) -> bool:
        """Say whether a template is worked on, or about to be."""
        return template in self._locks

    @asynccontextmanager
    async def take(self, template: str) -> AsyncIterator[None]:
        """Work on a template while no other task does.

        Raises:
            TemplateFailedError: the turn did not come in time.
        """
        lock = self._locks.setdefault(template, anyio.Lock())
        held = False
        try:
            try:
                with anyio.fail_after(TURN_SECONDS):
                    await lock.acquire()
                    held = True
                    await self._until_gone(template)
            except TimeoutError:
                raise TemplateFailedError(
                    f"timed out: other work on template {template} is still running",
                    remedy="try again",
                ) from None
            yield
        finally:
            if held:
                lock.release()
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(template, None)
