"""Who fills a template that clients define: one of them, while the others wait.

Events in, decisions out, as in `pool`. A definition has one filler at a time. It is over when the
filler says that it is done, gives up, goes away or takes too long; in all cases but the first the
next in line becomes the filler, and what was filled so far is discarded.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from clonepool.core import refusals
from clonepool.core.queue import WaitQueue

if TYPE_CHECKING:
    from clonepool.core.decisions import Request
    from clonepool.errors import ClonepoolError


class Stage(StrEnum):
    """How far a definition is."""

    MAKING = "making"
    FILLING = "filling"
    SEALING = "sealing"


class Definition(msgspec.Struct, eq=False):
    """One try to fill a template.

    Attributes:
        template: its name.
        request: of the client that fills it; its token names the definition.
        stage: how far it is.
        expires_at: when the filler's time is over; None until it has a database.
        abandoned: whether its database is to be discarded as soon as it is there.
    """

    template: str
    request: Request
    stage: Stage = Stage.MAKING
    expires_at: float | None = None
    abandoned: bool = False


class Make(msgspec.Struct, frozen=True):
    """Make a database for the filler, then call `made` or `not_made`."""

    definition: Definition


class Discard(msgspec.Struct, frozen=True):
    """Drop the database of a definition that came to nothing."""

    definition: Definition


class Answer(msgspec.Struct, frozen=True):
    """Tell who waited that the template is there, or why it is not."""

    request: Request
    template: str = ""
    error: ClonepoolError | None = None


Verdict = Make | Discard | Answer


class _Place:
    """One template that is being defined."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.line = WaitQueue()


class Definitions:
    """All templates that are being defined.

    Args:
        fill_seconds: how long a filler may take.
    """

    def __init__(self, fill_seconds: float) -> None:
        self._fill_seconds = fill_seconds
        self._places: dict[str, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, template: str) -> bool:
        return template in self._places

    # Clients ------------------------------------------------------------------------------

    def seek(self, template: str, request: Request) -> list[Verdict]:
        """Let a client fill a template that is not there, or wait for who does."""
        place = self._places.get(template)
        if place is not None:
            if request.deadline <= request.asked_at:
                return [Answer(request, error=refusals.being_filled(template, 0.0))]
            place.line.add(request)
            return []
        return self._begin(template, request)

    def finalize(self, token: str) -> Definition:
        """The filler is done: its time is not counted any more; call `sealed` or `not_sealed`.

        Raises:
            NotYourDefinitionError: the token names none that is being filled; nothing changed.
        """
        definition = self._find(token)
        definition.stage, definition.expires_at = Stage.SEALING, None
        return definition

    def abandon(self, token: str, now: float) -> list[Verdict]:
        """The filler gives up.

        Raises:
            NotYourDefinitionError: the token names none that is being filled; nothing changed.
        """
        return self._give_up(self._find(token), now)

    def holder_gone(self, holder: int, now: float) -> list[Verdict]:
        """A connection ended: it waits no more and fills nothing; what it finalized goes on."""
        verdicts: list[Verdict] = []
        for place in list(self._places.values()):
            for request in [each for each in place.line if each.holder == holder]:
                place.line.remove(request.waiter)
            definition = place.definition
            if definition.request.holder != holder or definition.abandoned:
                continue
            if definition.stage is Stage.FILLING:
                verdicts += self._give_up(definition, now)
            elif definition.stage is Stage.MAKING:
                definition.abandoned = True
        return verdicts

    def forget(self, waiter: int) -> None:
        """Take one request back; who would have filled is not told, and another fills."""
        for place in self._places.values():
            place.line.remove(waiter)
            definition = place.definition
            if definition.request.waiter == waiter and definition.stage is Stage.MAKING:
                definition.abandoned = True

    # What became of it --------------------------------------------------------------------

    def made(self, definition: Definition, now: float) -> list[Verdict]:
        """The filler's database is there; it is to be told unless it is `abandoned`."""
        if definition.abandoned:
            return self._give_up(definition, now)
        definition.stage, definition.expires_at = Stage.FILLING, now + self._fill_seconds
        return []

    def not_made(self, definition: Definition, error: ClonepoolError) -> list[Verdict]:
        """There is no database: nobody of those who wait will fare better."""
        place = self._places.pop(definition.template)
        everybody = [definition.request, *place.line.pop_all()]
        return [Answer(request, error=error) for request in everybody]

    def sealed(self, definition: Definition) -> list[Verdict]:
        """The template is there."""
        place = self._places.pop(definition.template)
        return [Answer(request, definition.template) for request in place.line.pop_all()]

    def not_sealed(self, definition: Definition, now: float) -> list[Verdict]:
        """What was filled could not become a template: somebody else may try."""
        return self._give_up(definition, now)

    # Time ---------------------------------------------------------------------------------

    def expire(self, now: float) -> list[Verdict]:
        """Refuse who waited too long, and take from fillers what they did not fill in time."""
        verdicts: list[Verdict] = []
        for place in list(self._places.values()):
            template, definition = place.definition.template, place.definition
            verdicts += [
                Answer(late, error=refusals.being_filled(template, now - late.asked_at))
                for late in place.line.pop_overdue(now)
            ]
            if definition.expires_at is not None and definition.expires_at <= now:
                verdicts += self._give_up(definition, now)
        return verdicts

    def next_timer(self) -> float | None:
        """When `expire` has something to do next, in monotonic seconds."""
        times = [place.line.first_deadline() for place in self._places.values()]
        times += [place.definition.expires_at for place in self._places.values()]
        return min((time for time in times if time is not None), default=None)

    # Inside -------------------------------------------------------------------------------

    def _begin(self, template: str, request: Request) -> list[Verdict]:
        definition = Definition(template, request)
        self._places[template] = _Place(definition)
        return [Make(definition)]

    def _find(self, token: str) -> Definition:
        for place in self._places.values():
            definition = place.definition
            if definition.request.token == token and definition.stage is Stage.FILLING:
                return definition
        raise refusals.not_your_definition()

    def _give_up(self, definition: Definition, now: float) -> list[Verdict]:
        """Discard what there is, and let the next in line fill it."""
        place = self._places.pop(definition.template)
        verdicts: list[Verdict] = [Discard(definition)]
        while (request := place.line.pop()) is not None:
            if request.deadline > now:
                verdicts += self._begin(definition.template, request)
                self._places[definition.template].line = place.line
                break
            late = refusals.being_filled(definition.template, now - request.asked_at)
            verdicts.append(Answer(request, error=late))
        return verdicts
