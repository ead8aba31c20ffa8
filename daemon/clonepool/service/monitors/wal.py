"""Reads the server's log while clones are leased: before it is thrown away, and piece by piece.

PostgreSQL keeps only so much of its log. A lease that goes on for an hour and writes gigabytes is
followed as it goes, so that neither the log is lost nor all of it is to be read at its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from clonepool.errors import ClonepoolError

if TYPE_CHECKING:
    from clonepool.service.context import Context

FOLLOW_FAILED = "log.follow_failed"
FOLLOW_SECONDS = 0.5
"""How often."""


class WalMonitor:
    """Has the log read as it is written."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stirred = anyio.Event()

    def stir(self) -> None:
        """Begin to read, if there is anything to follow: something changed."""
        if not self._stirred.is_set() and self._is_needed():
            self._stirred.set()

    async def run(self) -> None:
        """Read for ever, as long as clones are leased."""
        while True:
            await self._stirred.wait()
            while self._is_needed():
                await anyio.sleep(FOLLOW_SECONDS)
                await self._run_once()
            self._stirred = anyio.Event()

    def _is_needed(self) -> bool:
        return self._context.capabilities.rewinds and not self._context.fleet.is_idle

    async def _run_once(self) -> None:
        try:
            await self._context.rewinder.catch_up()
        except ClonepoolError:
            return  # the keeper tells what is wrong with the server
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            self._context.failures.begin(FOLLOW_FAILED, "", error)
            return
        self._context.failures.end(FOLLOW_FAILED, "")
