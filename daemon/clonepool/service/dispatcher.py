"""The one door for events, and the one place where decisions are carried out, logged and counted.

Everything here runs on the event loop without an `await`, from a client's request to its reply. An
event goes to the fleet; what the fleet decides is answered to clients at once or, where it takes
time, put into the job queue. What becomes of a job comes back as another event. What a request
means is the matter of `api`, and how a job is done that of `jobs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, assert_never

import structlog

from clonepool.core import events
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
    Source,
)
from clonepool.protocol.messages import ReleaseResult
from clonepool.service.call import internal_error
from clonepool.service.deadline_timer import DeadlineTimer
from clonepool.service.release_reports import ReleaseReports

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Container, Iterable, Sequence

    from clonepool.core.decisions import Decision, PoolSnapshot, Request
    from clonepool.core.events import Event
    from clonepool.core.fleet import Fleet
    from clonepool.observe.metrics import Metrics
    from clonepool.service.call import Call
    from clonepool.service.job_queue import Work
    from clonepool.service.lease_results import LeaseResults
    from clonepool.service.release_reports import Connections

log = structlog.get_logger()

D = TypeVar("D", Grant, Renewed)


class WorkQueue(Protocol):
    """Takes the decisions that take time; `job_queue.JobQueue` in the daemon."""

    def put(self, work: Work, *, waited_for: bool) -> None:
        """Have the work begin soon, and return at once."""

    def hurry(self) -> None:
        """Have the work that has not begun yet begin soon: somebody waits for it now."""


class Recorder(Protocol):
    """Writes down what happened, so that it can be replayed."""

    def record(self, now: float, event: Event, decisions: Sequence[Decision]) -> None:
        """Write down an event, when it happened in monotonic seconds, and what was decided."""


class Dispatcher:
    """Takes events to the fleet, and decisions to clients and jobs.

    Args:
        fleet: decides.
        queue: takes the decisions that take time.
        results: put leases into the protocol's words.
        connections: are told what happens to their leases.
        metrics: count decisions.
        loop: calls back when a deadline has come.
        clock: returns monotonic seconds. The loop's own time will not do: uvloop's counts
            milliseconds, and a hit takes microseconds.
        changing: templates whose leases change the server as a whole: nothing is granted from the
            moment that such a lease ends until `looked_at`.
        observers: are called when decisions have been carried out. Their time is that of the next
            request: they go over no clones.
        recorder: writes down all events.

    Attributes:
        fleet: to ask; only events change it.
        reports: tell clients what their leases left.
        now: returns monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - by name, at the one place where the daemon is put together
        self,
        *,
        fleet: Fleet,
        queue: WorkQueue,
        results: LeaseResults,
        connections: Connections,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        changing: Container[str] = (),
        observers: Sequence[Callable[[], None]] = (),
        recorder: Recorder | None = None,
    ) -> None:
        self.fleet = fleet
        self.reports = ReleaseReports(connections)
        self.now = clock
        self._queue = queue
        self._results = results
        self._connections = connections
        self._metrics = metrics
        self._loop = loop
        self._changing = changing
        self._observers = observers
        self._recorder = recorder
        self._waiters: dict[int, Call] = {}
        self._unseen: set[str] = set()
        self._unplanned: tuple[events.Acquire, Decision] | None = None
        self._uncounted: list[tuple[Grant, float]] = []
        self._unstarted: list[Work] = []
        self._has_unfinished = False
        self._timer = DeadlineTimer(loop, clock, fleet.next_timer, self._time_is_up)

    # Events -------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Pass an event to the fleet, and carry out its decisions.

        Raises:
            ClonepoolError: what a client asked for cannot be, as `Fleet.handle` has it; nothing
                changed.
        """
        self.carry_out(self._decide(event, self.now()))

    def acquire(self, call: Call, template: str, request: Request) -> None:
        """Answer an acquire: before this returns, or at the latest at the request's deadline.

        Raises:
            UnknownTemplateError, ShuttingDownError: the call was not answered; nothing changed.
        """
        self._finish()
        granted = self.fleet.grant_at_once(template, request, request.asked_at)
        if granted is None:
            decisions = self._decide(events.Acquire(template, request), request.asked_at)
        else:
            decisions = [granted]
            self._unplanned = events.Acquire(template, request), granted
        self._waiters[request.waiter] = call
        self.carry_out(decisions)

    def reset(self, call: Call, token: str, request: Request) -> None:
        """Give a lease a clean clone, and answer as `acquire` does.

        Raises:
            NotYourLeaseError, LeaseBusyError, ShuttingDownError: the call was not answered; nothing
                changed.
        """
        decisions = self._decide(events.Reset(token, request), request.asked_at)
        self._waiters[request.waiter] = call
        self.carry_out(decisions)

    def renew(self, call: Call, token: str, ttl: float | None, request: Request) -> None:
        """Renew a lease for `ttl` seconds from now, and answer as `acquire` does.

        Raises:
            NotYourLeaseError, LeaseBusyError: the call was not answered; nothing changed.
        """
        decisions = self._decide(events.Renew(token, ttl, request), request.asked_at)
        self._waiters[request.waiter] = call
        self.carry_out(decisions)

    def release(self, call: Call, token: str, *, report: bool) -> None:
        """End a lease, before the server is asked anything.

        The call is answered at once, and notified of what the lease left; with `report` it is
        answered when that is known.

        Raises:
            NotYourLeaseError: the call was not answered; nothing changed.
        """
        decisions = self._decide(events.Release(token), self.now())
        recycle = next((each for each in decisions if isinstance(each, Recycle)), None)
        if not report:
            call.reply(ReleaseResult(leaked=None))
            if recycle is not None:
                self.reports.expect(recycle.template, recycle.clone, call.holder)
        elif recycle is not None:
            self.reports.owe(recycle.template, recycle.clone, call)
        else:  # the lease was being reset, and its sessions were ended for that
            call.reply(ReleaseResult(leaked=[]))
        self.carry_out(decisions)

    def keep(self, call: Call, token: str, seconds: float) -> None:
        """End a lease and keep its clone, and answer when that is written down.

        Raises:
            NotYourLeaseError, LeaseBusyError: the call was not answered; nothing changed.
        """
        lease = self.fleet.lease(token)
        decisions = self._decide(events.Keep(token, seconds), self.now())
        self.reports.owe(lease.template, lease.clone, call, keep_seconds=seconds)
        self.carry_out(decisions)

    def reserve(self, template: str, holder: int, tests: int, parallelism: int) -> PoolSnapshot:
        """Announce tests and how many run at a time; return the pool after that.

        Raises:
            UnknownTemplateError, TemplateFailedError, DrainingError, ShuttingDownError: nothing
                changed.
        """
        self.handle(events.Reserve(template, holder, tests, parallelism))
        return self.fleet.pools[template].snapshot()

    def cancel(self, call: Call) -> None:
        """Withdraw the request of a cancelled call. A lease that it resets is over then."""
        if self._waiters.pop(call.number, None) is not None:
            self.handle(events.Cancel(call.number))

    def disconnect(self, holder: int, open_calls: Iterable[Call]) -> None:
        """End all that belonged to a connection, whose calls get no answer any more."""
        waiters = tuple(
            call.number for call in open_calls if self._waiters.pop(call.number, None) is not None
        )
        self.handle(events.HolderGone(holder, waiters))

    def looked_at(self, clone: str) -> None:
        """Grant again what is held since the lease on that clone ended, if anything is.

        The job that recycles or keeps a clone says so when it has seen, and undone, what the lease
        changed in the server as a whole.
        """
        if clone in self._unseen:
            self._unseen.discard(clone)
            self.handle(events.GrantsResumed())

    def _decide(self, event: Event, now: float) -> list[Decision]:
        """Pass an event to the fleet after the decisions of the last one are carried out."""
        self._finish()
        decisions = self.fleet.handle(event, now)
        self._record(now, event, decisions)
        return decisions

    def _record(self, now: float, event: Event, decisions: Sequence[Decision]) -> None:
        if self._recorder is not None:
            self._recorder.record(now, event, decisions)

    # Decisions ----------------------------------------------------------------------------

    def carry_out(self, decisions: Sequence[Decision]) -> None:
        """Do what was decided, in this order.

        Clients are answered before this returns; the rest is done when their answers have been
        sent, and before the next event is handled.
        """
        self._begin(decisions)
        if not self._has_unfinished:
            self._has_unfinished = True
            self._loop.call_soon(self._finish)

    def _begin(self, decisions: Sequence[Decision]) -> None:
        """Answer clients, and note what is to be done afterwards."""
        for decision in decisions:
            match decision:
                case Grant():
                    self._grant(decision)
                case Refuse():
                    self._refuse(decision)
                case Renewed():
                    self._renewed(decision)
                case Notice():
                    self._notify(decision)
                case Recycle():
                    self._recycle(decision)
                case CreateClone() | Keep() | Record() | Park() | Adopt() | Drop():
                    self._unstarted.append(decision)
                case _:
                    assert_never(decision)

    def _finish(self) -> None:
        """Do what no client waits for: uvloop sends an answer when the callback has returned."""
        if not self._has_unfinished:
            return
        self._has_unfinished = False
        try:
            self._plan()
            self._count_grants()
            self._start_work()
            for observer in self._observers:
                observer()
        finally:
            self._timer.set()  # whatever goes wrong here, deadlines are kept

    def _plan(self) -> None:
        """Decide what follows from a hit, and record the hit."""
        if self._unplanned is None:
            return
        (event, granted), self._unplanned = self._unplanned, None
        now = event.request.asked_at
        planned = self.fleet.plan_after_grant(event.template, now)
        self._record(now, event, [granted, *planned])
        self._begin(planned)

    def _count_grants(self) -> None:
        grants, self._uncounted = self._uncounted, []
        for grant, seconds in grants:
            metrics = self._metrics.of[grant.lease.template]
            (metrics.hits if grant.source is Source.READY else metrics.waits).inc()
            metrics.acquire_seconds.observe(seconds)

    def _start_work(self) -> None:
        unstarted, self._unstarted = self._unstarted, []
        somebody_waits = self.fleet.budget.waiting > 0
        for work in unstarted:
            log.debug(work.log_event, clone=work.clone)
            is_upkeep = isinstance(work, CreateClone | Drop)
            self._queue.put(work, waited_for=somebody_waits or not is_upkeep)
        if somebody_waits:
            self._queue.hurry()

    def _grant(self, grant: Grant) -> None:
        call = self._waiters.pop(grant.waiter, None)
        if call is not None:
            _answer(call, self._results.granted, grant)
        self._uncounted.append((grant, self.now() - grant.asked_at))

    def _refuse(self, refusal: Refuse) -> None:
        call = self._waiters.pop(refusal.waiter, None)
        if call is not None:
            call.fail(refusal.error)
        template = self._metrics.label(refusal.template)
        self._metrics.refusals.labels(template, refusal.error.code).inc()

    def _renewed(self, renewed: Renewed) -> None:
        call = self._waiters.pop(renewed.waiter, None)
        if call is not None:
            _answer(call, self._results.renewed, renewed)

    def _notify(self, notice: Notice) -> None:
        lease = notice.lease
        log.info(
            notice.news, clone=lease.clone, label=lease.label, seconds_left=round(notice.seconds, 3)
        )
        news = notice.news.rpartition(".")[2]
        self._metrics.lease_news.labels(self._metrics.label(lease.template), news).inc()
        self._connections.notify(lease.holder, notice.news, self._results.news(notice))

    def _recycle(self, recycle: Recycle) -> None:
        if recycle.template in self._changing:
            self._unseen.add(recycle.clone)
            self.handle(events.GrantsHeld())
        self._unstarted.append(recycle)

    # Time ---------------------------------------------------------------------------------

    def call_later(self, seconds: float, what: Callable[[], None]) -> None:
        """Call back after some seconds; for progress messages, not for deadlines."""
        self._loop.call_later(seconds, what)

    def close(self) -> None:
        """Stop the timer: jobs are no longer carried out."""
        self._timer.close()

    def _time_is_up(self) -> None:
        decisions = self._decide(events.TimeCame(), self.now())
        self._expect_reports(decisions)
        self.carry_out(decisions)

    def _expect_reports(self, decisions: Sequence[Decision]) -> None:
        """Arrange that the holders of expired leases are told what is left on their clones."""
        recycled = {each.clone for each in decisions if isinstance(each, Recycle)}
        for each in decisions:
            if isinstance(each, Notice) and each.news is News.EXPIRED:
                lease = each.lease
                if lease.clone in recycled:
                    self.reports.expect(lease.template, lease.clone, lease.holder)


def _answer(call: Call, result: Callable[[D], object], decision: D) -> None:
    """Answer a waiter; a bug in the daemon costs its call, and not the job that came to answer."""
    try:
        call.reply(result(decision))
    except Exception as error:
        log.exception("request.failed", outcome=type(decision).__name__)
        call.fail(internal_error(error))
