"""One template: its conditions, the events that change it, and the table of what follows what.

Everything that changes the condition of a template goes through `Template.apply`, and so through
`TRANSITIONS`; no other line assigns a condition. The table holds for every template, whether it is
built from the configuration, copied from a lease or filled by a client. When a template is built is
decided in `build_schedule`; what becomes of its clones and of the requests for them, in `pool`.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, assert_never

from clonepool.core import refusals
from clonepool.core.clone import IllegalTransitionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.errors import ClonepoolError


class Condition(StrEnum):
    """Whether a template can be leased.

    `building`: there is no generation on the server to copy. Clones of a generation that was lost
    are still granted. `ready`: clones are made and granted. `stale`: the sources have changed since
    the generation was built; its clones are granted only to requests that accept that. `failed`:
    the last build failed, and requests are refused with its error. `draining`: no new lease is
    granted; builds continue; `Template.underlying` says what the drain goes back to. `stopping`:
    the daemon is stopping. `retired`: a client's template that has been given up.
    """

    BUILDING = "building"
    READY = "ready"
    STALE = "stale"
    FAILED = "failed"
    DRAINING = "draining"
    STOPPING = "stopping"
    RETIRED = "retired"


class TemplateEvent(StrEnum):
    """What can happen to a template."""

    BUILT = "built"
    """A generation is on the server, new or found again."""
    FAIL = "fail"
    """The build failed, or the generation is gone and cannot be built again."""
    CHANGE = "change"
    """A source has changed, or another generation was requested."""
    LOSE = "lose"
    """The generation is gone from the server, or damaged, and is to be built again."""
    DRAIN = "drain"
    LIFT = "lift"
    """The drain is lifted."""
    STOP = "stop"
    RETIRE = "retire"


UNDERLYING = None
"""In the table: the condition that the drain has covered."""

TRANSITIONS: Mapping[Condition, Mapping[TemplateEvent, Condition | None]] = MappingProxyType(
    {
        Condition.BUILDING: {
            TemplateEvent.BUILT: Condition.READY,
            TemplateEvent.FAIL: Condition.FAILED,
            TemplateEvent.CHANGE: Condition.STALE,
            TemplateEvent.DRAIN: Condition.DRAINING,
            TemplateEvent.STOP: Condition.STOPPING,
            TemplateEvent.RETIRE: Condition.RETIRED,
        },
        Condition.READY: {
            TemplateEvent.BUILT: Condition.READY,
            TemplateEvent.FAIL: Condition.FAILED,
            TemplateEvent.CHANGE: Condition.STALE,
            TemplateEvent.LOSE: Condition.BUILDING,
            TemplateEvent.DRAIN: Condition.DRAINING,
            TemplateEvent.STOP: Condition.STOPPING,
            TemplateEvent.RETIRE: Condition.RETIRED,
        },
        Condition.STALE: {
            TemplateEvent.BUILT: Condition.READY,
            TemplateEvent.FAIL: Condition.FAILED,
            TemplateEvent.CHANGE: Condition.STALE,
            TemplateEvent.DRAIN: Condition.DRAINING,
            TemplateEvent.STOP: Condition.STOPPING,
            TemplateEvent.RETIRE: Condition.RETIRED,
        },
        Condition.FAILED: {
            TemplateEvent.BUILT: Condition.READY,
            TemplateEvent.FAIL: Condition.FAILED,
            TemplateEvent.CHANGE: Condition.STALE,
            TemplateEvent.DRAIN: Condition.DRAINING,
            TemplateEvent.STOP: Condition.STOPPING,
            TemplateEvent.RETIRE: Condition.RETIRED,
        },
        # Events that concern the build change the underlying condition, by the rows above.
        Condition.DRAINING: {
            TemplateEvent.BUILT: Condition.DRAINING,
            TemplateEvent.FAIL: Condition.DRAINING,
            TemplateEvent.CHANGE: Condition.DRAINING,
            TemplateEvent.LOSE: Condition.DRAINING,
            TemplateEvent.LIFT: UNDERLYING,
            TemplateEvent.STOP: Condition.STOPPING,
            TemplateEvent.RETIRE: Condition.RETIRED,
        },
        Condition.STOPPING: {TemplateEvent.RETIRE: Condition.RETIRED},
        Condition.RETIRED: {},
    }
)

COVERED = (Condition.BUILDING, Condition.READY, Condition.STALE, Condition.FAILED)
"""The conditions that a drain can cover, and goes back to when it is lifted."""
_OVER = (Condition.STOPPING, Condition.RETIRED)


class Template:
    """What is known of one template.

    Events that cannot change anything are not in the table: the drain of a template that is
    draining, or a build that ends after the daemon began to stop. A caller that may meet one asks
    `takes` first.

    Attributes:
        name: by which it is leased.
        condition: changed only by `apply`.
        underlying: the condition, or while it is draining the one to which lifting the drain goes
            back.
        generation: the short name of the generation that is cloned; empty before the first.
        failure: why the last build failed, until something else is known.
        obstacle: why the build under way cannot continue at the moment; it is tried again.
    """

    __slots__ = ("condition", "failure", "generation", "name", "obstacle", "underlying")

    def __init__(self, name: str, condition: Condition = Condition.BUILDING) -> None:
        self.name = name
        drained = condition is Condition.DRAINING
        self.condition = condition
        self.underlying: Condition = Condition.BUILDING if drained else condition
        self.generation = ""
        self.failure: ClonepoolError | None = None
        self.obstacle: ClonepoolError | None = None

    def __repr__(self) -> str:
        return f"<Template {self.name} {self.condition}>"

    # Events -------------------------------------------------------------------------------

    def takes(self, event: TemplateEvent) -> bool:
        """Say whether `apply` allows the event now."""
        steps = TRANSITIONS[self.condition]
        if self.is_draining and steps.get(event) is Condition.DRAINING:
            return event in TRANSITIONS[self.underlying]
        return event in steps

    def apply(
        self,
        event: TemplateEvent,
        *,
        generation: str = "",
        failure: ClonepoolError | None = None,
    ) -> Condition:
        """Move to the condition that follows the event and return it.

        Args:
            event: what happened.
            generation: with `built`, the short name of the generation.
            failure: with `fail`, why.

        Raises:
            IllegalTransitionError: the table has no such step; nothing changed.
        """
        if not self.takes(event):
            message = f"template {self.name} is {self.condition}: {event} is not allowed"
            raise IllegalTransitionError(message)
        after = TRANSITIONS[self.condition][event]
        if after is not Condition.DRAINING:
            self.condition = self.underlying = after or self.underlying
        elif self.is_draining:
            self.underlying = TRANSITIONS[self.underlying][event] or self.underlying
        else:
            self.condition = after
        self._note(event, generation, failure)
        return self.condition

    def postpone(self, obstacle: ClonepoolError | None) -> None:
        """Note why the build cannot continue for the moment; None when it continues."""
        self.obstacle = obstacle if self.is_being_built else None

    # Questions ----------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be granted or built."""
        return self.condition in _OVER

    @property
    def is_draining(self) -> bool:
        """Whether new leases are refused until the drain is lifted."""
        return self.condition is Condition.DRAINING

    @property
    def is_being_built(self) -> bool:
        """Whether requests wait for a build, drained or not."""
        return self.underlying in (Condition.BUILDING, Condition.STALE)

    @property
    def is_stale(self) -> bool:
        """Whether ready clones are granted only to requests that accept a stale generation."""
        return self.underlying is Condition.STALE

    @property
    def is_granting(self) -> bool:
        """Whether ready clones may be granted to requests in the queue.

        In a drain these are leases that are being reset: new requests are refused, see `refusal`.
        """
        return self.underlying in (Condition.BUILDING, Condition.READY)

    @property
    def can_create(self) -> bool:
        """Whether there is a generation to make clones of; a drain does not change that."""
        return self.underlying is Condition.READY

    @property
    def phase(self) -> Condition:
        """What the protocol calls the template's phase: it knows no drain and nothing stale."""
        return Condition.BUILDING if self.is_stale else self.underlying

    def refusal(self, *, continues: bool = False) -> ClonepoolError | None:
        """Return why a request cannot even wait; None when it can.

        Args:
            continues: the request is for a clean clone for a lease that continues, which a drain
                leaves alone.
        """
        condition = self.condition
        match condition:
            case Condition.STOPPING:
                return refusals.shutting_down()
            case Condition.RETIRED:
                return refusals.retired(self.name)
            case Condition.DRAINING if self.underlying is not Condition.FAILED:
                return None if continues else refusals.draining(self.name)
            case Condition.FAILED | Condition.DRAINING:
                return refusals.template_failed(self.name, self.failure)
            case Condition.BUILDING | Condition.READY | Condition.STALE:
                return None
            case _:
                assert_never(condition)

    # Inside -------------------------------------------------------------------------------

    def _note(self, event: TemplateEvent, generation: str, failure: ClonepoolError | None) -> None:
        """Keep what the event says of the generation and of the last build."""
        if event is TemplateEvent.BUILT:
            self.generation, self.failure, self.obstacle = generation, None, None
        elif event is TemplateEvent.FAIL:
            self.failure, self.obstacle = failure, None
        elif event is TemplateEvent.CHANGE:
            self.failure = None


def state_diagram() -> str:
    """Return the transition table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", f"    [*] --> {Condition.BUILDING}"]
    for condition, steps in TRANSITIONS.items():
        for event, after in steps.items():
            targets = COVERED if after is UNDERLYING else (after,)
            lines += [f"    {condition} --> {target}: {event}" for target in targets]
    lines.append(f"    {Condition.RETIRED} --> [*]")
    return "\n".join(lines)
