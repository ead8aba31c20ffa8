"""Connections that come and go between every two steps of every method of the protocol.

The methods, the dispatcher and the core are real; what takes time is done when the test says so,
in any order. Whatever happens, each lease has a holder that is connected or a time when it ends,
each request is answered once, and every clone comes back.
"""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from prometheus_client import CollectorRegistry

from clonepool.config import Config
from clonepool.errors import ClonepoolError, ServerUnavailableError
from clonepool.observe.metrics import Metrics
from clonepool.protocol.messages import AcquireResult, LeaseNews
from clonepool.protocol.server import Call, ServerConnection
from clonepool.service.api.methods import Methods
from clonepool.service.dispatcher import Dispatcher
from support.pools import make_fleet

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from clonepool.core.decisions import (
        CreateClone,
        Decision,
        Drop,
        Keep,
        Lease,
        Notice,
        Record,
        Recycle,
    )

PICK = st.integers(min_value=0, max_value=1_000)
TEMPLATES = ("blog", "shop")
MOST_CONNECTIONS = 4
TIMEOUT = st.sampled_from([0, 1, 5])
METRICS = Metrics(CollectorRegistry(), TEMPLATES)
TTL = st.sampled_from([None, None, 1, 3])


class Hands:
    """Note what is to be done; the machine does it, or fails at it, in any order."""

    def __init__(self) -> None:
        self.work: list[tuple[str, Any, Any]] = []

    def create(self, decision: CreateClone) -> None:
        self.work.append(("create", decision, None))

    def recycle(self, decision: Recycle, report: Callable[[Any], None] | None) -> None:
        self.work.append(("recycle", decision, report))

    def keep(self, decision: Keep, report: Callable[[Any, bool], None]) -> None:
        self.work.append(("keep", decision, report))

    def record(self, decision: Record) -> None:
        self.work.append(("record", decision, None))

    def drop(self, decision: Drop) -> None:
        self.work.append(("drop", decision, None))


