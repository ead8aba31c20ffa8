"""Applies the core's decisions: answers clients, starts work, keeps the one timer.

Everything here runs on the event loop without an `await`, from a client's request to its reply.
What happened to the work comes back through `fleet` and `carry_out`.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Protocol

import structlog

from clonepool.core import refusals
from clonepool.core.decisions import (
    Adopt,
    CreateClone,
    Drop,
    Grant,
    Keep,
    News,
    Notice,
    Park,
    Record,
    Recycle,
    Refuse,
    Renewed,
    Request,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping

    from clonepool.core.decisions import Decision, PoolSnapshot
    from clonepool.core.fleet import Fleet
    from clonepool.errors import ClonepoolError

    Answer = Callable[[Grant | Renewed | ClonepoolError], None]
    Sessions = list[dict[str, object]] | None
    Report = Callable[[Sessions], None]
    from clonepool.observe.metrics import Metrics

log = structlog.get_logger()

RENEW_SECONDS = 10.0
"""How long writing down a renewal may take."""


class Hands(Protocol):
    """Whoever does the work that takes time; each call starts it and returns at once."""

    def create(self, decision: CreateClone) -> None:
        """Make a clone."""

    def recycle(self, decision: Recycle, report: Report | None) -> None:
        """Make a returned clone good again, telling `report` what the lease left."""

    def keep(self, decision: Keep, report: Callable[[Sessions, bool], None]) -> None:
        """Set a clone aside, telling `report` the sessions left and whether it was written down."""

    def record(self, decision: Record) -> None:
        """Write a lease down."""

    def park(self, decision: Park) -> None:
        """Leave a clone to the next daemon."""

    def adopt(self, decision: Adopt) -> None:
        """Take over a clone of an earlier daemon."""

    def drop(self, decision: Drop) -> None:
        """Remove a clone."""


class Dispatcher:
    """Between clients and the fleet.

    Attributes:
        fleet: decides.
        now: monotonic seconds.
        reports: how many releases still have to be answered, when the server has had its word;
            those that asked for no report have been answered.
        on_change: called whenever something was decided; it has no time on the way of a hit.

    Args:
        fleet: decides.
        hands: do what takes time.
        metrics: count what was decided.
        loop: calls back when a deadline has come.
        clock: monotonic seconds. Not the loop's own time: uvloop's has milliseconds only, and a
            hit takes microseconds.
        default_timeout: seconds an acquire waits that names no timeout.
        notify: tells a holder what happens to its lease.
        leaks_to: returns how to tell a connection what a lease of that template, on that clone,
            left; None when the connection is gone.
    """

    def __init__(
        self,
        fleet: Fleet,
        hands: Hands,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        default_timeout: float,
        notify: Callable[[Notice], None],
        leaks_to: Callable[[int, str, str], Report | None],
    ) -> None:
        self.fleet = fleet
        self._hands = hands
        self._metrics = metrics
        self._loop = loop
        self.now = clock
        self._default_timeout = default_timeout
        self._notify = notify
        self._leaks_to = leaks_to
        self.on_change: Callable[[], None] = lambda: None
        self._answers: dict[int, Answer] = {}
        self._last_waiter = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self.reports = 0
        self._closed = False

    # Clients ------------------------------------------------------------------------------

    def acquire(
        self,
        template: str,
        holder: int,
        answer: Answer,
        *,
        timeout: float | None = None,
        ttl: float | None = None,
        label: str = "",
        fresh: bool = False,
        stale_ok: bool = False,
    ) -> int:
        """Have `answer` called once: before this returns, or at the latest when time is up.

        Returns:
            A number to name the request to `disconnect`.

        Raises:
            UnknownTemplateError, ShuttingDownError: `answer` will not be called.
        """
        request = self._request(
            holder, timeout, ttl=ttl, label=label, fresh=fresh, stale_ok=stale_ok
        )
        decisions = self.fleet.acquire(template, request, request.asked_at)
        return self._begin(request, answer, decisions)

    def reset(
        self, token: str, holder: int, answer: Answer, *, timeout: float | None = None
    ) -> int:
        """Give a lease a clean clone; `answer` and the result are as those of `acquire`.

        Raises:
            NotYourLeaseError, ShuttingDownError: `answer` will not be called, nothing changed.
        """
        request = self._request(holder, timeout)
        decisions = self.fleet.reset(token, request, request.asked_at)
        return self._begin(request, answer, decisions)

    def renew(self, token: str, holder: int, answer: Answer, *, ttl: float | None = None) -> int:
        """Let a lease last longer; `answer` and the result are as those of `acquire`.

        Raises:
            NotYourLeaseError: `answer` will not be called.
        """
        request = self._request(holder, RENEW_SECONDS)
        return self._begin(request, answer, self.fleet.renew(token, ttl, request))

    def release(self, token: str, by: int, report: Report | None = None) -> None:
        """End a lease, before the server is asked anything.

        Args:
            token: of the lease.
            by: the connection that releases it. Without a `report` it is told afterwards what the
                lease left, if that was anything.
            report: called with what the lease left, None if that is unknown.

        Raises:
            NotYourLeaseError: nothing changed, `report` will not be called.
        """
        decisions = self.fleet.release(token)
        recycle = next((each for each in decisions if isinstance(each, Recycle)), None)
        if recycle is None:
            self.carry_out(decisions)
            if report is not None:
                report([])  # it was being reset: its sessions have been ended for that
            return
        told = self._leaks_to(by, recycle.template, recycle.clone)
        self.carry_out(decisions, {recycle.clone: told if report is None else self._owed(report)})

    def keep(self, token: str, seconds: float, report: Callable[[Sessions, bool], None]) -> None:
        """End a lease and keep its clone; `report` is told too whether that was written down.

        Raises:
            NotYourLeaseError: nothing changed, `report` will not be called.
        """
        keep, *others = self.fleet.keep(token, seconds, self.now())
        self.reports += 1  # as in `_owed`

        def told(sessions: Sessions, written_down: bool) -> None:
            self.reports -= 1
            report(sessions, written_down)

        if isinstance(keep, Keep):
            self._hands.keep(keep, told)
        self.carry_out(others)

    def reserve(self, template: str, holder: int, tests: int, parallelism: int) -> PoolSnapshot:
        """Have clones made ready for tests to come, so many at a time; return the pool after that.

        Raises:
            UnknownTemplateError, TemplateFailedError, DrainingError, ShuttingDownError: nothing
                changed.
        """
        self.carry_out(self.fleet.reserve(template, holder, tests, parallelism, self.now()))
        return self.fleet.pools[template].snapshot()

    def drain(self, template: str | None, *, on: bool) -> None:
        """Grant no new leases, or do so again.

        Raises:
            UnknownTemplateError: nothing changed.
        """
        self.carry_out(self.fleet.drain(template, self.now(), on=on))

    def is_waiting(self, waiter: int) -> bool:
        """Say whether that acquire is still to be answered."""
        return waiter in self._answers

    def cancel(self, waiter: int) -> None:
        """Take back what waits, and answer it so. A lease that is being reset is over then."""
        answer = self._answers.pop(waiter, None)
        if answer is not None:
            answer(refusals.cancelled())
            self.carry_out(self.fleet.cancel(waiter, self.now()))

    def disconnect(self, holder: int, waiters: Iterable[int]) -> None:
        """End all that belonged to a connection."""
        gone = list(waiters)
        for waiter in gone:
            self._answers.pop(waiter, None)
        self.carry_out(self.fleet.holder_gone(holder, gone, self.now()))

    # Decisions ----------------------------------------------------------------------------

    def carry_out(
        self, decisions: list[Decision], reports: Mapping[str, Report | None] | None = None
    ) -> None:
        """Do what was decided: the one place that logs and counts it.

        Args:
            decisions: in this order.
            reports: by the names of clones that are recycled: told what the leases on them left.
        """
        for decision in [*decisions, *self.fleet.make_way(self.now())]:
            match decision:
                case Grant():
                    self._grant(decision)
                case Refuse():
                    self._refuse(decision)
                case Renewed():
                    self._answer(decision.waiter, decision)
                case Notice():
                    self._tell(decision)
                case _:
                    self._start(decision, reports or {})
        self._set_timer()
        self.on_change()

    def _start(self, decision: Decision, reports: Mapping[str, Report | None]) -> None:
        """Hand over what takes time."""
        match decision:
            case Record():
                self._hands.record(decision)
            case CreateClone():
                log.debug("clone.create_decided", clone=decision.clone)
                self._hands.create(decision)
            case Recycle():
                log.debug("clone.recycle_decided", clone=decision.clone)
                self._hands.recycle(decision, reports.get(decision.clone))
            case Park():
                self._hands.park(decision)
            case Adopt():
                self._hands.adopt(decision)
            case Drop():
                log.debug("clone.drop_decided", clone=decision.clone)
                self._hands.drop(decision)

    def _tell(self, notice: Notice) -> None:
        lease = notice.lease
        log.info(
            notice.news, clone=lease.clone, label=lease.label, seconds_left=round(notice.seconds, 3)
        )
        news = notice.news.rpartition(".")[2]
        self._metrics.lease_news.labels(self._metrics.label(lease.template), news).inc()
        self._notify(notice)

    def _owed(self, report: Report) -> Report:
        """Count a release that is to be answered with a report, until it is."""
        self.reports += 1

        def told(sessions: Sessions) -> None:
            self.reports -= 1
            report(sessions)

        return told

    def _request(
        self,
        holder: int,
        timeout: float | None,
        *,
        ttl: float | None = None,
        label: str = "",
        fresh: bool = False,
        stale_ok: bool = False,
    ) -> Request:
        now = self.now()
        self._last_waiter += 1
        return Request(
            waiter=self._last_waiter,
            token=secrets.token_hex(16),  # never like an option on a command line
            holder=holder,
            label=label,
            asked_at=now,
            deadline=now + (self._default_timeout if timeout is None else timeout),
            ttl=ttl,
            fresh=fresh,
            stale_ok=stale_ok,
        )

    def _begin(self, request: Request, answer: Answer, decisions: list[Decision]) -> int:
        self._answers[request.waiter] = answer
        self.carry_out(decisions)
        return request.waiter

    def _answer(self, waiter: int, outcome: Grant | Renewed | ClonepoolError) -> None:
        answer = self._answers.pop(waiter, None)
        if answer is not None:
            answer(outcome)

    def _grant(self, grant: Grant) -> None:
        metrics = self._metrics.of[grant.lease.template]
        (metrics.hits if grant.source == "ready" else metrics.waits).inc()
        self._answer(grant.waiter, grant)
        metrics.acquire_seconds.observe(self.now() - grant.asked_at)

    def _refuse(self, refusal: Refuse) -> None:
        template = self._metrics.label(refusal.template)
        self._metrics.refusals.labels(template, refusal.error.code).inc()
        self._answer(refusal.waiter, refusal.error)

    # Time ---------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        due = None if self._closed else self.fleet.next_timer()
        if due == self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = None
        if due is not None:
            delay = max(0.0, due - self.now())
            self._timer = self._loop.call_later(delay, self._time_is_up)

    def close(self) -> None:
        """Let time bring nothing more: there are no hands any longer."""
        self._closed = True
        self._set_timer()

    def call_later(self, seconds: float, what: Callable[[], None]) -> None:
        """Call back after so many seconds; for what is told to people, not for deadlines."""
        self._loop.call_later(seconds, what)

    def _time_is_up(self) -> None:
        self._timer = self._due = None
        decisions = self.fleet.expire(self.now())
        over = [
            each.lease
            for each in decisions
            if isinstance(each, Notice) and each.news is News.EXPIRED
        ]
        self.carry_out(
            decisions,
            {each.clone: self._leaks_to(each.holder, each.template, each.clone) for each in over},
        )
