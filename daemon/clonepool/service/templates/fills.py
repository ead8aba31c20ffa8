"""Lets clients fill templates: a database for one of them, the finished template for all.

Which client fills which template is decided in `core.fills`; this carries the decisions out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, assert_never

import structlog

from clonepool.core.client_templates import Method
from clonepool.core.fills import AnswerDefine, Discard, Fills, Prepare, Stage
from clonepool.core.refusals import shutting_down
from clonepool.errors import BadRequestError, ClientLimitError
from clonepool.postgres.templates.file_digests import generation_name
from clonepool.protocol.messages import DefineResult
from clonepool.service.tasks import guarded
from clonepool.service.templates.client_templates import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import TaskGroup

    from clonepool.core.decisions import Request
    from clonepool.core.fills import Fill, FillDecision
    from clonepool.postgres.templates.client_generation import ClientGenerations, Fillable
    from clonepool.postgres.templates.recipe import Generation, Inputs
    from clonepool.service.failures import Failures
    from clonepool.service.server_changes import ServerChanges
    from clonepool.service.templates.client_templates import ClientTemplates
    from clonepool.service.templates.interfaces import PendingCall

log = structlog.get_logger()

DEFINE_FAILED = "template.define_failed"


class _Database(NamedTuple):
    """A database that is being filled, and the generation that it becomes."""

    name: str
    short: str
    inputs: Inputs


class _Waiter(NamedTuple):
    """A request that is to be answered, and the connection that made it."""

    holder: int
    call: PendingCall


class FillCoordinator:
    """Carries out what the fills decide.

    Args:
        call_later: calls back after a number of seconds.
        failures: logs and counts databases that could not be made.
        fill_seconds: how long a client may take to fill a template.
        generations: makes the databases, and generations of them.
        now: returns monotonic seconds.
        server_changes: learns which roles were made with a template.
        tasks: where work that takes time is done.
        templates: what becomes of those that are finished.
    """

    def __init__(
        self,
        *,
        call_later: Callable[[float, Callable[[], None]], object],
        failures: Failures,
        fill_seconds: float,
        generations: ClientGenerations,
        now: Callable[[], float],
        server_changes: ServerChanges,
        tasks: TaskGroup,
        templates: ClientTemplates,
    ) -> None:
        self._call_later = call_later
        self._failures = failures
        self._fill_seconds = fill_seconds
        self._generations = generations
        self._now = now
        self._server_changes = server_changes
        self._tasks = tasks
        self._templates = templates
        self._fills = Fills(fill_seconds)
        self._due = math.inf
        self._calls: dict[int, _Waiter] = {}
        self._databases: dict[str, _Database] = {}

    # Clients ------------------------------------------------------------------------------

    async def define(self, name: str, request: Request, call: PendingCall) -> None:
        """Have a client fill a template, or wait for another one, or learn that it is there.

        Args:
            name: the template's name begins with it.
            request: its label is what stands for the content.
            call: is answered once.

        Raises:
            TemplateFailedError, ServerUnavailableError, BadRequestError: the call was not answered,
                nothing was begun.
        """
        recipe = self._templates.recipe(name, self._templates.options_of(""))
        inputs = await self._generations.identify(recipe, request.label)
        if call.is_gone:
            return
        template = f"{name}_{inputs.short}"
        self._check_free(template)
        if self._templates.is_ready(template):
            call.reply(DefineResult(template, filled=True))
            return
        self._calls[request.waiter] = _Waiter(request.holder, call)
        self._carry_out(self._fills.ask(template, request))

    async def finalize(self, token: str) -> tuple[str, Generation]:
        """Make a template of what was filled; return its name and generation.

        Raises:
            NotYourDefinitionError: nothing was done.
            TemplateFailedError, StatementError, ServerUnavailableError: the fill is over, and the
                next waiter may try.
        """
        fill = self._fills.finalize(token)
        try:
            generation = await self._finish(fill)
        except BaseException:
            self._carry_out(self._fills.not_sealed(fill, self._now()))
            raise
        self._carry_out(self._fills.sealed(fill))
        return fill.template, generation

    def abandon(self, token: str) -> None:
        """Give up filling.

        Raises:
            NotYourDefinitionError: nothing was done.
        """
        self._carry_out(self._fills.give_up(token, self._now()))

    def cancel(self, number: int) -> None:
        """Take one request back, so that it is not answered."""
        self._calls.pop(number, None)
        self._fills.forget(number)

    def disconnect(self, holder: int) -> None:
        """A connection ended: it waits no more, and the next waiter fills what it was to fill."""
        for number in [number for number, each in self._calls.items() if each.holder == holder]:
            del self._calls[number]
        self._carry_out(self._fills.holder_gone(holder, self._now()))

    def stop(self) -> None:
        """Refuse the waiters: the daemon is stopping."""
        waiters, self._calls = self._calls, {}
        for waiter in waiters.values():
            waiter.call.fail(shutting_down())

    async def close(self) -> None:
        """Drop what is being filled."""
        for database in list(self._databases.values()):
            await self._generations.generations.remove(database.name)

    # Decisions ----------------------------------------------------------------------------

    def _carry_out(self, decisions: Sequence[FillDecision]) -> None:
        for decision in decisions:
            match decision:
                case Prepare(fill):
                    self._tasks.start_soon(guarded, self._prepare, fill)
                case Discard(fill):
                    self._tasks.start_soon(guarded, self._discard, fill)
                case AnswerDefine():
                    self._answer(decision)
                case _:
                    assert_never(decision)
        self._set_timer()

    def _answer(self, answer: AnswerDefine) -> None:
        waiter = self._calls.pop(answer.request.waiter, None)
        if waiter is None:
            return
        if answer.error is not None:
            waiter.call.fail(answer.error)
        else:
            waiter.call.reply(DefineResult(answer.template, filled=True))

    async def _prepare(self, fill: Fill) -> None:
        """Make a database for the client and tell it, unless it has gone."""
        template = fill.template
        section = self._templates.options_of("")
        recipe = self._templates.recipe(template, section)
        try:
            with self._failures.attempt(
                DEFINE_FAILED, template, expected=(ClientLimitError,)
            ) as attempt:
                async with self._templates.turn(template):
                    self._templates.begin(template)
                    await self._templates.prepare(section)
                    inputs = await self._generations.identify(recipe, fill.request.label)
                    short = generation_name(f"{inputs.full} {self._generations.next_serial()}")
                    database = await self._generations.empty(recipe, short)
                    self._databases[fill.request.token] = _Database(database.name, short, inputs)
                    self._hand_over(fill, database)
        except ClientLimitError as error:
            self._carry_out(self._fills.not_prepared(fill, error))
            return
        if attempt.failed:
            self._templates.end(template)
            self._carry_out(self._fills.not_prepared(fill, attempt.error))

    def _hand_over(self, fill: Fill, database: Fillable) -> None:
        login, name = database.login, database.name
        result = DefineResult(
            fill.template,
            filled=False,
            definition=fill.request.token,
            database=name,
            url=login.url(name),
            host=login.host,
            port=login.port,
            user=login.user,
            password=login.password,
            env=login.env(name),
            expires_in_seconds=self._fill_seconds,
        )
        self._carry_out(self._fills.prepared(fill, self._now()))
        waiter = self._calls.pop(fill.request.waiter, None)
        if waiter is not None and fill.stage is Stage.FILLING:
            log.info("template.being_filled", template=fill.template, database=name)
            waiter.call.reply(result)

    async def _discard(self, fill: Fill) -> None:
        database = self._databases.pop(fill.request.token, None)
        if database is not None:
            log.info("template.not_filled", template=fill.template)
            await self._generations.generations.remove(database.name)
            if fill.template not in self._fills:
                self._templates.end(fill.template)

    async def _finish(self, fill: Fill) -> Generation:
        template = fill.template
        section = self._templates.options_of("")
        origin = self._templates.origin_of(Method.DEFINE, "", section)
        database = self._databases.pop(fill.request.token)
        try:
            async with self._templates.turn(template):
                self._check_free(template)
                await self._templates.prepare(section)
                recipe = self._templates.recipe(template, section)
                generation = await self._generations.finish(
                    database.name,
                    recipe,
                    database.short,
                    database.inputs,
                    facts_of(origin),
                    filled=recipe.ownership.has_logins,
                )
                await self._server_changes.accept()
                self._templates.settle(template, section, origin, generation)
        except BaseException:
            await self._generations.generations.remove(database.name)
            raise
        finally:
            self._templates.end(template)
        return generation

    def _check_free(self, template: str) -> None:
        origin = self._templates.origin(template)
        if origin is not None and origin.by is not Method.DEFINE:
            raise BadRequestError(
                f"the template {template} is a snapshot that a client made",
                remedy="use another `name`",
            )

    # Time ---------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        due = self._fills.next_timer()
        if due is not None and due < self._due:
            self._due = due
            self._call_later(max(0.0, due - self._now()), self._time_came)

    def _time_came(self) -> None:
        self._due = math.inf
        self._carry_out(self._fills.expire(self._now()))