class Loop:
    """Keeps the one timer, which the machine lets go off."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.timers: dict[int, tuple[float, Callable[[], None]]] = {}
        self._numbers = count()
        self._clock = clock

    def call_later(self, delay: float, what: Callable[[], None]) -> Any:
        number = next(self._numbers)
        self.timers[number] = (self._clock() + delay, what)
        return SimpleNamespace(cancel=lambda: self.timers.pop(number, None))

    def next(self) -> tuple[float, int] | None:
        """Return when the next timer goes off, and its number."""
        return min(((at, number) for number, (at, _) in self.timers.items()), default=None)


class Peer:
    """A connection as the methods see it; the tokens that it is told go into a list."""

    def __init__(self, number: int, told: list[str]) -> None:
        self.number = number
        self.client = f"client {number}"
        self.waiters: set[int] = set()
        self.pending: dict[Any, Callable[[], None]] = {}
        self.unanswered = 0
        self.gone = False
        self.asked: set[int] = set()
        self.answered: set[int] = set()
        self.told = told

    def reply(self, request: Any, result: object) -> None:
        self._answer(request)
        if isinstance(result, AcquireResult) and result.lease not in self.told:
            self.told.append(result.lease)

    def reply_error(self, request: Any, error: ClonepoolError) -> None:
        self._answer(request)
        assert error.code != "internal_error"

    def notify(self, method: str, params: object) -> None:
        """Hear what was not asked for."""

    def _answer(self, request: int) -> None:
        assert request in self.asked
        assert self.gone or request not in self.answered, "answered twice"
        self.answered.add(request)
        self.pending.pop(request, None)
        self.unanswered -= 1


def login_of(_: Lease) -> Any:
    return SimpleNamespace(url="url", user="user", password="secret", env={})


class ConnectionsMachine(RuleBasedStateMachine):
    """Clients and hands that do things in any order."""

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
        self.hands = Hands()
        self.loop = Loop(lambda: self.now)
        self.dispatcher = Dispatcher(
            self.fleet,
            cast("Any", self.hands),
            METRICS,
            cast("asyncio.AbstractEventLoop", self.loop),
            lambda: self.now,
            5.0,
            self.notify,
            self.leaks_to,
        )
        config = Config()
        self.methods = Methods(
            self.dispatcher,
            cast("Any", SimpleNamespace(host="/tmp", port=5432)),
            cast("Any", SimpleNamespace(of=login_of)),
            config,
            cast("Any", SimpleNamespace(status=dict, leases=list, templates=list)),
            cast("Any", SimpleNamespace(step_of=lambda _: None)),
            cast("Any", Unused()),
        )
        for pool in self.fleet.pools.values():
            self.carry_out(pool.template_ready("abcdefgh", 0.0))
        self.finish_all()
        self.connect()
        self.connect()

    def carry_out(self, decisions: list[Decision]) -> None:
        self.dispatcher.carry_out(decisions)

    def notify(self, notice: Notice) -> None:
        for peer in self.peers:
            if peer.number == notice.lease.holder:
                peer.notify(
                    notice.news,
                    LeaseNews(notice.lease.token, notice.lease.template, "", "", notice.seconds),
                )

    def leaks_to(self, number: int, template: str, clone: str) -> Callable[[Any], None] | None:
        """Tell whoever is connected still."""
        assert template in TEMPLATES
        assert clone
        return (lambda _: None) if any(peer.number == number for peer in self.peers) else None

    # Clients ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.peers) < MOST_CONNECTIONS)
    @rule()
    def connect(self) -> None:
        self.peers.append(Peer(next(self.numbers), self.tokens))

    @precondition(lambda self: self.peers)
    @rule(pick=PICK)
    def disconnect(self, pick: int) -> None:
        peer = self.peers.pop(pick % len(self.peers))
        peer.gone = True
        peer.pending.clear()
        self.former.append(peer)
        self.methods.disconnect(peer)

    def call(self, pick: int, method: str, **params: object) -> None:
        """Send a request over one of the connections, as its line would."""
        peer = self.peers[pick % len(self.peers)]
        request = next(self.numbers)
        given = {key: value for key, value in params.items() if value is not None}
        line = ENCODER.encode({"id": request, "method": method, "params": given})
        (call,) = ServerConnection().receive(line + b"\n")
        assert isinstance(call, Call)
        peer.asked.add(request)
        peer.unanswered += 1
        try:
            self.methods.call(peer, call)
        except ClonepoolError as error:
            peer.reply_error(request, error)
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

    # Hands --------------------------------------------------------------------------------

    @precondition(lambda self: self.hands.work)
    @rule(pick=PICK, works=st.integers(0, 3))
    def work(self, pick: int, works: int) -> None:
        self.finish(*self.hands.work.pop(pick % len(self.hands.work)), works=bool(works))

    def finish(self, what: str, decision: Any, report: Any, *, works: bool = True) -> None:
        """Report that something was done, or could not be."""
        template = decision.lease.template if what == "record" else decision.template
        pool = self.fleet.pools[template]
        failure = ServerUnavailableError("x")
        match what, works:
            case "create", True:
                self.carry_out(pool.created(decision.clone, self.now))
            case "create", False:
                self.carry_out(pool.create_failed(decision.clone, failure, self.now))
            case "recycle", _:
                if report is not None:
                    report([])
                done = pool.rewound if works else pool.unusable
                self.carry_out(done(decision.clone, self.now))
            case "keep", _:
                report([], works)
            case "record", True:
                self.carry_out(pool.recorded(decision.waiter, self.now))
            case "record", False:
                self.carry_out(pool.not_recorded(decision.waiter, failure))
            case "drop", _:
                self.carry_out(self.fleet.dropped(template, decision.clone, self.now))

    def finish_all(self) -> None:
        while self.hands.work:
            self.finish(*self.hands.work.pop())

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
    def nobody_who_is_gone_waits(self) -> None:
        if not hasattr(self, "fleet"):
            return
        connected = {peer.number for peer in self.peers}
        for pool in self.fleet.pools.values():
            assert all(waiter.holder in connected or waiter.continues for waiter in pool.line)

    def teardown(self) -> None:
        """Let everything come to its end: what was asked is answered, what was lent is back."""
        if not hasattr(self, "fleet"):
            return
        self.settle()
        for peer in self.peers:
            assert peer.asked == peer.answered, "somebody was never answered"
            assert peer.unanswered == 0
            assert not peer.pending
        assert self.dispatcher.reports == 0
        while self.peers:
            self.disconnect(0)
        self.settle()
        for pool in self.fleet.pools.values():
            states = pool.snapshot()
            assert not len(pool.leases)
            assert states.leased == states.returned == states.recycling == states.waiting == 0
            assert pool.databases == states.ready + states.kept

    def settle(self) -> None:
        """Let all hands finish, and time pass until nothing waits."""
        for _ in range(200):
            self.finish_all()
            waiting = any(peer.asked - peer.answered for peer in self.peers)
            lasting = any(lease.expires_at for lease in self.fleet.leases())
            if not waiting and not lasting:
                return
            self.time_passes(0.5)
        left = [(peer.number, peer.asked - peer.answered) for peer in self.peers]
        raise AssertionError(f"it never comes to rest: {left}, {self.fleet.leases()}")


class Unused:
    """Stands for what makes templates, which no connection here asks for."""

    def disconnect(self, peer: Any) -> None:
        """Nothing was asked for."""

    def __getattr__(self, name: str) -> Any:
        return None


ENCODER = msgspec.json.Encoder()
ConnectionsMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None
)
TestConnections = ConnectionsMachine.TestCase
