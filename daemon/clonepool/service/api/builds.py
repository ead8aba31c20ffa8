"""Builds that clients ask for: their progress told, their end answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool import resource_errors
from clonepool.errors import ClonepoolError
from clonepool.protocol.messages import BuildProgress, BuildResult, ExplainResult

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from clonepool.postgres.templates.builder import Step
    from clonepool.protocol.messages import Build
    from clonepool.protocol.server import RequestId
    from clonepool.service.api.methods import Connection
    from clonepool.service.templates.builder import Built, TemplateBuilder

log = structlog.get_logger()


class Builds:
    """Between the methods and the builder."""

    def __init__(self, builder: TemplateBuilder, tasks: TaskGroup) -> None:
        self._builder = builder
        self._tasks = tasks

    def build(self, peer: Connection, request: RequestId, params: Build) -> None:
        """Have a template built, and answer when that is done; a client that goes stops nothing."""

        def tell(step: Step) -> None:
            if params.progress and not peer.gone:
                told = BuildProgress(
                    request, step.what, step.number, step.steps, round(step.seconds, 3)
                )
                peer.notify("progress", told)

        def answer(built: Built) -> None:
            generation = built.generation
            if generation is None:
                peer.reply_error(request, built.error or ClonepoolError("nothing was built"))
                return
            peer.reply(
                request,
                BuildResult(
                    params.template,
                    generation.short,
                    generation.database,
                    generation.reused,
                    round(built.seconds, 3),
                ),
            )

        self._builder.ask(params.template, tell, answer, anew=params.anew)

    def step_of(self, template: str) -> Step | None:
        """Return where the build of a template is, None while there is none."""
        return self._builder.under_way.get(template)

    def explain(self, peer: Connection, request: RequestId, template: str) -> None:
        """Find out what goes into a template, and answer."""
        self._tasks.start_soon(self._explain, peer, request, template)

    async def _explain(self, peer: Connection, request: RequestId, template: str) -> None:
        try:
            found = await self._builder.explain(template)
            peer.reply(request, ExplainResult(template, *found))
        except ClonepoolError as error:
            peer.reply_error(request, error)
        except Exception as error:
            short = resource_errors.told(error, f"looking at what {template} is made from")
            if short is None:
                log.exception("request.failed", method="explain")
            peer.reply_error(request, short or ClonepoolError(f"internal error: {error!r}"))
