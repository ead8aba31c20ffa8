"""The methods about templates: build, explain, snapshot, define, finalize."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

import structlog

from clonepool.core.decisions import Request
from clonepool.core.naming import TEMPLATE_PATTERN
from clonepool.errors import (
    BadRequestError,
    ClonepoolError,
    ServerUnavailableError,
    StatementError,
    TemplateFailedError,
)
from clonepool.protocol.messages import FinalizeResult, SnapshotResult
from clonepool.service.call import internal_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from anyio.abc import TaskGroup

    from clonepool.core.decisions import Lease
    from clonepool.core.fleet import Fleet
    from clonepool.protocol.messages import Build, Define, Explain, Finalize, Snapshot
    from clonepool.service.api.builds import Builds
    from clonepool.service.call import Call
    from clonepool.service.templates.client_templates import ClientTemplates
    from clonepool.service.templates.fills import FillCoordinator
    from clonepool.service.templates.snapshots import Snapshots

log = structlog.get_logger()


class TemplateMethods:
    """Checks what clients ask about templates, has it done, and answers.

    Args:
        acquire_timeout: seconds that a request waits which names no timeout.
        builds: builds the configured templates.
        configured: the names of the configured templates.
        fleet: knows all templates.
        fills: lets clients fill templates.
        now: returns monotonic seconds.
        snapshots: makes templates of leased clones.
        tasks: where work is done that takes time.
        templates: says what clients may make.
    """

    def __init__(  # noqa: PLR0913 - each by name, and made in one place
        self,
        *,
        acquire_timeout: float,
        builds: Builds,
        configured: Container[str],
        fleet: Fleet,
        fills: FillCoordinator,
        now: Callable[[], float],
        snapshots: Snapshots,
        tasks: TaskGroup,
        templates: ClientTemplates,
    ) -> None:
        self._acquire_timeout = acquire_timeout
        self._builds = builds
        self._configured = configured
        self._fleet = fleet
        self._fills = fills
        self._now = now
        self._snapshots = snapshots
        self._tasks = tasks
        self._templates = templates

    # Configured templates -------------------------------------------------------------------

    def build(self, call: Call, params: Build) -> None:
        """Check a template, and build it if necessary or if the client demands it.

        Raises:
            UnknownTemplateError, BadRequestError: nothing was done.
        """
        self._check_configured(params.template)
        self._builds.build(call, params)

    def explain(self, call: Call, params: Explain) -> None:
        """Answer what goes into a template, and why a build is due.

        Raises:
            UnknownTemplateError, BadRequestError: nothing was done.
        """
        self._check_configured(params.template)
        self._builds.explain(call, params.template)

    def _check_configured(self, template: str) -> None:
        self._fleet.pool(template)
        if template not in self._configured:
            raise BadRequestError(
                f"the template {template} was made by a client", remedy="make it again"
            )

    # Templates that clients make ------------------------------------------------------------

    def snapshot(self, call: Call, params: Snapshot) -> None:
        """Make a template of a leased clone's present state, then answer.

        Raises:
            NotAllowedError, BadRequestError, NotYourLeaseError, ClientLimitError,
                ShuttingDownError: nothing was done.
        """
        lease = self._snapshots.check(params.lease, params.template)
        self._start(call, lambda: self._snapshot(lease, params))

    def define(self, call: Call, params: Define) -> None:
        """Answer that the template is there, or have this client fill it, or wait for the filler.

        Raises:
            NotAllowedError, BadRequestError, ClientLimitError, ShuttingDownError: nothing was done.
        """
        self._templates.check_allowed()
        if not re.fullmatch(TEMPLATE_PATTERN, f"{params.name}_abcdefgh"):
            raise BadRequestError(
                f"{params.name!r} cannot begin a template's name",
                remedy="use a letter and up to 12 letters, digits or underscores, lower case",
            )
        timeout = self._acquire_timeout if params.timeout is None else params.timeout
        now = self._now()
        token = secrets.token_hex(16)
        request = Request(call.number, token, call.holder, params.hash, now, now + timeout)
        self._start(call, lambda: self._fills.define(params.name, request, call))
        call.on_cancel(lambda: self._fills.cancel(call.number))

    def finalize(self, call: Call, params: Finalize) -> None:
        """Make a template of what was filled, or give that up, then answer.

        Raises:
            NotYourDefinitionError: nothing was done.
        """
        if params.abandon:
            self._fills.abandon(params.definition)
            call.reply(FinalizeResult())
            return
        self._start(call, lambda: self._finalize(params.definition))

    def disconnect(self, holder: int) -> None:
        """End what a connection was to fill, and what it waited for."""
        self._fills.disconnect(holder)

    def stop(self) -> None:
        """Refuse the clients that wait for another one to fill a template."""
        self._fills.stop()

    async def close(self) -> None:
        """Drop what clients have not finished."""
        await self._fills.close()

    async def _snapshot(self, lease: Lease, params: Snapshot) -> SnapshotResult:
        began = self._now()
        made = await self._snapshots.make(lease, params.template, end_sessions=params.end_sessions)
        seconds = round(self._now() - began, 3)
        return SnapshotResult(params.template, made.short, made.database, seconds)

    async def _finalize(self, token: str) -> FinalizeResult:
        template, generation = await self._fills.finalize(token)
        return FinalizeResult(template, generation.short)

    def _start(self, call: Call, work: Callable[[], Awaitable[object]]) -> None:
        self._tasks.start_soon(self._answer, call, work)

    async def _answer(self, call: Call, work: Callable[[], Awaitable[object]]) -> None:
        try:
            result = await work()
        except StatementError as error:
            # What PostgreSQL refuses here comes of what the client has made of the database.
            call.fail(TemplateFailedError(str(error), remedy=error.remedy))
        except ServerUnavailableError as error:
            call.fail(ServerUnavailableError(str(error), remedy=error.remedy))
        except ClonepoolError as error:
            call.fail(error)
        except Exception as error:
            log.exception("work.failed", work=repr(work))
            call.fail(internal_error(error))
        else:
            if result is not None:
                call.reply(result)
