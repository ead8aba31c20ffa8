"""Builds that clients ask for, and what they want to know of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool import resource_errors
from clonepool.errors import ClonepoolError
from clonepool.protocol.messages import ExplainResult
from clonepool.service.call import internal_error

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from clonepool.postgres.templates.builder import Step
    from clonepool.protocol.messages import Build
    from clonepool.service.templates.builder import TemplateBuilder
    from clonepool.service.templates.interfaces import Caller

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

    def build(self, call: Caller, params: Build) -> None:
        """Build a template, and answer when it is built; the build continues if the client goes."""
        self._builder.ask(params.template, call, anew=params.anew, progress=params.progress)

    def step_of(self, template: str) -> Step | None:
        """Return the step that a build of the template is in; None while there is no build."""
        return self._builder.under_way.get(template)

    def explain(self, call: Caller, template: str) -> None:
        """Find out what goes into a template, and answer."""
        self._tasks.start_soon(self._explain, call, template)

    async def _explain(self, call: Caller, template: str) -> None:
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
