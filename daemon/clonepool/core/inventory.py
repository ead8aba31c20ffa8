"""The clones of one pool: which there are, in which state, and what has to be done as they move.

Counts, moves, and the decisions that a move entails; no policy: which clone moves, and when, is the
pool's matter.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from clonepool.core.clone import Clone, CloneEvent, State
from clonepool.core.deadlines import Deadlines
from clonepool.core.decisions import Adopt, CreateClone, Drop, Park
from clonepool.core.naming import Identity, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clonepool.core.budget import Budget
    from clonepool.core.decisions import Decision
    from clonepool.core.naming import Namer, Serials

_PARKED_STATES = (State.PARKING, State.PARKED, State.ADOPTING)


class Inventory:
    """Clones by name; each takes a place of the budget as long as its database may exist.

    Args:
        template: whose clones these are.
        budget: counts the places.
        namer: makes names.
        serials: gives each clone its number.
        changed: called when another number of clones is in some state.

    Attributes:
        count: clones by state, so that no acquire has to count them.
        kept_until: when each kept clone is to go, in monotonic seconds.
    """

    def __init__(
        self,
        template: str,
        budget: Budget,
        namer: Namer,
        serials: Serials,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.count: dict[State, int] = dict.fromkeys(State, 0)
        self.kept_until: Deadlines[str] = Deadlines()
        self._template = template
        self._budget = budget
        self._namer = namer
        self._serials = serials
        self._changed = changed
        self._clones: dict[str, Clone] = {}
        self._by_state: dict[State, dict[str, Clone]] = {state: {} for state in State}
        self._ready: OrderedDict[str, Clone] = OrderedDict()  # the one used last at the end
        self._fresh: OrderedDict[str, Clone] = OrderedDict()

    # Questions ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._clones)

    @property
    def ready(self) -> int:
        """How many could be granted now."""
        return len(self._ready)

    @property
    def fresh(self) -> int:
        """How many of the ready clones were never leased."""
        return len(self._fresh)

    @property
    def coming(self) -> int:
        """How many are being made or adopted."""
        return self.count[State.CREATING] + self.count[State.ADOPTING]

    @property
    def parked(self) -> int:
        """How many clones are parked, or being parked or adopted."""
        return sum(self.count[state] for state in _PARKED_STATES)

    def names(self, *states: State) -> set[str]:
        """Return the databases that are in these states."""
        return {name for state in states for name in self._by_state[state]}

    def state(self, name: str) -> State:
        """Return where the clone is in its life."""
        return self._clones[name].state

    def is_used(self, name: str) -> bool:
        """Say whether the clone was leased before."""
        return self._clones[name].used

    def is_of(self, name: str, generation: str) -> bool:
        """Say whether it is a clone of that generation, as far as that is known."""
        return self._clones[name].generation in ("", generation)

    # Moves --------------------------------------------------------------------------------

    def create(self, generation: str) -> CreateClone:
        """Begin a clone under a name that no clone had before."""
        identity = Identity(Kind.CLONE, self._template, generation, self._serials.next())
        name = self._namer.name(identity)
        self.enter(name, generation=generation)
        return CreateClone(self._template, generation, name)

    def enter(
        self,
        name: str,
        state: State = State.CREATING,
        *,
        used: bool = False,
        generation: str = "",
    ) -> None:
        """Add a clone that exists or is about to, `used` if it was leased before."""
        clone = self._clones[name] = Clone(name, state, used=used, generation=generation)
        self._by_state[state][name] = clone
        self.count[state] += 1
        self._budget.used += 1
        self._changed()

    def move(self, name: str, *events: CloneEvent) -> None:
        """Apply events to a clone that is not among the ready ones."""
        for event in events:
            self._move(self._clones[name], event)

    def add_ready(self, name: str, event: CloneEvent) -> None:
        """Add a clone that became ready, behind those that are ready already."""
        clone = self._clones[name]
        self._move(clone, event)
        clone.used = clone.used or event is CloneEvent.REWIND
        self._ready[name] = clone
        if not clone.used:
            self._fresh[name] = clone
        self._budget.idle += 1

    def take(self, event: CloneEvent, *, fresh: bool = False) -> str:
        """Take the ready clone that became ready last; with `fresh`, of fresh ones only.

        The last one is the warmest. The others stay idle, which shows that they are not needed.
        """
        name = next(reversed(self._ready))
        if fresh and name not in self._fresh:
            name = next(iter(self._fresh))
        self._remove_ready(name)
        self._move(self._clones[name], event)
        return name

    def keep(self, name: str, until: float) -> None:
        """Set a clone aside that is no longer leased, until then in monotonic seconds."""
        self._move(self._clones[name], CloneEvent.KEEP)
        self.kept_until.set(name, until)

    def forget(self, name: str) -> None:
        """Remove a clone whose database is gone, or no longer this daemon's."""
        clone = self._clones.pop(name)
        self._move(clone, CloneEvent.VANISH)
        del self._by_state[State.GONE][name]
        self._budget.used -= 1

    # Moves that are work ------------------------------------------------------------------

    def drop(self, name: str) -> Drop:
        """Begin to drop a clone."""
        if self._clones[name].state is State.READY:
            self._remove_ready(name)
        self.kept_until.discard(name)
        self._move(self._clones[name], CloneEvent.DROP)
        return Drop(self._template, name)

    def drop_idlest(self) -> list[Drop]:
        """Drop the ready clone that has been unused for longest, if there is one."""
        return [self.drop(next(iter(self._ready)))] if self._ready else []

    def drop_ready(self) -> list[Drop]:
        """Drop all ready clones, the most recently used one last."""
        return [self.drop(name) for name in list(self._ready)]

    def drop_parked(self) -> list[Drop]:
        """Drop all parked clones."""
        return [self.drop(name) for name in list(self._by_state[State.PARKED])]

    def drop_kept(self, most: int) -> list[Drop]:
        """Drop the clones that have been kept for longest, down to a number."""
        kept = list(self._by_state[State.KEPT])
        return [self.drop(name) for name in kept[: max(0, len(kept) - most)]]

    def drop_overdue(self, now: float) -> list[Drop]:
        """Drop the kept clones whose time is over."""
        return [self.drop(name) for name in self.kept_until.pop_due(now)]

    def park_ready(self) -> list[Park]:
        """Begin to seal all ready clones, the one used last first."""
        names = [self.take(CloneEvent.PARK) for _ in range(self.ready)]
        return [Park(self._template, name, self.is_used(name)) for name in names]

    def end_parking(self, name: str) -> list[Decision]:
        """Mark a sealed clone as parked for the next daemon."""
        self._move(self._clones[name], CloneEvent.SEAL)
        self.forget(name)
        return []

    def adopt_parked(self, generation: str, most: int) -> list[Adopt | Drop]:
        """Adopt the parked clones of this generation, and drop the others.

        Args:
            generation: that is cloned now.
            most: how many clones there may be in all.
        """
        parked = list(self._by_state[State.PARKED].values())
        room = most - len(self) + len(parked)
        decisions: list[Adopt | Drop] = []
        for clone in parked:
            if clone.generation == generation and room > 0:
                room -= 1
                self._move(clone, CloneEvent.ADOPT)
                decisions.append(Adopt(self._template, generation, clone.name, clone.used))
            else:
                decisions.append(self.drop(clone.name))
        return decisions

    def lose(self, names: Iterable[str]) -> None:
        """Remove the ready or kept clones that others have dropped or renamed."""
        there = (State.READY, State.KEPT)
        for name in [name for name in names if self._state_of(name) in there]:
            self.drop(name)
            self.forget(name)

    # Inside -------------------------------------------------------------------------------

    def _state_of(self, name: str) -> State:
        clone = self._clones.get(name)
        return State.GONE if clone is None else clone.state

    def _remove_ready(self, name: str) -> None:
        del self._ready[name]
        self._fresh.pop(name, None)
        self._budget.idle -= 1

    def _move(self, clone: Clone, event: CloneEvent) -> None:
        before = clone.state
        after = clone.apply(event)
        del self._by_state[before][clone.name]
        self._by_state[after][clone.name] = clone
        self.count[before] -= 1
        self.count[after] += 1
        self._changed()
