"""Templates that clients ask to be made: their requests checked, the outcome answered."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

import structlog

from clonepool.core import refusals
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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from clonepool.core.decisions import Lease
    from clonepool.core.definitions import Definition
    from clonepool.postgres.templates.client_generation import Fillable
    from clonepool.protocol.messages import Define, Finalize, Snapshot
    from clonepool.protocol.server import RequestId
    from clonepool.service.api.methods import Connection
    from clonepool.service.context import Context
    from clonepool.service.templates.client_templates import ClientTemplates
    from clonepool.service.templates.fills import FillCoordinator
    from clonepool.service.templates.snapshots import Snapshots

log = structlog.get_logger()


class TemplateMethods:
    """Between the methods and the workers."""

    def __init__(
        self,
        context: Context,
        templates: ClientTemplates,
        snapshots: Snapshots,
        definer: FillCoordinator,
        tasks: TaskGroup,
    ) -> None:
        self._context = context
        self._templates = templates
        self._snapshots = snapshots
        self._definer = definer
        self._tasks = tasks
        self._last_waiter = 0

    def snapshot(self, peer: Connection, request: RequestId, params: Snapshot) -> None:
        """Make a template of a leased clone's present state, then answer.

        Raises:
            NotAllowedError, BadRequestError, NotYourLeaseError, ClientLimitError,
                ShuttingDownError: nothing was done.
        """
        lease = self._snapshots.check(params.lease, params.template)
        self._start(peer, request, lambda: self._snapshot(lease, params))

    def define(self, peer: Connection, request: RequestId, params: Define) -> None:
        """Answer that the template is there, or have this client fill it, or wait for who does.

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
        self._last_waiter += 1
        now = context.now()
        asked = Request(
            self._last_waiter, secrets.token_hex(16), peer.number, params.hash, now, now + timeout
        )
        told = _Told(peer, request, context)

        def cancel() -> None:
            told.cancelled = True
            peer.reply_error(request, refusals.cancelled())
            self._definer.cancel(asked.waiter)

        self._start(peer, request, lambda: self._define(params.name, asked, told))
        peer.pending[request] = cancel

    def finalize(self, peer: Connection, request: RequestId, params: Finalize) -> None:
        """Make a template of what was filled, or give that up, then answer.

        Raises:
            NotYourDefinitionError: nothing was done.
        """
        if params.abandon:
            self._definer.abandon(params.definition)
            peer.reply(request, FinalizeResult())
            return
        self._start(peer, request, lambda: self._finalize(params.definition))

    def disconnect(self, peer: Connection) -> None:
        """End what the connection was to fill, and waited for."""
        self._definer.disconnect(peer.number)

    def stop(self) -> None:
        """Refuse who waits for another to fill a template."""
        self._definer.stop()

    async def close(self) -> None:
        """Drop what clients have not finished."""
        await self._definer.close()

    async def _snapshot(self, lease: Lease, params: Snapshot) -> SnapshotResult:
        began = self._context.now()
        made = await self._snapshots.make(lease, params.template, end_sessions=params.end_sessions)
        seconds = round(self._context.now() - began, 3)
        return SnapshotResult(params.template, made.short, made.database, seconds)

    async def _define(self, name: str, asked: Request, told: _Told) -> None:
        try:
            await self._definer.define(name, asked, told)
        except ClonepoolError:
            if not told.cancelled:  # then it has been answered
                raise

    async def _finalize(self, token: str) -> FinalizeResult:
        template, generation = await self._definer.finalize(token)
        return FinalizeResult(template, generation.short)

    def _start(
        self, peer: Connection, request: RequestId, work: Callable[[], Awaitable[object]]
    ) -> None:
        self._tasks.start_soon(self._answer, peer, request, work)

    async def _answer(
        self, peer: Connection, request: RequestId, work: Callable[[], Awaitable[object]]
    ) -> None:
        try:
            result = await work()
        except StatementError as error:
            # What PostgreSQL refuses here comes of what the client has made of the database.
            peer.reply_error(request, TemplateFailedError(str(error), remedy=error.remedy))
        except ServerUnavailableError as error:
            peer.reply_error(request, ServerUnavailableError(str(error), remedy=error.remedy))
        except ClonepoolError as error:
            peer.reply_error(request, error)
        except Exception as error:
            log.exception("work.failed", work=repr(work))
            peer.reply_error(request, ClonepoolError(f"internal error: {error!r}"))
        else:
            if result is not None:
                peer.reply(request, result)


class _Told:
    """Answers one `define`.

    Attributes:
        cancelled: whether the client has taken it back, so that it has been answered.
    """

    def __init__(self, peer: Connection, request: RequestId, context: Context) -> None:
        self._peer = peer
        self._request = request
        self._context = context
        self.cancelled = False

    @property
    def gone(self) -> bool:
        return self._peer.gone or self.cancelled

    def there(self, template: str) -> None:
        self._peer.reply(self._request, DefineResult(template, filled=True))

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
            expires_in_seconds=self._context.config.client_templates.fill_timeout,
        )
        self._peer.reply(self._request, result)

    def refused(self, error: ClonepoolError) -> None:
        self._peer.reply_error(self._request, error)
