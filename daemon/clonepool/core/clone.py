"""One clone: its states, the events that move it, and the table of what may follow what.

Everything that changes the state of a clone goes through `Clone.apply` and so through
`TRANSITIONS`; no other line assigns a state. (The literal table is h11's idea.)
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """Where a clone is in its life.

    `creating`: it is being copied. `ready`: clean, warm and not leased. `leased`: a lease has it,
    or had it until a moment ago and is being reset. `recycling`: it was returned, and is being made
    good. `kept`: it is set aside for inspection. `parking`: a stopping daemon seals it for the next
    one. `parked`: it is sealed between two daemons. `adopting`: the next daemon checks and opens
    it. `dropping`: its database is being removed. `gone`: there is no such database, or it is no
    longer this daemon's.
    """

    CREATING = "creating"
    READY = "ready"
    LEASED = "leased"
    RECYCLING = "recycling"
    KEPT = "kept"
    PARKING = "parking"
    PARKED = "parked"
    ADOPTING = "adopting"
    DROPPING = "dropping"
    GONE = "gone"


class CloneEvent(StrEnum):
    """What can happen to a clone."""

    CREATE = "create"
    GRANT = "grant"
    RETURN = "return"
    KEEP = "keep"
    REWIND = "rewind"
    PARK = "park"
    SEAL = "seal"
    ADOPT = "adopt"
    OPEN = "open"
    DROP = "drop"
    VANISH = "vanish"


TRANSITIONS: Mapping[State, Mapping[CloneEvent, State]] = MappingProxyType(
    {
        State.CREATING: {CloneEvent.CREATE: State.READY, CloneEvent.DROP: State.DROPPING},
        State.READY: {
            CloneEvent.GRANT: State.LEASED,
            CloneEvent.PARK: State.PARKING,
            CloneEvent.DROP: State.DROPPING,
        },
        State.LEASED: {CloneEvent.RETURN: State.RECYCLING, CloneEvent.KEEP: State.KEPT},
        State.RECYCLING: {
            CloneEvent.REWIND: State.READY,
            CloneEvent.KEEP: State.KEPT,
            CloneEvent.DROP: State.DROPPING,
        },
        State.KEPT: {CloneEvent.DROP: State.DROPPING},
        State.PARKING: {CloneEvent.SEAL: State.PARKED, CloneEvent.DROP: State.DROPPING},
        State.PARKED: {
            CloneEvent.ADOPT: State.ADOPTING,
            CloneEvent.DROP: State.DROPPING,
            CloneEvent.VANISH: State.GONE,
        },
        State.ADOPTING: {CloneEvent.OPEN: State.READY, CloneEvent.DROP: State.DROPPING},
        State.DROPPING: {CloneEvent.VANISH: State.GONE},
        State.GONE: {},
    }
)


class IllegalTransitionError(Exception):
    """An event that the table does not allow; nothing changed. Always a mistake of the daemon."""


class Clone:
    """One database of the pool.

    Attributes:
        name: the database's name, never used again.
        state: changed only by `apply`.
        used: whether somebody had the clone before.
        generation: of what it is a copy, as far as that was told.
    """

    __slots__ = ("generation", "name", "state", "used")

    def __init__(
        self,
        name: str,
        state: State = State.CREATING,
        *,
        used: bool = False,
        generation: str = "",
    ) -> None:
        self.name = name
        self.state = state
        self.used = used
        self.generation = generation

    def __repr__(self) -> str:
        return f"<Clone {self.name} {self.state}>"

    def apply(self, event: CloneEvent) -> State:
        """Move to the state that follows `event` and return it.

        Raises:
            IllegalTransitionError: the table has no such step; nothing changed.
        """
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            message = f"clone {self.name} is {self.state}: {event} is not allowed"
            raise IllegalTransitionError(message) from None
        return self.state


def state_diagram() -> str:
    """Return the transition table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.CREATING}"]
    for state, steps in TRANSITIONS.items():
        lines += [f"    {state} --> {after}: {event}" for event, after in steps.items()]
    lines.append(f"    {State.GONE} --> [*]")
    return "\n".join(lines)
