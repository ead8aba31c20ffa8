"""Connections open and close between any two steps of every method of the protocol.

The methods, the dispatcher and the core are real; jobs end when the test says so, in any order. At
all times, each lease has a connected holder or a time at which it ends, each request is answered
once, and every clone comes back.
"""

from __future__ import annotations

import logging
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, assert_never, cast

import msgspec
import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from clonepool.core import events
from clonepool.core.decisions import Adopt, CreateClone, Drop, Keep, Park, Record, Recycle
from clonepool.errors import ClonepoolError, ServerUnavailableError
from clonepool.protocol.server import Message, ServerConnection
from clonepool.service.call import Call, notify
from support.api import make_api
from support.connections import FakeConnection
from support.pools import make_fleet

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from clonepool.service.job_queue import Work

PICK = st.integers(min_value=0, max_value=1_000)
TEMPLATES = ("blog", "shop")
MOST_CONNECTIONS = 4
TIMEOUT = st.sampled_from([0, 1, 5])
TTL = st.sampled_from([None, None, 1, 3])


@pytest.fixture(autouse=True, scope="module")
def _only_warnings() -> Iterator[None]:
    """Log what should not happen alone: rendering every decision takes longer than deciding."""
    quiet = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=quiet)
    yield
    structlog.reset_defaults()


class FakeQueue:
    """Note what is to be done; the machine does it, or fails at it, in any order."""

    def __init__(self) -> None:
        self.put_off: list[Work] = []

    def put(self, work: Work, *, waited_for: bool) -> None:
        assert waited_for or isinstance(work, CreateClone | Drop)
        self.put_off.append(work)

    def hurry(self) -> None:
        """Whatever waits may be done next anyway."""


