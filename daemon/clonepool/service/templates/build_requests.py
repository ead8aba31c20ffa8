"""Requests of clients for builds: notified of the steps, answered when the build ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from clonepool.errors import ClonepoolError
from clonepool.protocol.messages import BuildProgress, BuildResult

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.core.build_decisions import AnswerBuild
    from clonepool.postgres.templates.builder import Step
    from clonepool.postgres.templates.recipe import Generation
    from clonepool.service.templates.interfaces import PendingCall


class _Request(NamedTuple):
    """A request for a build, and whether it is notified of the steps."""

    call: PendingCall
    progress: bool


class BuildRequests:
    """The requests that are not answered yet, by their numbers."""

    def __init__(self) -> None:
        self._open: dict[int, _Request] = {}

    def enter(self, call: PendingCall, *, progress: bool) -> None:
        """Remember a request until it is answered."""
        self._open[call.number] = _Request(call, progress)

    def tell(self, numbers: Iterable[int], step: Step) -> None:
        """Notify these requests of a step of their build, if they want that."""
        seconds = round(step.seconds, 3)
        for number in numbers:
            call, progress = self._open[number]
            if progress:
                told = BuildProgress(call.request, step.what, step.number, step.steps, seconds)
                call.notify("progress", told)

    def answer(self, answer: AnswerBuild, generation: Generation | None) -> None:
        """Answer requests: with the error of the build, or else with the generation."""
        for number in answer.requests:
            call = self._open.pop(number).call
            if answer.error is not None or generation is None:
                call.fail(answer.error or ClonepoolError("nothing was built"))
                continue
            call.reply(
                BuildResult(
                    answer.template,
                    generation.short,
                    generation.database,
                    generation.reused,
                    round(answer.seconds, 3),
                )
            )
