"""However clients make and use templates, there are never too many, and none in use is dropped."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clonepool.core.client_templates import AGAIN_SECONDS, ClientTemplateBook, Use
from clonepool.errors import ClientLimitError

MOST = 3
UNUSED_SECONDS = 100.0
NAMES = st.sampled_from(["a", "b", "c", "d", "e"])


class Machine(RuleBasedStateMachine):
    """Templates are made, leased, left alone and given up."""

    def __init__(self) -> None:
        super().__init__()
        self.book = ClientTemplateBook(MOST, UNUSED_SECONDS, self.use_of)
        self.now = 0.0
        self.making: set[str] = set()
        self.living: dict[str, float] = {}
        """By name, when it was made or leased last."""
        self.given_up: set[str] = set()
        self.leased: set[str] = set()

    def use_of(self, template: str) -> Use:
        return Use(self.living[template], template not in self.leased)

    def leave(self, templates: list[str]) -> None:
        for name in templates:
            assert name not in self.leased | self.making, "it was in use"
            del self.living[name]
            self.given_up.add(name)

    @rule(template=NAMES)
    def begin(self, template: str) -> None:
        if template in self.making | self.given_up:
            return  # it is not its turn
        others = (self.making | self.living.keys()) - {template}
        idle = self.living.keys() - self.leased - self.making - {template}
        surplus = len(others) + 1 - MOST
        if surplus > len(idle):
            with pytest.raises(ClientLimitError):
                self.book.begin(template)
            return
        oldest = sorted(idle, key=lambda name: self.living[name])[: max(0, surplus)]
        given_up = self.book.begin(template)
        assert [self.living[name] for name in given_up] == [self.living[name] for name in oldest]
        self.leave(given_up)
        self.making.add(template)

    @precondition(lambda self: self.making)
    @rule(works=st.booleans(), data=st.data())
    def end(self, works: bool, data: st.DataObject) -> None:
        template = data.draw(st.sampled_from(sorted(self.making)))
        self.making.remove(template)
        if works:
            self.book.enter(template, self.now)
            self.living[template] = self.now
        self.book.end(template)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        template = data.draw(st.sampled_from(sorted(self.living)))
        self.living[template] = self.now
        self.leased.add(template)

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.leased.remove(data.draw(st.sampled_from(sorted(self.leased))))

    @precondition(lambda self: self.given_up)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        template = data.draw(st.sampled_from(sorted(self.given_up)))
        assert self.book.is_given_up(template)
        assert template in self.book
        self.book.remove(template)
        self.given_up.remove(template)
        assert template not in self.book

    @rule(seconds=st.sampled_from([1.0, 40.0, 150.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        self.leave(self.book.expire(self.now))
        while (due := self.book.next_timer(self.now)) is not None and due <= until:
            assert due > self.now
            self.now = due
            self.leave(self.book.expire(self.now))
        self.now = until

    @invariant()
    def there_are_never_too_many(self) -> None:
        assert len(self.making | self.living.keys()) <= MOST

    @invariant()
    def one_that_nobody_uses_is_looked_at_in_time(self) -> None:
        for used_at in self.living.values():
            due = self.book.next_timer(self.now)
            assert due is not None
            assert due <= max(used_at + UNUSED_SECONDS, self.now + AGAIN_SECONDS)

    @invariant()
    def those_given_up_are_known_until_they_are_gone(self) -> None:
        for name in "abcde":
            assert self.book.is_given_up(name) is (name in self.given_up)
            assert (name in self.book) is (name in self.given_up or name in self.living)


TestClientTemplates = Machine.TestCase
TestClientTemplates.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
