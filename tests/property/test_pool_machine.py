"""The pool under any order of events: the promises hold after each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from clonepool.core.decisions import CreateClone, Drop, Grant, Recycle, Refuse
from clonepool.errors import ServerUnavailableError, TemplateFailedError
from support.pools import make_fleet, request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.core.decisions import Decision
    from clonepool.core.fleet import Fleet

TEMPLATES = ("blog", "shop")
MAX_CLONES = {"blog": 3, "shop": 4}
MAX_ALL = 5
PICK = st.integers(min_value=0, max_value=1_000)


class PoolMachine(RuleBasedStateMachine):
    """A fleet, clients and hands that do things in any order, or fail."""

    fleet: Fleet

    @initialize(building=st.booleans())
    def start(self, building: bool) -> None:
        self.now = 0.0
        self.last_waiter = 0
        self.queued: dict[str, list[int]] = {template: [] for template in TEMPLATES}
        self.answered: set[int] = set()
        self.deadlines: dict[int, float] = {}
        self.held: dict[str, tuple[str, int, str]] = {}
        self.creating: list[CreateClone] = []
        self.recycling: list[Recycle] = []
        self.dropping: list[Drop] = []
        self.ever_named: set[str] = set()
        self.fleet, first = make_fleet(
            MAX_ALL, ready_templates=not building, blog=(2, 3), shop=(1, 4)
        )
        self.apply(first)

    def apply(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Grant():
                    self.note_grant(decision)
                case Refuse():
                    self.note_answer(decision.waiter)
                case CreateClone():
                    assert decision.clone not in self.ever_named, "a name was used twice"
                    self.ever_named.add(decision.clone)
                    self.creating.append(decision)
                case Recycle():
                    self.recycling.append(decision)
                case Drop():
                    held = {clone for _, _, clone in self.held.values()}
                    assert decision.clone not in held, "a leased clone is dropped"
                    self.dropping.append(decision)

    def note_grant(self, grant: Grant) -> None:
        lease = grant.lease
        assert lease.clone not in {clone for _, _, clone in self.held.values()}, "leased twice"
        assert lease.clone not in {d.clone for d in self.dropping}
        assert lease.clone not in {d.clone for d in self.recycling}
        queue = self.queued[lease.template]
        assert queue[0] == grant.waiter, "out of order"
        assert self.deadlines[grant.waiter] > self.now, "granted after its deadline"
        self.note_answer(grant.waiter)
        self.held[lease.token] = (lease.template, lease.holder, lease.clone)

    def note_answer(self, waiter: int) -> None:
        assert waiter not in self.answered, "answered twice"
        self.answered.add(waiter)
        for queue in self.queued.values():
            if waiter in queue:
                queue.remove(waiter)

    # Clients ------------------------------------------------------------------------------

    @rule(
        template=st.sampled_from(TEMPLATES),
        holder=st.integers(1, 3),
        timeout=st.sampled_from([0.0, 1.0, 5.0]),
    )
    def acquire(self, template: str, holder: int, timeout: float) -> None:
        self.last_waiter += 1
        self.queued[template].append(self.last_waiter)
        self.deadlines[self.last_waiter] = self.now + timeout
        if timeout == 0.0:
            self.deadlines[self.last_waiter] = self.now + 1e-9  # a hit is granted, however late
        asked = request(self.last_waiter, holder=holder, at=self.now, timeout=timeout)
        self.apply(self.fleet.acquire(template, asked, self.now))

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        token = sorted(self.held)[pick % len(self.held)]
        del self.held[token]
        self.apply(self.fleet.release(token))

    @rule(holder=st.integers(1, 3))
    def disconnect(self, holder: int) -> None:
        mine = [token for token, (_, whose, _) in self.held.items() if whose == holder]
        for token in mine:
            del self.held[token]
        gone = [
            waiter
            for pool in self.fleet.pools.values()
            for waiter, asked in pool.line._line.items()
            if asked.holder == holder
        ]
        for waiter in gone:
            self.note_answer(waiter)
        self.apply(self.fleet.holder_gone(holder, gone))

    # Hands --------------------------------------------------------------------------------

    @precondition(lambda self: self.creating)
    @rule(pick=PICK, works=st.booleans())
    def finish_create(self, pick: int, works: bool) -> None:
        create = self.creating.pop(pick % len(self.creating))
        pool = self.fleet.pools[create.template]
        if works:
            self.apply(pool.created(create.clone, self.now))
        else:
            self.apply(pool.create_failed(create.clone, ServerUnavailableError("x"), self.now))

    @precondition(lambda self: self.recycling)
    @rule(pick=PICK, rewound=st.booleans())
    def finish_recycle(self, pick: int, rewound: bool) -> None:
        recycle = self.recycling.pop(pick % len(self.recycling))
        pool = self.fleet.pools[recycle.template]
        finish = pool.rewound if rewound else pool.unusable
        self.apply(finish(recycle.clone, self.now))

    @precondition(lambda self: self.dropping)
    @rule(pick=PICK)
    def finish_drop(self, pick: int) -> None:
        drop = self.dropping.pop(pick % len(self.dropping))
        self.apply(self.fleet.dropped(drop.template, drop.clone, self.now))

    # The world ----------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.05, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.fleet.expire(self.now))

    @rule(template=st.sampled_from(TEMPLATES))
    def template_built(self, template: str) -> None:
        self.apply(self.fleet.pools[template].template_ready("abcdefgh", self.now))

    @rule(template=st.sampled_from(TEMPLATES))
    def template_fails(self, template: str) -> None:
        self.apply(self.fleet.pools[template].template_failed(TemplateFailedError("x")))

    # Promises -----------------------------------------------------------------------------

    @invariant()
    def limits_hold(self) -> None:
        for template, pool in self.fleet.pools.items():
            assert pool.databases <= MAX_CLONES[template]
        assert self.fleet.databases == self.fleet.budget.used <= MAX_ALL

    @invariant()
    def nobody_waits_past_the_deadline(self) -> None:
        for queue in self.queued.values():
            assert all(self.deadlines[waiter] > self.now - 1e-6 for waiter in queue)

    @invariant()
    def nobody_waits_while_a_clone_is_ready(self) -> None:
        for pool in self.fleet.pools.values():
            assert not (pool.ready and pool.waiting and pool.phase == "ready")

    @invariant()
    def the_counts_agree_with_the_clones(self) -> None:
        for pool in self.fleet.pools.values():
            snapshot = pool.snapshot()
            for state in ("creating", "ready", "leased", "recycling", "dropping"):
                actual = sum(clone.state == state for clone in pool.stock._clones.values())
                assert getattr(snapshot, state) == actual

    @invariant()
    def whoever_waits_has_something_to_wait_for(self) -> None:
        for pool in self.fleet.pools.values():
            if pool.waiting and pool.phase == "ready":
                under_way = self.creating or self.recycling or self.dropping or self.held
                assert under_way or self.fleet.next_timer() is not None

    def teardown(self) -> None:
        if not hasattr(self, "fleet"):
            return
        self.apply(self.fleet.stop())
        waiting = [waiter for queue in self.queued.values() for waiter in queue]
        assert not waiting, "a waiter was never answered"


PoolMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestPool = PoolMachine.TestCase
