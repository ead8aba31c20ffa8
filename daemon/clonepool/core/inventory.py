"""The clones of one pool: which there are, in which state, and what is in reach.

Counts and moves, no policy: who gets a clone and when one is made is the pool's matter.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from clonepool.core.clone import Clone, Event, State

if TYPE_CHECKING:
    from clonepool.core.budget import Budget


class Inventory:
    """Clones by name; each takes a place of the budget as long as its database may exist.

    Attributes:
        count: clones by state, so that no acquire has to count them.
        kept: names of kept clones and until when, in monotonic seconds; the oldest first.
        fresh: how many of the ready ones nobody had before.
        parked: names of clones found parked, and their generations, until they are adopted.
    """

    def __init__(self, budget: Budget) -> None:
        self.count: Counter[State] = Counter()
        self.kept: dict[str, float] = {}
        self.parked: dict[str, str] = {}
        self.fresh = 0
        self._budget = budget
        self._clones: dict[str, Clone] = {}
        self._ready: deque[Clone] = deque()
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._clones)

    @property
    def ready(self) -> int:
        """How many could be granted now."""
        return len(self._ready)

    @property
    def coming(self) -> int:
        """How many are being made or adopted."""
        return self.count[State.CREATING] + self.count[State.PARKED] - len(self.parked)

    def names(self, *states: State) -> set[str]:
        """Return the databases that are in these states."""
        return {name for name, clone in self._clones.items() if clone.state in states}

    def state(self, name: str) -> State:
        """Return where the clone is in its life."""
        return self._clones[name].state

    def is_used(self, name: str) -> bool:
        """Say whether somebody had the clone before."""
        return name in self._used

    def enter(self, name: str, state: State = State.CREATING, *, used: bool = False) -> None:
        """Add a clone that exists or is about to, `used` when somebody had it before."""
        if used:
            self._used.add(name)
        self._clones[name] = Clone(name, state)
        self.count[state] += 1
        self._budget.used += 1

    def move(self, name: str, *events: Event) -> None:
        """Apply events to a clone that is not among the ready ones."""
        for event in events:
            self._move(self._clones[name], event)

    def shelve(self, name: str, event: Event) -> None:
        """Put a clone that became ready behind those that are."""
        clone = self._clones[name]
        self._move(clone, event)
        self._ready.append(clone)
        self._budget.idle += 1
        if event is Event.REWIND:
            self._used.add(name)
        self.fresh += name not in self._used

    def take(self, event: Event, *, fresh: bool = False) -> str:
        """Take the ready clone off the shelf that was put there last, of fresh ones alone if so.

        The last one is the warmest, and the others come to show that nobody needs them.
        """
        clone = self._ready[-1]
        if fresh and clone.name in self._used:
            clone = next(ready for ready in self._ready if ready.name not in self._used)
        self._unshelve(clone)
        self._move(clone, event)
        return clone.name

    def idlest(self) -> str:
        """Return the ready clone that nobody has used for longest."""
        return self._ready[0].name

    def discard(self, name: str) -> None:
        """Let a clone begin to go."""
        clone = self._clones[name]
        if clone.state is State.READY:
            self._unshelve(clone)
        self.kept.pop(name, None)
        self.parked.pop(name, None)
        self._move(clone, Event.DROP)

    def forget(self, name: str) -> None:
        """Strike out a clone whose database is gone, or no concern of ours any more."""
        clone = self._clones.pop(name)
        self._move(clone, Event.VANISH)
        self._used.discard(name)
        self._budget.used -= 1

    def _unshelve(self, clone: Clone) -> None:
        if clone is self._ready[-1]:
            self._ready.pop()
        else:
            self._ready.remove(clone)
        self.fresh -= clone.name not in self._used
        self._budget.idle -= 1

    def _move(self, clone: Clone, event: Event) -> None:
        before = clone.state
        self.count[clone.apply(event)] += 1
        self.count[before] -= 1
