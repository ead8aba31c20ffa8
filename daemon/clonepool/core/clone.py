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

    `parked` is a ready clone that lies sealed between two daemons: left by one that stopped, to be
    adopted by the next.
    """

    CREATING = "creating"
    READY = "ready"
    LEASED = "leased"
    RETURNED = "returned"
    RECYCLING = "recycling"
    KEPT = "kept"
    PARKED = "parked"
    DROPPING = "dropping"
    GONE = "gone"


class Event(StrEnum):
    """What can happen to a clone."""

    CREATE = "create"
    GRANT = "grant"
    RETURN = "return"
    KEEP = "keep"
    RECYCLE = "recycle"
    REWIND = "rewind"
    PARK = "park"
    ADOPT = "adopt"
    DROP = "drop"
    VANISH = "vanish"


TRANSITIONS: Mapping[State, Mapping[Event, State]] = MappingProxyType(
    {
        State.CREATING: {Event.CREATE: State.READY, Event.DROP: State.DROPPING},
        State.READY: {
            Event.GRANT: State.LEASED,
            Event.PARK: State.PARKED,
            Event.DROP: State.DROPPING,
        },
        State.LEASED: {Event.RETURN: State.RETURNED, Event.KEEP: State.KEPT},
        State.RETURNED: {
            Event.RECYCLE: State.RECYCLING,
            Event.KEEP: State.KEPT,
            Event.DROP: State.DROPPING,
        },
        State.RECYCLING: {
            Event.REWIND: State.READY,
            Event.KEEP: State.KEPT,
            Event.DROP: State.DROPPING,
        },
        State.KEPT: {Event.DROP: State.DROPPING},
        State.PARKED: {
            Event.ADOPT: State.READY,
            Event.DROP: State.DROPPING,
            Event.VANISH: State.GONE,
        },
        State.DROPPING: {Event.VANISH: State.GONE},
        State.GONE: {},
    }
)


class IllegalTransitionError(Exception):
    """An event that the table does not allow; the clone is unchanged. Always our own fault."""


class Clone:
    """One database of the pool.

    Attributes:
        name: the database's name, unique for ever.
        state: changed by `apply` alone.
    """

    __slots__ = ("name", "state")

    def __init__(self, name: str, state: State = State.CREATING) -> None:
        self.name = name
        self.state = state

    def __repr__(self) -> str:
        return f"<Clone {self.name} {self.state}>"

    def apply(self, event: Event) -> State:
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
