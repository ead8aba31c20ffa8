"""Applies the core's decisions: answers clients, starts work, keeps the one timer.

Everything here runs on the event loop without an `await`, from a client's request to its reply.
What happened to the work comes back through `fleet` and `carry_out`.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Protocol

import structlog

from clonepool.core.decisions import CreateClone, Drop, Grant, Recycle, Refuse, Request

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from clonepool.core.decisions import Decision
    from clonepool.core.fleet import Fleet
    from clonepool.errors import ClonepoolError
    from clonepool.observe.metrics import Metrics

log = structlog.get_logger()


class Hands(Protocol):
    """Whoever does the work that takes time; each call starts it and returns at once."""

    def create(self, decision: CreateClone) -> None:
        """Make a clone."""

    def recycle(self, decision: Recycle, report: Callable[..., None] | None) -> None:
        """Make a returned clone good again, telling `report` which sessions were left on it."""

    def drop(self, decision: Drop) -> None:
        """Remove a clone."""


class Broker:
    """Between clients and the fleet.

    Args:
        fleet: decides.
        hands: do what takes time.
        metrics: count what was decided.
        loop: calls back when a deadline has come.
        clock: monotonic seconds. Not the loop's own time: uvloop's has milliseconds only, and a
            hit takes microseconds.
        default_timeout: seconds an acquire waits that names no timeout.
    """

    def __init__(
        self,
        fleet: Fleet,
        hands: Hands,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        default_timeout: float,
    ) -> None:
        self.fleet = fleet
        self._hands = hands
        self._metrics = metrics
        self._loop = loop
        self.now = clock
        self._default_timeout = default_timeout
        self._answers: dict[int, Callable[[Grant | ClonepoolError], None]] = {}
        self._last_waiter = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None

    # Clients ------------------------------------------------------------------------------

    def acquire(
        self,
        template: str,
        holder: int,
        answer: Callable[[Grant | ClonepoolError], None],
        *,
        timeout: float | None = None,
        label: str = "",
    ) -> int:
        """Have `answer` called once: before this returns, or at the latest when time is up.

        Returns:
            A number to name the request to `disconnect`.

        Raises:
            UnknownTemplateError, ShuttingDownError: `answer` will not be called.
        """
        now = self.now()
        self._last_waiter += 1
        request = Request(
            waiter=self._last_waiter,
            token=secrets.token_urlsafe(16),
            holder=holder,
            label=label,
            asked_at=now,
            deadline=now + (self._default_timeout if timeout is None else timeout),
        )
        decisions = self.fleet.acquire(template, request, now)
        self._answers[request.waiter] = answer
        self.carry_out(decisions)
        return request.waiter

    def release(
        self, token: str, holder: int, report: Callable[[list[dict[str, object]] | None], None]
    ) -> None:
        """End a lease; `report` is called with the sessions left on the clone, None if unknown.

        Raises:
            NotYourLeaseError: nothing changed, `report` will not be called.
        """
        for decision in self.fleet.release(token, holder):
            if isinstance(decision, Recycle):
                self._hands.recycle(decision, report)

    def is_waiting(self, waiter: int) -> bool:
        """Say whether that acquire is still to be answered."""
        return waiter in self._answers

    def disconnect(self, holder: int, waiters: Iterable[int]) -> None:
        """End all that belonged to a connection."""
        gone = list(waiters)
        for waiter in gone:
            self._answers.pop(waiter, None)
        self.carry_out(self.fleet.holder_gone(holder, gone))

    # Decisions ----------------------------------------------------------------------------

    def carry_out(self, decisions: list[Decision]) -> None:
        """Do what was decided: the one place that logs and counts it."""
        for decision in decisions:
            match decision:
                case Grant():
                    self._grant(decision)
                case Refuse():
                    self._refuse(decision)
                case CreateClone():
                    log.debug("clone.create_decided", clone=decision.clone)
                    self._hands.create(decision)
                case Recycle():
                    log.debug("clone.recycle_decided", clone=decision.clone)
                    self._hands.recycle(decision, None)
                case Drop():
                    log.debug("clone.drop_decided", clone=decision.clone)
                    self._hands.drop(decision)
        self._set_timer()

    def _grant(self, grant: Grant) -> None:
        answer = self._answers.pop(grant.waiter)
        metrics = self._metrics.of[grant.lease.template]
        (metrics.hits if grant.source == "ready" else metrics.waits).inc()
        answer(grant)
        metrics.acquire_seconds.observe(self.now() - grant.lease.granted_at + grant.waited_seconds)

    def _refuse(self, refusal: Refuse) -> None:
        self._metrics.refusals.labels(refusal.template, refusal.error.code).inc()
        answer = self._answers.pop(refusal.waiter, None)
        if answer is not None:
            answer(refusal.error)

    # Time ---------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        due = self.fleet.next_timer()
        if due == self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = None
        if due is not None:
            delay = max(0.0, due - self.now())
            self._timer = self._loop.call_later(delay, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = self._due = None
        self.carry_out(self.fleet.expire(self.now()))
