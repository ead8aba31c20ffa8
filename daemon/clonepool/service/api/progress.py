"""Notifications once a second to those who wait and asked for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.core import refusals
from clonepool.errors import ClonepoolError
from clonepool.protocol.messages import DrainProgress, DrainResult, Progress

if TYPE_CHECKING:
    from clonepool.core.pool import Pool
    from clonepool.protocol.server import RequestId
    from clonepool.service.api.builds import Builds
    from clonepool.service.api.methods import Connection
    from clonepool.service.dispatcher import Dispatcher

log = structlog.get_logger()

EVERY_SECONDS = 1.0
_LOOK_SECONDS = 0.05


class AcquireProgress:
    """Tells one client how its acquire fares until it is answered."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        builds: Builds,
        peer: Connection,
        request: RequestId,
        pool: Pool,
        waiter: int,
    ) -> None:
        self._dispatcher = dispatcher
        self._builds = builds
        self._peer = peer
        self._request = request
        self._pool = pool
        self._waiter = waiter
        self._began = dispatcher.now()
        self._tell()

    def _tell(self) -> None:
        if not self._dispatcher.is_waiting(self._waiter):
            return
        pool = self._pool.snapshot()
        told = Progress(
            self._request,
            round(self._dispatcher.now() - self._began, 3),
            self._pool.line.position(self._waiter) or 0,
            pool.phase,
            pool.limited_by,
            *self._build(),
        )
        self._peer.notify("progress", told)
        self._dispatcher.call_later(EVERY_SECONDS, self._tell)

    def _build(self) -> tuple[str, int, int, float]:
        step = self._builds.step_of(self._pool.template)
        if step is None:
            return "", 0, 0, 0.0
        return step.what, step.number, step.steps, round(step.seconds, 3)


class DrainWatch:
    """Answers a drain when no lease is left, or when its time is up."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        peer: Connection,
        request: RequestId,
        template: str | None,
        timeout: float,
        *,
        progress: bool,
    ) -> None:
        self._dispatcher = dispatcher
        self._peer = peer
        self._request = request
        self._template = template
        self._deadline = dispatcher.now() + timeout
        self._progress = progress
        self._told = -1
        self._answered = False
        self._look()
        if not self._answered:
            peer.pending[request] = self._cancel

    def _cancel(self) -> None:
        """Wait no more; that no leases are granted stays."""
        self._answered = True
        self._peer.reply_error(self._request, refusals.cancelled())

    def _look(self) -> None:
        if self._answered:
            return
        try:
            self._answer_or_wait()
        except Exception as error:
            log.exception("request.failed", method="drain")
            self._answered = True
            self._peer.reply_error(self._request, ClonepoolError(f"internal error: {error!r}"))

    def _answer_or_wait(self) -> None:
        leases = self._dispatcher.fleet.leased(self._template)
        left = self._deadline - self._dispatcher.now()
        if leases == 0 or left <= 0:
            self._answered = True
            self._peer.reply(self._request, DrainResult(leases))
            return
        if self._progress and leases != self._told:
            self._peer.notify("progress", DrainProgress(self._request, leases))
            self._told = leases
        if not self._peer.gone:
            self._dispatcher.call_later(min(left, _LOOK_SECONDS), self._look)
