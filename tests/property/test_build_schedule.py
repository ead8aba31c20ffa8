"""After any edits, requests and losses, templates are built in order and all requests answered.

The simulated sources are one text per template. A build sees the text at its last check; later
edits are found by the next check.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clonepool.core import build_decisions as d
from clonepool.core.build_entries import Rule
from clonepool.core.build_schedule import BuildSchedule
from clonepool.errors import ClonepoolError

if TYPE_CHECKING:
    from collections.abc import Sequence

RULES = {
    "base": Rule(),
    "middle": Rule("base"),
    "top": Rule("middle"),
    "other": Rule(),
    "kept": Rule(serves_previous=True),
}
PLACES = 2
NAMES = st.sampled_from(sorted(RULES))
BROKEN = "broken"


@dataclass
class Build:
    """A build under way, and what its template was made from at the last look."""

    template: str
    anew: bool
    inputs: str
    answers: set[int] = field(default_factory=set)


class Machine(RuleBasedStateMachine):
    """Edits files, asks for builds, loses generations, and ends builds in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = BuildSchedule(RULES, PLACES)
        self.now = 0.0
        self.texts = dict.fromkeys(RULES, "1")
        self.building: dict[str, Build] = {}
        self.served: dict[str, tuple[str, str]] = {}
        self.condition = dict.fromkeys(RULES, "building")
        self.unanswered: dict[int, str] = {}
        self.untold: set[str] = set()
        """Templates whose files were edited and not checked since."""
        self.serial = 0
        self.tidied = False

    # What the service does --------------------------------------------------------------------

    def inputs(self, template: str) -> str:
        """Return what decides what a template holds now: its text and the generation below."""
        lower = RULES[template].extends
        return f"{self.texts[template]} on {self.served.get(lower, ('', ''))[1]}"

    def carry_out(self, decisions: Sequence[d.BuildStep | d.BuildOutcome]) -> None:  # noqa: C901 - one case a decision
        for decision in decisions:
            match decision:
                case d.StartBuild(template, anew, _):
                    self.begin(template, anew)
                case d.Look(templates, seconds):
                    assert seconds > 0
                    self.look(templates)
                case d.Serve(template, generation):
                    self.condition[template] = "ready"
                    self.served[template] = self.built_inputs, generation
                case d.ServePrevious(template, generation):
                    assert RULES[template].serves_previous
                    assert self.served[template][1] == generation
                    self.condition[template] = "ready"
                case d.MarkStale(template) | d.Lose(template):
                    self.condition[template] = "building"
                case d.Fail(template):
                    self.condition[template] = "failed"
                case d.AnswerBuild(template, requests):
                    assert set(requests) <= self.ending.answers, "asked after the build began"
                    for request in requests:
                        assert self.unanswered.pop(request) == template
                case d.Tidy():
                    assert not self.building
                    self.tidied = True
                case d.Postpone() | d.CompareFiles():
                    pass
                case _:
                    assert_never(decision)

    def begin(self, template: str, anew: bool) -> None:
        assert template not in self.building
        assert len(self.building) < PLACES
        lower = RULES[template].extends
        while lower:
            assert lower not in self.building, "built on what is being built"
            lower = RULES[lower].extends
        asked = {request for request, name in self.unanswered.items() if name == template}
        self.building[template] = Build(template, anew, self.inputs(template), asked)

    def look(self, templates: tuple[str, ...]) -> None:
        self.untold -= set(templates)
        for name in self.schedule.to_look_at(templates):
            self.carry_out(self.schedule.looked(name, self.fingerprint(name), ["edited"], self.now))

    def fingerprint(self, name: str) -> str:
        inputs = self.inputs(name)
        return f"error: {inputs}" if BROKEN in inputs else inputs

    def plan(self) -> None:
        for _ in range(3):  # a look, then what follows from it
            self.carry_out(self.schedule.plan(self.now, lambda _: 0))

    def finish(self, template: str) -> None:
        self.ending = build = self.building.pop(template)
        lower_failure = self.schedule.lower_failure(template)
        if BROKEN in build.inputs or lower_failure:
            error = lower_failure or ClonepoolError(f"error: {build.inputs}")
            if self.schedule.is_disturbed(template):
                self.schedule.disturbed(template, self.now)
                return
            self.carry_out(self.schedule.failed(template, error, str(error), self.now, tried=False))
            return
        changed: list[str] = []
        while self.schedule.take_edited(template):
            changed = [] if self.inputs(template) == build.inputs else ["edited"]
        self.serial += 1
        short = f"g{self.serial}" if build.anew else f"({build.inputs})"
        self.built_inputs = build.inputs
        self.carry_out(self.schedule.built(template, (build.inputs, short), changed, self.now))

    # What happens -------------------------------------------------------------------------

    @rule(template=NAMES, text=st.sampled_from(["1", "2", "3", BROKEN]), seen=st.booleans())
    def edit(self, template: str, text: str, seen: bool) -> None:
        self.texts[template] = text
        self.untold.add(template)
        if seen:
            self.look((template,))
        self.plan()

    @rule(template=NAMES, anew=st.booleans())
    def ask(self, template: str, anew: bool) -> None:
        self.serial += 1
        self.unanswered[self.serial] = template
        self.carry_out(self.schedule.ask(template, self.serial, self.now, anew=anew))
        self.plan()

    @rule(template=NAMES, damaged=st.booleans())
    def lose(self, template: str, damaged: bool) -> None:
        was_ready = self.condition[template] == "ready"
        decisions = self.schedule.lost(template, self.now, damaged=damaged)
        assert bool(decisions) is was_ready
        self.carry_out(decisions)
        self.plan()

    @precondition(lambda self: self.building)
    @rule(data=st.data())
    def end_a_build(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(sorted(self.building))))
        self.plan()

    @precondition(lambda self: self.building)
    @rule(data=st.data())
    def postpone_a_build(self, data: st.DataObject) -> None:
        template = data.draw(st.sampled_from(sorted(self.building)))
        del self.building[template]
        error = ClonepoolError("away")
        self.carry_out(self.schedule.postponed(template, error, self.now))
        self.plan()

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.5, 6.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.schedule.next_timer(self.now)) is not None and due <= until:
            self.now = due
            self.plan()
        self.now = until
        self.plan()

    @rule()
    def settle(self) -> None:
        """Let all builds end and time pass: whatever happened, it comes to rest and is right."""
        self.look(tuple(self.untold))
        for _ in range(200):
            self.plan()
            due = self.schedule.next_timer(self.now)
            if self.building:
                self.finish(min(self.building))
            elif due is not None:
                self.now = due
            else:
                break
        else:
            raise AssertionError(f"no rest: {self.building} {self.condition}")
        assert not self.unanswered
        assert self.tidied
        for name in RULES:
            self.is_what_the_files_say(name)

    def is_what_the_files_say(self, name: str) -> None:
        if self.condition[name] == "ready":
            inputs = self.served[name][0]
            assert inputs == self.inputs(name) or RULES[name].serves_previous
        else:
            lower = RULES[name].extends
            assert self.condition[name] == "failed"
            assert BROKEN in self.texts[name] or (lower and self.condition[lower] == "failed")

    # What holds ---------------------------------------------------------------------------

    @invariant()
    def nothing_stale_is_granted_of_what_was_looked_at(self) -> None:
        for name, (inputs, _) in self.served.items():
            if self.condition[name] == "ready" and name not in self.untold:
                below = RULES[name].extends
                current = not below or self.condition[below] == "ready"
                if current and not RULES[name].serves_previous:
                    assert inputs == self.inputs(name)


TestBuildSchedule = Machine.TestCase
TestBuildSchedule.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
