"""In any order of events, the condition of a template follows from the events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clonepool.core.clone import IllegalTransitionError
from clonepool.core.template import COVERED, Condition, Template, TemplateEvent
from clonepool.errors import ClonepoolError

EVENTS = st.sampled_from(sorted(TemplateEvent))


class Machine(RuleBasedStateMachine):
    """A model that keeps apart what one condition tells: the build, the drain and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.template = Template("shop")
        self.build = Condition.BUILDING
        self.drained = False
        self.end: Condition | None = None
        self.generation = ""
        self.failure: ClonepoolError | None = None
        self.serial = 0

    @rule(event=EVENTS)
    def happen(self, event: TemplateEvent) -> None:
        self.serial += 1
        generation, failure = f"g{self.serial}", ClonepoolError(str(self.serial))
        if not self._is_expected(event):
            before = repr(self.template), self.template.underlying
            assert not self.template.takes(event)
            with pytest.raises(IllegalTransitionError):
                self.template.apply(event, generation=generation, failure=failure)
            assert before == (repr(self.template), self.template.underlying)
            return
        assert self.template.takes(event)
        self.template.apply(event, generation=generation, failure=failure)
        self._follow(event, generation, failure)

    @rule()
    def postpone(self) -> None:
        obstacle = ClonepoolError("away")
        self.template.postpone(obstacle)
        assert (self.template.obstacle is obstacle) is self.template.is_being_built

    def _is_expected(self, event: TemplateEvent) -> bool:
        if self.end is not None:
            return event is TemplateEvent.RETIRE and self.end is Condition.STOPPING
        match event:
            case TemplateEvent.LOSE:
                return self.build is Condition.READY
            case TemplateEvent.DRAIN:
                return not self.drained
            case TemplateEvent.LIFT:
                return self.drained
            case _:
                return True

    def _follow(self, event: TemplateEvent, generation: str, failure: ClonepoolError) -> None:
        match event:
            case TemplateEvent.BUILT:
                self.build, self.generation, self.failure = Condition.READY, generation, None
            case TemplateEvent.FAIL:
                self.build, self.failure = Condition.FAILED, failure
            case TemplateEvent.CHANGE:
                self.build, self.failure = Condition.STALE, None
            case TemplateEvent.LOSE:
                self.build = Condition.BUILDING
            case TemplateEvent.DRAIN | TemplateEvent.LIFT:
                self.drained = event is TemplateEvent.DRAIN
            case TemplateEvent.STOP:
                self.end = Condition.STOPPING
            case TemplateEvent.RETIRE:
                self.end = Condition.RETIRED

    @invariant()
    def the_condition_is_what_happened(self) -> None:
        template = self.template
        assert template.condition is (
            self.end or (Condition.DRAINING if self.drained else self.build)
        )
        assert template.underlying is (self.end or self.build)
        assert (template.generation, template.failure) == (self.generation, self.failure)

    @invariant()
    def what_can_be_had_agrees(self) -> None:
        template = self.template
        assert not (template.is_over and (template.is_granting or template.can_create))
        assert not template.can_create or template.is_granting
        assert not template.can_create or template.generation
        assert (template.refusal() is None) is (
            template.condition in COVERED and template.condition is not Condition.FAILED
        )
        new, old = template.refusal(), template.refusal(continues=True)
        assert old is None or new is not None


TestTemplate = Machine.TestCase
TestTemplate.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
