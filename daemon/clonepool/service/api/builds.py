"""Builds that clients ask for: their progress notified, their end answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool import resource_errors
from clonepool.errors import ClonepoolError
from clonepool.protocol.messages import BuildProgress, BuildResult, ExplainResult
from clonepool.service.api.call import internal_error

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from clonepool.postgres.templates.builder import Step
    from clonepool.protocol.messages import Build
    from clonepool.service.api.call import Call
    from clonepool.service.templates.builder import Built, TemplateBuilder

log = structlog.get_logger()


class Builds:
    """Has templates built for clients.

    Args:
        builder: builds.
        tasks: where work is done that takes time.
    """

    def __init__(self, builder: TemplateBuilder, tasks: TaskGroup) -> None:
        self._builder = builder
        self._tasks = tasks

    def build(self, call: Call, params: Build) -> None:
        """Have a template built, and answer when that is done; a client that goes stops nothing."""

        def tell(step: Step) -> None:
            if params.progress:
                told = BuildProgress(
                    call.request, step.what, step.number, step.steps, round(step.seconds, 3)
                )
                call.notify("progress", told)

        def answer(built: Built) -> None:
            generation = built.generation
            if generation is None:
                call.fail(built.error or ClonepoolError("nothing was built"))
                return
            call.reply(
                BuildResult(
                    params.template,
                    generation.short,
                    generation.database,
                    generation.reused,
                    round(built.seconds, 3),
                )
            )

        self._builder.ask(params.template, tell, answer, anew=params.anew)

    def step_of(self, template: str) -> Step | None:
        """Return the step that a build of the template is in; None while there is no build."""
        return self._builder.under_way.get(template)

    def explain(self, call: Call, template: str) -> None:
        """Find out what goes into a template, and answer."""
        self._tasks.start_soon(self._explain, call, template)

    async def _explain(self, call: Call, template: str) -> None:
        try:
            found = await self._builder.explain(template)
            call.reply(ExplainResult(template, *found))
        except ClonepoolError as error:
            call.fail(error)
        except Exception as error:
            short = resource_errors.told(error, f"looking at what {template} is made from")
            if short is None:
                log.exception("request.failed", method="explain")
            call.fail(short or internal_error(error))