class Loop:
    """Keeps the one timer, which the machine lets go off."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.timers: dict[int, tuple[float, Callable[[], None]]] = {}
        self._numbers = count()
        self._clock = clock

    def call_later(self, delay: float, what: Callable[..., None], *args: object) -> Any:
        number = next(self._numbers)
        self.timers[number] = (self._clock() + delay, partial(what, *args))
        return SimpleNamespace(cancel=lambda: self.timers.pop(number, None))

    def call_soon(self, what: Callable[[], None]) -> None:
        what()

    def next(self) -> tuple[float, int] | None:
        """Return when the next timer goes off, and its number."""
        return min(((at, number) for number, (at, _) in self.timers.items()), default=None)


class Peer(FakeConnection):
    """A connection; the tokens that it is told go into a list."""

    def __init__(self, number: int, told: list[str]) -> None:
        super().__init__(number)
        self.asked: set[int] = set()
        self.answered: set[int] = set()
        self.told = told

    def send(self, line: bytes) -> None:
        super().send(line)
        message = self.sent[-1]
        if "method" in message:
            return  # what was not asked for
        assert message["id"] in self.asked
        assert not self.is_gone
        assert message["id"] not in self.answered, "answered twice"
        self.answered.add(message["id"])
        result = message.get("result")
        if result and "lease" in result and result["lease"] not in self.told:
            self.told.append(result["lease"])
        assert message.get("error", {}).get("data", {}).get("code") != "internal_error"


class ConnectionsMachine(RuleBasedStateMachine):
    """Clients and jobs that do things in any order."""

    @initialize(rewinds=st.booleans())
    def start(self, rewinds: bool) -> None:
        self.now = 0.0
        self.numbers = count(1)
        self.peers: list[Peer] = []
        self.former: list[Peer] = []
        self.tokens: list[str] = []
        self.fleet, _ = make_fleet(
            5, ready_templates=False, rewinds=rewinds, shrink_after=2.0, blog=(1, 3), shop=(1, 3)
        )
        self.jobs = FakeQueue()
        self.loop = Loop(lambda: self.now)
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.changing: set[str] = set()
        self.dispatcher, self.methods = make_api(
            self.fleet, self.jobs, self, loop, lambda: self.now, changing=self.changing
        )
        for template in self.fleet.pools:
            self.dispatcher.handle(events.TemplateReady(template, "abcdefgh"))
        self.finish_all()
        self.connect()
        self.connect()

    def is_connected(self, number: int) -> bool:
        return any(peer.number == number for peer in self.peers)

    def notify(self, number: int, method: str, params: object) -> None:
        for peer in self.peers:
            if peer.number == number:
                notify(peer, method, params)

    # Clients ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.peers) < MOST_CONNECTIONS)
    @rule()
    def connect(self) -> None:
        self.peers.append(Peer(next(self.numbers), self.tokens))

    @precondition(lambda self: self.peers)
    @rule(pick=PICK)
    def disconnect(self, pick: int) -> None:
        peer = self.peers.pop(pick % len(self.peers))
        peer.is_gone = True
        self.former.append(peer)
        open_calls, peer.open_calls = peer.open_calls, set()
        peer.cancellable.clear()
        self.methods.disconnect(peer.number, open_calls)

    def call(self, pick: int, method: str, **params: object) -> None:
        """Send a request over one of the connections, as its line would."""
        peer = self.peers[pick % len(self.peers)]
        request = next(self.numbers)
        given = {key: value for key, value in params.items() if value is not None}
        line = ENCODER.encode({"id": request, "method": method, "params": given})
        (message,) = ServerConnection().receive(line + b"\n")
        assert isinstance(message, Message)
        peer.asked.add(request)
        call = Call(peer, request, request)
        try:
            self.methods.call(call, message)
        except ClonepoolError as error:
            call.fail(error)
        if method == "release" and not (given.get("keep") or given.get("report")):
            assert request in peer.answered, "a plain release waits for nothing"

    def token(self, pick: int) -> str:
        """Return a token that somebody was told: of a living lease or of one that is over."""
        living = {lease.token for lease in self.fleet.leases()}
        choice = [token for token in self.tokens if token in living or not pick % 8]
        return choice[pick % len(choice)] if choice else "none"

    @precondition(lambda self: self.peers)
    @rule(
        pick=PICK,
        template=st.sampled_from(TEMPLATES),
        timeout=TIMEOUT,
        ttl=TTL,
        fresh=st.sampled_from([False, False, True]),
    )
    def acquire(self, pick: int, template: str, timeout: int, ttl: int | None, fresh: bool) -> None:
        self.call(
            pick,
            "acquire",
            template=template,
            timeout=timeout,
            ttl=ttl,
            fresh=fresh,
            progress=pick % 3 == 0,
        )

    @precondition(lambda self: self.peers and self.fleet.leases())
    @rule(
        pick=PICK,
        which=PICK,
        method=st.sampled_from(["release", "renew", "reset", "reset", "reset"]),
        timeout=TIMEOUT,
        ttl=TTL,
    )
    def use_a_lease(
        self, pick: int, which: int, method: str, timeout: int, ttl: int | None
    ) -> None:
        given: dict[str, dict[str, object]] = {
            "release": {"keep": which % 4 == 0, "report": which % 4 == 1},
            "renew": {"ttl": ttl},
            "reset": {"timeout": timeout},
        }
        self.call(pick, method, lease=self.token(which), **given[method])

    @precondition(lambda self: self.peers)
    @rule(pick=PICK, what=st.integers(0, 7), template=st.sampled_from(TEMPLATES))
    def ask_for_something_else(self, pick: int, what: int, template: str) -> None:
        if what == 0:
            self.call(pick, "drain", timeout=2)
        elif what < 4:
            self.call(pick, "drain", off=True)
        else:
            self.call(pick, "reserve", template=template, tests=what - 4, parallelism=2)

    @precondition(lambda self: any(peer.asked - peer.answered for peer in self.peers))
    @rule(pick=PICK, which=PICK)
    def cancel(self, pick: int, which: int) -> None:
        busy = [place for place, peer in enumerate(self.peers) if peer.asked - peer.answered]
        place = busy[pick % len(busy)]
        waiting = sorted(self.peers[place].asked - self.peers[place].answered)
        self.call(place, "cancel", request=waiting[which % len(waiting)])

    # Jobs ---------------------------------------------------------------------------------

    @precondition(lambda self: self.jobs.put_off)
    @rule(pick=PICK, works=st.integers(0, 3))
    def work(self, pick: int, works: int) -> None:
        self.finish(self.jobs.put_off.pop(pick % len(self.jobs.put_off)), works=bool(works))

    @rule(template=st.sampled_from(TEMPLATES))
    def a_lease_changes_the_server(self, template: str) -> None:
        self.changing.symmetric_difference_update({template})

    def finish(self, job: Work, *, works: bool = True) -> None:
        """Tell the dispatcher that something was done, or could not be."""
        handle, reports = self.dispatcher.handle, self.dispatcher.reports
        failure = ServerUnavailableError("x")
        match job:
            case CreateClone(template, _, clone) if works:
                handle(events.CloneCreated(template, clone))
            case CreateClone(template, _, clone):
                handle(events.CreateFailed(template, clone, failure))
            case Recycle(template, _, clone):
                self.dispatcher.looked_at(clone)
                reports.lease_left(clone, [])
                done = events.CloneRewound if works else events.CloneUnusable
                handle(done(template, clone))
            case Keep():
                reports.lease_kept(job.clone, [], written_down=works)
            case Record(waiter, lease) if works:
                handle(events.LeaseRecorded(lease.template, waiter))
            case Record(waiter, lease):
                handle(events.LeaseNotRecorded(lease.template, waiter, failure))
            case Drop(template, clone):
                handle(events.CloneDropped(template, clone))
            case Park() | Adopt():
                raise AssertionError(f"no job stops or starts again here: {job}")
            case _:
                assert_never(job)

    def finish_all(self) -> None:
        while self.jobs.put_off:
            self.finish(self.jobs.put_off.pop())

    @rule(seconds=st.sampled_from([0.05, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while (timer := self.loop.next()) is not None and timer[0] <= until:
            self.now = max(self.now, timer[0])
            self.loop.timers.pop(timer[1])[1]()
        self.now = until

    # Promises -----------------------------------------------------------------------------

    @invariant()
    def each_lease_has_a_holder_that_is_connected_or_a_time(self) -> None:
        if not hasattr(self, "fleet"):
            return
        connected = {peer.number for peer in self.peers}
        for lease in self.fleet.leases():
            assert lease.holder in connected or lease.expires_at is not None

    @invariant()
    def no_closed_connection_waits(self) -> None:
        if not hasattr(self, "fleet"):
            return
        connected = {peer.number for peer in self.peers}
        for pool in self.fleet.pools.values():
            assert all(waiter.holder in connected or waiter.continues for waiter in pool.queue)

    def teardown(self) -> None:
        """Let everything come to its end: what was asked is answered, what was lent is back."""
        if not hasattr(self, "fleet"):
            return
        self.settle()
        for peer in self.peers:
            assert peer.asked == peer.answered, "somebody was never answered"
            assert not peer.open_calls
            assert not peer.cancellable
        assert self.dispatcher.reports.owed == 0
        assert not self.fleet.budget.held
        while self.peers:
            self.disconnect(0)
        self.settle()
        for pool in self.fleet.pools.values():
            states = pool.snapshot()
            assert not len(pool.leases)
            assert states.leased == states.returned == states.recycling == states.waiting == 0
            assert pool.databases == states.ready + states.kept

    def settle(self) -> None:
        """Let all jobs finish, and time pass until nothing waits."""
        for _ in range(200):
            self.finish_all()
            waiting = any(peer.asked - peer.answered for peer in self.peers)
            lasting = any(lease.expires_at for lease in self.fleet.leases())
            if not waiting and not lasting:
                return
            self.time_passes(0.5)
        left = [(peer.number, peer.asked - peer.answered) for peer in self.peers]
        raise AssertionError(f"it never comes to rest: {left}, {self.fleet.leases()}")


ENCODER = msgspec.json.Encoder()
ConnectionsMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None
)
TestConnections = ConnectionsMachine.TestCase
