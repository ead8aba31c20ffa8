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
from clonepool.protocol.messages import DefineResult, FinalizeResult, SnapshotResult
from clonepool.service.api.call import internal_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from clonepool.core.decisions import Lease
    from clonepool.core.definitions import Definition
    from clonepool.postgres.templates.client_generation import Fillable
    from clonepool.protocol.messages import Build, Define, Explain, Finalize, Snapshot
    from clonepool.service.api.builds import Builds
    from clonepool.service.api.call import Call
    from clonepool.service.context import Context
    from clonepool.service.templates.client_templates import ClientTemplates
    from clonepool.service.templates.fills import FillCoordinator
    from clonepool.service.templates.snapshots import Snapshots

log = structlog.get_logger()


class TemplateMethods:
    """Checks what clients ask about templates, has it done, and answers."""

    def __init__(
        self,
        context: Context,
        templates: ClientTemplates,
        snapshots: Snapshots,
        fills: FillCoordinator,
        builds: Builds,
        tasks: TaskGroup,
    ) -> None:
        self._context = context
        self._templates = templates
        self._snapshots = snapshots
        self._fills = fills
        self._builds = builds
        self._tasks = tasks
        self._configured = frozenset(context.config.templates)

    # Configured templates -------------------------------------------------------------------

    def build(self, call: Call, params: Build) -> None:
        """Have a template looked at, and built if need be or if the client wants that anyway.

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
        context = self._context
        timeout = context.config.pool.acquire_timeout if params.timeout is None else params.timeout
        now = context.now()
        request = Request(
            call.number, secrets.token_hex(16), call.holder, params.hash, now, now + timeout
        )
        answers = _DefineAnswers(call, context.config.client_templates.fill_timeout)
        self._start(call, lambda: self._fills.define(params.name, request, answers))
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

    # The connection and the daemon ------------------------------------------------------------

    def disconnect(self, holder: int) -> None:
        """End what a connection was to fill, and what it waited for."""
        self._fills.disconnect(holder)

    def stop(self) -> None:
        """Refuse the clients that wait for another one to fill a template."""
        self._fills.stop()

    async def close(self) -> None:
        """Drop what clients have not finished."""
        await self._fills.close()

    # Inside -------------------------------------------------------------------------------

    def _check_configured(self, template: str) -> None:
        self._context.fleet.pool(template)
        if template not in self._configured:
            raise BadRequestError(
                f"the template {template} was made by a client", remedy="make it again"
            )

    async def _snapshot(self, lease: Lease, params: Snapshot) -> SnapshotResult:
        began = self._context.now()
        made = await self._snapshots.make(lease, params.template, end_sessions=params.end_sessions)
        seconds = round(self._context.now() - began, 3)
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


class _DefineAnswers:
    """The answers that a `define` may get."""

    def __init__(self, call: Call, fill_timeout: float) -> None:
        self._call = call
        self._fill_timeout = fill_timeout

    @property
    def gone(self) -> bool:
        return self._call.is_gone

    def there(self, template: str) -> None:
        self._call.reply(DefineResult(template, filled=True))

    def fill(self, definition: Definition, database: Fillable) -> None:
        login, name = database.login, database.name
        result = DefineResult(
            definition.template,
            filled=False,
            definition=definition.request.token,
            database=name,
            url=login.url(name),
            host=login.host,
            port=login.port,
            user=login.user,
            password=login.password,
            env=login.env(name),
            expires_in_seconds=self._fill_timeout,
        )
        self._call.reply(result)

    def refused(self, error: ClonepoolError) -> None:
        self._call.fail(error)
