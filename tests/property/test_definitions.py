"""Whatever clients and time do, at most one of them fills a template, and nobody is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clonepool.core.decisions import Request
from clonepool.core.definitions import Answer, Definition, Definitions, Discard, Make, Stage
from clonepool.errors import ClonepoolError, NotYourDefinitionError

FILL_SECONDS = 5.0
TEMPLATES = ("one", "two")


class Machine(RuleBasedStateMachine):
    """Clients seek, fill, die; the world of databases is followed beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.definitions = Definitions(FILL_SECONDS)
        self.now = 0.0
        self.number = 0
        self.unanswered: dict[int, Request] = {}
        self.making: list[Definition] = []
        self.filling: list[Definition] = []
        self.sealing: list[Definition] = []
        self.there: set[str] = set()
        self.hung_up: set[int] = set()

    def follow(self, verdicts: list[Make | Discard | Answer]) -> None:
        for verdict in verdicts:
            match verdict:
                case Make(definition):
                    assert definition.template not in self.there
                    self.making.append(definition)
                case Discard(definition):
                    for place in (self.making, self.filling, self.sealing):
                        if definition in place:
                            place.remove(definition)
                case Answer(request, template, error):
                    assert (error is None) == (template in self.there)
                    if request.waiter not in self.hung_up:
                        self.unanswered.pop(request.waiter)

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
        self.follow(self.definitions.seek(template, request))

    @precondition(lambda self: self.making)
    @rule(works=st.booleans())
    def make(self, works: bool) -> None:
        definition = self.making[0]
        if not works:
            self.making.remove(definition)
            self.follow(self.definitions.not_made(definition, ClonepoolError("no room")))
            return
        self.follow(self.definitions.made(definition, self.now))
        if not definition.abandoned:
            self.making.remove(definition)
            self.filling.append(definition)
            self.unanswered.pop(definition.request.waiter)

    @precondition(lambda self: self.filling)
    @rule()
    def finalize(self) -> None:
        definition = self.filling.pop(0)
        assert self.definitions.finalize(definition.request.token) is definition
        with pytest.raises(NotYourDefinitionError):
            self.definitions.finalize(definition.request.token)
        self.sealing.append(definition)

    @precondition(lambda self: self.filling)
    @rule()
    def abandon(self) -> None:
        self.follow(self.definitions.abandon(self.filling[0].request.token, self.now))

    @precondition(lambda self: self.sealing)
    @rule(works=st.booleans())
    def seal(self, works: bool) -> None:
        definition = self.sealing[0]
        if works:
            self.sealing.remove(definition)
            self.there.add(definition.template)
            self.follow(self.definitions.sealed(definition))
        else:
            self.follow(self.definitions.not_sealed(definition, self.now))

    @rule(holder=st.integers(1, 4))
    def hang_up(self, holder: int) -> None:
        self.follow(self.definitions.holder_gone(holder, self.now))
        for waiter in [n for n, request in self.unanswered.items() if request.holder == holder]:
            del self.unanswered[waiter]
            self.hung_up.add(waiter)

    @precondition(lambda self: self.unanswered)
    @rule(choice=st.data())
    def cancel(self, choice: st.DataObject) -> None:
        waiter = choice.draw(st.sampled_from(sorted(self.unanswered)))
        self.definitions.forget(waiter)
        del self.unanswered[waiter]
        self.hung_up.add(waiter)

    @rule(template=st.sampled_from(TEMPLATES))
    def forget(self, template: str) -> None:
        self.there.discard(template)

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.definitions.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.follow(self.definitions.expire(self.now))
        self.now = until

    @invariant()
    def at_most_one_has_each_place(self) -> None:
        everyone = [*self.making, *self.filling, *self.sealing]
        assert len({each.template for each in everyone}) == len(everyone)
        assert len(self.definitions) == len(everyone)

    @invariant()
    def nobody_waits_for_nobody(self) -> None:
        if not (self.making or self.filling or self.sealing):
            assert not self.unanswered

    @invariant()
    def every_filler_has_a_deadline(self) -> None:
        for definition in self.filling:
            assert definition.stage is Stage.FILLING
            assert definition.expires_at is not None
            assert definition.expires_at <= self.now + FILL_SECONDS


TestDefinitions = Machine.TestCase
TestDefinitions.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
