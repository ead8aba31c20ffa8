"""SIGTERM and SIGINT: what they mean depends on the state of the daemon and on their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import structlog

if TYPE_CHECKING:
    from collections.abc import AsyncIterable
    from signal import Signals

log = structlog.get_logger()


class StopSignal:
    """Cancels a start that is under way; later asks for an orderly stop, then for a quick one.

    Attributes:
        starting: the scope of the start.
        received: set by the first signal.
        hurry: set by the second: leases are ended at once.
    """

    def __init__(self) -> None:
        self.starting = anyio.CancelScope()
        self.received = anyio.Event()
        self.hurry = anyio.Event()
        self._has_started = False

    def mark_started(self) -> None:
        """From now on a signal asks for an orderly stop: the start is over."""
        self._has_started = True

    async def listen(self, signals: AsyncIterable[Signals]) -> None:
        """Wait for signals until cancelled."""
        async for received in signals:
            if self.received.is_set():
                log.info("daemon.hurrying", signal=received.name)
                self.hurry.set()
                continue
            log.info("daemon.stopping", signal=received.name)
            self.received.set()
            if not self._has_started:
                self.starting.cancel()
