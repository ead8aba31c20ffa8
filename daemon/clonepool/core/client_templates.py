"""The templates that clients made: how many there may be, and when one is given up.

Events in, decisions out. Such a template has a `Template` as every other one, but no recipe makes
it again. So it stays until it has been unused for long, or until another one needs its place. How
a client makes one is in `fills` and in the service.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from clonepool.core import refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AGAIN_SECONDS = 30.0
"""Seconds until a template is looked at again that is overdue and still in use."""


class Method(StrEnum):
    """How a client makes a template: the method of the protocol."""

    DEFINE = "define"
    SNAPSHOT = "snapshot"


class Use(msgspec.Struct, frozen=True):
    """How a template is used.

    Attributes:
        last: when a lease of it began last, in monotonic seconds; 0 for never.
        is_idle: whether it has no leases, waiters or fills.
    """

    last: float
    is_idle: bool


class ClientTemplateBook:
    """The names of the templates that clients made or are making.

    Args:
        most: how many there may be.
        unused_for: seconds after which an unused template is given up.
        use_of: returns how a template is used.
    """

    def __init__(self, most: int, unused_for: float, use_of: Callable[[str], Use]) -> None:
        self._most = most
        self._unused_for = unused_for
        self._use_of = use_of
        self._entered_at: dict[str, float] = {}
        self._being_made: set[str] = set()
        self._given_up: set[str] = set()

    def __contains__(self, template: str) -> bool:
        return template in self._entered_at

    def begin(self, template: str) -> list[str]:
        """Take a place for a template that is about to be made, until `end` is called.

        Returns the templates that are given up for it: those that were unused for longest.

        Raises:
            ClientLimitError: all places are in use; nothing changed.
        """
        others = (self._being_made | set(self._living())) - {template}
        surplus = max(0, len(others) + 1 - self._most)
        idle = [name for name in self._by_use() if name != template and self._is_idle(name)]
        if len(idle) < surplus:
            raise refusals.too_many_templates(len(others))
        self._being_made.add(template)
        return [self._give_up(name) for name in idle[:surplus]]

    def end(self, template: str) -> None:
        """The template is made, or will not be."""
        self._being_made.discard(template)

    def enter(self, template: str, now: float) -> None:
        """The template is there, or there again with other contents."""
        self._entered_at[template] = now

    def is_given_up(self, template: str) -> bool:
        """Say whether a template is given up, and not gone yet."""
        return template in self._given_up

    def remove(self, template: str) -> None:
        """A template that was given up is gone."""
        self._entered_at.pop(template, None)
        self._given_up.discard(template)

    def expire(self, now: float) -> list[str]:
        """Return the templates that are given up now, because they were unused for too long."""
        overdue = [name for name in self._by_use() if self._due_at(name) <= now]
        return [self._give_up(name) for name in overdue if self._is_idle(name)]

    def next_timer(self, now: float) -> float | None:
        """When `expire` may have something to do next, in monotonic seconds."""
        due = [self._due_at(name) for name in self._living()]
        return min((at if at > now else now + AGAIN_SECONDS for at in due), default=None)

    # Inside -------------------------------------------------------------------------------

    def _living(self) -> Iterator[str]:
        return (name for name in self._entered_at if name not in self._given_up)

    def _by_use(self) -> list[str]:
        """Return the living templates, the one unused for longest first."""
        return sorted(self._living(), key=self._used_at)

    def _used_at(self, template: str) -> float:
        return max(self._entered_at[template], self._use_of(template).last)

    def _due_at(self, template: str) -> float:
        return self._used_at(template) + self._unused_for

    def _is_idle(self, template: str) -> bool:
        return template not in self._being_made and self._use_of(template).is_idle

    def _give_up(self, template: str) -> str:
        self._given_up.add(template)
        return template
