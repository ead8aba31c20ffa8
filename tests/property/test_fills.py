"""In any order of events, one client at a time fills a template, and all are answered."""

from __future__ import annotations

from typing import assert_never

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clonepool.core.decisions import Request
from clonepool.core.fills import AnswerDefine, Discard, Fill, FillDecision, Fills, Prepare, Stage
from clonepool.errors import ClonepoolError, NotYourDefinitionError

FILL_SECONDS = 5.0
TEMPLATES = ("one", "two")


class Machine(RuleBasedStateMachine):
    """Clients ask, fill and die; the databases are followed beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.fills = Fills(FILL_SECONDS)
        self.now = 0.0
        self.number = 0
        self.unanswered: dict[int, Request] = {}
        self.preparing: list[Fill] = []
        self.filling: list[Fill] = []
        self.sealing: list[Fill] = []
        self.there: set[str] = set()
        self.hung_up: set[int] = set()

    def follow(self, decisions: list[FillDecision]) -> None:
        for decision in decisions:
            match decision:
                case Prepare(fill):
                    assert fill.template not in self.there
                    self.preparing.append(fill)
                case Discard(fill):
                    for place in (self.preparing, self.filling, self.sealing):
                        if fill in place:
                            place.remove(fill)
                case AnswerDefine(request, template, error):
                    assert (error is None) == (template in self.there)
                    if request.waiter not in self.hung_up:
                        self.unanswered.pop(request.waiter)
                case _:
                    assert_never(decision)

    @rule(
        template=st.sampled_from(TEMPLATES),
        holder=st.integers(1, 4),
        timeout=st.sampled_from([0.0, 1.0, 20.0]),
    )
    def seek(self, template: str, holder: int, timeout: float) -> None:
        if template in self.there:
            return
        self.number += 1
        request = Request(
            self.number, f"token {self.number}", holder, "", self.now, self.now + timeout
        )
        self.unanswered[request.waiter] = request
        self.follow(self.fills.ask(template, request))

    @precondition(lambda self: self.preparing)
    @rule(works=st.booleans())
    def prepare(self, works: bool) -> None:
        fill = self.preparing[0]
        if not works:
            self.preparing.remove(fill)
            self.follow(self.fills.not_prepared(fill, ClonepoolError("no room")))
            return
        self.follow(self.fills.prepared(fill, self.now))
        if fill.stage is Stage.FILLING:
            self.preparing.remove(fill)
            self.filling.append(fill)
            self.unanswered.pop(fill.request.waiter)

    @precondition(lambda self: self.filling)
    @rule()
    def finalize(self) -> None:
        fill = self.filling.pop(0)
        assert self.fills.finalize(fill.request.token) is fill
        with pytest.raises(NotYourDefinitionError):
            self.fills.finalize(fill.request.token)
        self.sealing.append(fill)

    @precondition(lambda self: self.filling)
    @rule()
    def give_up(self) -> None:
        self.follow(self.fills.give_up(self.filling[0].request.token, self.now))

    @precondition(lambda self: self.sealing)
    @rule(works=st.booleans())
    def seal(self, works: bool) -> None:
        fill = self.sealing[0]
        if works:
            self.sealing.remove(fill)
            self.there.add(fill.template)
            self.follow(self.fills.sealed(fill))
        else:
            self.follow(self.fills.not_sealed(fill, self.now))

    @rule(holder=st.integers(1, 4))
    def hang_up(self, holder: int) -> None:
        self.follow(self.fills.holder_gone(holder, self.now))
        for waiter in [n for n, request in self.unanswered.items() if request.holder == holder]:
            del self.unanswered[waiter]
            self.hung_up.add(waiter)

    @precondition(lambda self: self.unanswered)
    @rule(choice=st.data())
    def cancel(self, choice: st.DataObject) -> None:
        waiter = choice.draw(st.sampled_from(sorted(self.unanswered)))
        self.fills.forget(waiter)
        del self.unanswered[waiter]
        self.hung_up.add(waiter)

    @rule(template=st.sampled_from(TEMPLATES))
    def forget(self, template: str) -> None:
        self.there.discard(template)

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.fills.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.follow(self.fills.expire(self.now))
        self.now = until

    @invariant()
    def each_template_has_one_fill_at_most(self) -> None:
        everyone = [*self.preparing, *self.filling, *self.sealing]
        assert len({each.template for each in everyone}) == len(everyone)
        assert len(self.fills) == len(everyone)

    @invariant()
    def no_request_waits_without_a_fill(self) -> None:
        if not (self.preparing or self.filling or self.sealing):
            assert not self.unanswered

    @invariant()
    def every_client_that_fills_has_a_deadline(self) -> None:
        for fill in self.filling:
            assert fill.stage is Stage.FILLING
            assert fill.expires_at is not None
            assert fill.expires_at <= self.now + FILL_SECONDS


TestFills = Machine.TestCase
TestFills.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
