"""Which client fills a template that clients define, while others wait: events in, decisions out.

A template has one fill at a time. A fill ends when its client finalizes it, gives it up, goes away
or takes too long; in all cases but the first the next waiter fills a new database, and what was
filled so far is discarded. Everything that changes the stage of a fill goes through `Fill.apply`,
and so through `TRANSITIONS`. Which templates there are, and when they are given up, is in
`client_templates`.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from clonepool.core import refusals
from clonepool.core.clone import IllegalTransitionError
from clonepool.core.queue import WaitQueue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.core.decisions import Request
    from clonepool.errors import ClonepoolError


class Stage(StrEnum):
    """How far a fill is.

    `preparing`: the client's database is being made. `unwanted`: it is, but its client has gone.
    `filling`: the client has it. `sealing`: the client has finalized it. `over`: the template is
    there, or the database is being discarded.
    """

    PREPARING = "preparing"
    UNWANTED = "unwanted"
    FILLING = "filling"
    SEALING = "sealing"
    OVER = "over"


class FillEvent(StrEnum):
    """What can happen to a fill."""

    PREPARE = "prepare"
    """The database is there."""
    LEAVE = "leave"
    """The client has gone away or taken its request back."""
    FINALIZE = "finalize"
    GIVE_UP = "give up"
    """The client gives up, or its time is over."""
    SEAL = "seal"
    """The template is there."""
    FAIL = "fail"
    """The database could not be made, or not be sealed."""


TRANSITIONS: Mapping[Stage, Mapping[FillEvent, Stage]] = MappingProxyType(
    {
        Stage.PREPARING: {
            FillEvent.PREPARE: Stage.FILLING,
            FillEvent.LEAVE: Stage.UNWANTED,
            FillEvent.FAIL: Stage.OVER,
        },
        Stage.UNWANTED: {FillEvent.PREPARE: Stage.OVER, FillEvent.FAIL: Stage.OVER},
        Stage.FILLING: {
            FillEvent.FINALIZE: Stage.SEALING,
            FillEvent.LEAVE: Stage.OVER,
            FillEvent.GIVE_UP: Stage.OVER,
        },
        # What was finalized continues without its client.
        Stage.SEALING: {FillEvent.SEAL: Stage.OVER, FillEvent.FAIL: Stage.OVER},
        Stage.OVER: {},
    }
)


class Fill(msgspec.Struct, eq=False):
    """One try to fill a template.

    Attributes:
        template: its name.
        request: of the client that fills it; its token names the fill.
        stage: changed only by `apply`.
        expires_at: when the client's time is over, in monotonic seconds; None while no time counts.
    """

    template: str
    request: Request
    stage: Stage = Stage.PREPARING
    expires_at: float | None = None

    def apply(self, event: FillEvent) -> Stage:
        """Move to the stage that follows the event and return it.

        Raises:
            IllegalTransitionError: the table has no such step; nothing changed.
        """
        try:
            self.stage = TRANSITIONS[self.stage][event]
        except KeyError:
            message = f"the fill of {self.template} is {self.stage}: {event} is not allowed"
            raise IllegalTransitionError(message) from None
        self.expires_at = None
        return self.stage


class Prepare(msgspec.Struct, frozen=True):
    """Make a database for the client to fill, then call `prepared` or `not_prepared`."""

    fill: Fill


class Discard(msgspec.Struct, frozen=True):
    """Drop the database of a fill that came to nothing."""

    fill: Fill


class AnswerDefine(msgspec.Struct, frozen=True):
    """Tell a waiter that the template is there, or why it is not."""

    request: Request
    template: str = ""
    error: ClonepoolError | None = None


FillDecision = Prepare | Discard | AnswerDefine


class _Place:
    """One template that is being filled, and the requests that wait for it."""

    def __init__(self, fill: Fill) -> None:
        self.fill = fill
        self.queue = WaitQueue()


class Fills:
    """All templates that are being filled.

    Args:
        fill_seconds: how long a client may take.
    """

    def __init__(self, fill_seconds: float) -> None:
        self._fill_seconds = fill_seconds
        self._places: dict[str, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, template: str) -> bool:
        return template in self._places

    # Clients ------------------------------------------------------------------------------

    def ask(self, template: str, request: Request) -> list[FillDecision]:
        """Start a fill of a missing template by a client, or wait for a fill by another."""
        place = self._places.get(template)
        if place is None:
            return self._begin(template, request)
        if request.deadline <= request.asked_at:
            return [AnswerDefine(request, error=refusals.being_filled(template, 0.0))]
        place.queue.add(request)
        return []

    def finalize(self, token: str) -> Fill:
        """The client is done; call `sealed` or `not_sealed` with the fill.

        Raises:
            NotYourDefinitionError: the token names none that is being filled; nothing changed.
        """
        fill = self._find(token)
        fill.apply(FillEvent.FINALIZE)
        return fill

    def give_up(self, token: str, now: float) -> list[FillDecision]:
        """The client gives up.

        Raises:
            NotYourDefinitionError: the token names none that is being filled; nothing changed.
        """
        return self._end(self._find(token), FillEvent.GIVE_UP, now)

    def holder_gone(self, holder: int, now: float) -> list[FillDecision]:
        """A connection ended: its requests wait no more, and its fills are given up."""
        decisions: list[FillDecision] = []
        for place in list(self._places.values()):
            for request in [each for each in place.queue if each.holder == holder]:
                place.queue.remove(request.waiter)
            if place.fill.request.holder == holder:
                decisions += self._leave(place.fill, now)
        return decisions

    def forget(self, waiter: int) -> None:
        """Withdraw one request; a database that was given to its client stays with it."""
        for place in self._places.values():
            place.queue.remove(waiter)
            fill = place.fill
            if fill.request.waiter == waiter and fill.stage is Stage.PREPARING:
                fill.apply(FillEvent.LEAVE)

    # Outcomes -----------------------------------------------------------------------------

    def prepared(self, fill: Fill, now: float) -> list[FillDecision]:
        """The database is there; its client is to be told if the stage is `filling` then."""
        if fill.stage is Stage.UNWANTED:
            return self._end(fill, FillEvent.PREPARE, now)
        fill.apply(FillEvent.PREPARE)
        fill.expires_at = now + self._fill_seconds
        return []

    def not_prepared(self, fill: Fill, error: ClonepoolError) -> list[FillDecision]:
        """There is no database: none of the waiters would fare better."""
        fill.apply(FillEvent.FAIL)
        place = self._places.pop(fill.template)
        requests = [fill.request, *place.queue.pop_all()]
        return [AnswerDefine(request, error=error) for request in requests]

    def sealed(self, fill: Fill) -> list[FillDecision]:
        """The template is there."""
        fill.apply(FillEvent.SEAL)
        place = self._places.pop(fill.template)
        return [AnswerDefine(request, fill.template) for request in place.queue.pop_all()]

    def not_sealed(self, fill: Fill, now: float) -> list[FillDecision]:
        """What was filled could not become a template: the next waiter may try."""
        return self._end(fill, FillEvent.FAIL, now)

    # Time ---------------------------------------------------------------------------------

    def expire(self, now: float) -> list[FillDecision]:
        """Refuse overdue waiters, and end the fills whose time is over."""
        decisions: list[FillDecision] = []
        for place in list(self._places.values()):
            fill = place.fill
            decisions += [_late(each, fill.template, now) for each in place.queue.pop_overdue(now)]
            if fill.expires_at is not None and fill.expires_at <= now:
                decisions += self._end(fill, FillEvent.GIVE_UP, now)
        return decisions

    def next_timer(self) -> float | None:
        """When `expire` has something to do next, in monotonic seconds."""
        times = [place.queue.first_deadline() for place in self._places.values()]
        times += [place.fill.expires_at for place in self._places.values()]
        return min((time for time in times if time is not None), default=None)

    # Inside -------------------------------------------------------------------------------

    def _begin(self, template: str, request: Request) -> list[FillDecision]:
        fill = Fill(template, request)
        self._places[template] = _Place(fill)
        return [Prepare(fill)]

    def _find(self, token: str) -> Fill:
        for place in self._places.values():
            if place.fill.request.token == token and place.fill.stage is Stage.FILLING:
                return place.fill
        raise refusals.not_your_definition()

    def _leave(self, fill: Fill, now: float) -> list[FillDecision]:
        """The client has gone: end what it fills, unless it has finalized that."""
        if fill.stage is Stage.FILLING:
            return self._end(fill, FillEvent.LEAVE, now)
        if fill.stage is Stage.PREPARING:
            fill.apply(FillEvent.LEAVE)
        return []

    def _end(self, fill: Fill, event: FillEvent, now: float) -> list[FillDecision]:
        """Discard what there is, and let the next waiter fill it."""
        fill.apply(event)
        place = self._places.pop(fill.template)
        decisions: list[FillDecision] = [Discard(fill)]
        while (request := place.queue.pop()) is not None:
            if request.deadline > now:
                decisions += self._begin(fill.template, request)
                self._places[fill.template].queue = place.queue
                break
            decisions.append(_late(request, fill.template, now))
        return decisions


def _late(request: Request, template: str, now: float) -> AnswerDefine:
    """Return the refusal of a waiter whose deadline has come."""
    return AnswerDefine(request, error=refusals.being_filled(template, now - request.asked_at))
