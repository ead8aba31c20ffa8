"""The timer is set as rarely as possible, and never fires too late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from clonepool.service.deadline_timer import DeadlineTimer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Room:
    """A timer on a loop whose time the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: float | None = None
        self.went_off: list[float] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.set_count = 0
        loop = cast("asyncio.AbstractEventLoop", self)
        self.timer = DeadlineTimer(loop, lambda: self.now, lambda: self.due, self._go_off)

    def call_later(self, seconds: float, what: Callable[[], None]) -> Any:
        entry = (self.now + seconds, what)
        self.timers.append(entry)
        self.set_count += 1
        return SimpleNamespace(cancel=lambda: self.timers.remove(entry))

    def set(self, due: float | None) -> None:
        self.due = due
        self.timer.set()

    def pass_time(self, until: float) -> None:
        while self.timers and min(self.timers)[0] <= until:
            entry = min(self.timers)
            self.timers.remove(entry)
            self.now = entry[0]
            entry[1]()
        self.now = until

    def _go_off(self) -> None:
        self.went_off.append(self.now)
        self.due = None


def test_it_goes_off_when_something_is_due() -> None:
    room = Room()
    room.set(None)
    room.set(5.0)
    room.pass_time(9.0)
    assert room.went_off == [5.0]
    assert not room.timers


def test_what_is_due_later_than_thought_leaves_the_timer_alone_until_it_goes_off() -> None:
    room = Room()
    for due in range(5, 100):
        room.set(float(due))
    assert room.set_count == 1
    room.pass_time(200.0)
    assert room.went_off == [99.0]
    assert room.set_count == 2


def test_what_is_due_earlier_than_thought_is_met() -> None:
    room = Room()
    room.set(50.0)
    room.set(3.0)
    room.pass_time(60.0)
    assert room.went_off == [3.0]


def test_a_closed_timer_never_goes_off() -> None:
    room = Room()
    room.set(5.0)
    room.timer.close()
    room.set(6.0)
    room.pass_time(9.0)
    assert room.went_off == []
