"""Lets clients fill templates: a database for one of them, the finished template for all.

Who fills which is decided in `core.definitions`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from clonepool.core.definitions import Answer, Definitions, Discard, Make
from clonepool.core.refusals import shutting_down
from clonepool.errors import BadRequestError, ClientLimitError
from clonepool.postgres.templates.file_digests import generation_name
from clonepool.service.tasks import guarded
from clonepool.service.templates.client_templates import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from clonepool.core.decisions import Request
    from clonepool.core.definitions import Definition, Verdict
    from clonepool.errors import ClonepoolError
    from clonepool.postgres.templates.client_generation import ClientGenerations, Fillable
    from clonepool.postgres.templates.recipe import Generation, Inputs
    from clonepool.service.context import Context
    from clonepool.service.templates.client_templates import ClientTemplates

log = structlog.get_logger()

DEFINE_FAILED = "template.define_failed"


class _Filled(NamedTuple):
    """A database that is being filled."""

    database: str
    short: str
    inputs: Inputs


class Told(Protocol):
    """Who asked."""

    @property
    def gone(self) -> bool:
        """Whether the connection has ended, or the request was taken back."""

    def there(self, template: str) -> None:
        """The template is there: lease it."""

    def fill(self, definition: Definition, database: Fillable) -> None:
        """Fill this database."""

    def refused(self, error: ClonepoolError) -> None:
        """Neither will come."""


class FillCoordinator:
    """Carries out what the definitions decide.

    Args:
        context: the rooms.
        templates: what becomes of those that are finished.
        handmade: makes databases.
        tasks: where work that takes time is done.
        later: calls back after so many seconds.
    """

    def __init__(
        self,
        context: Context,
        templates: ClientTemplates,
        handmade: ClientGenerations,
        tasks: TaskGroup,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._context = context
        self._templates = templates
        self._handmade = handmade
        self._tasks = tasks
        self._later = later
        self._due = math.inf
        self._askers: dict[int, tuple[int, Told]] = {}
        self._filled: dict[str, _Filled] = {}
        self._definitions = Definitions(context.config.client_templates.fill_timeout)

    async def define(self, name: str, asked: Request, told: Told) -> None:
        """Have a client fill a template, or wait for who does, or tell it that it is there.

        Args:
            name: with which the template's begins.
            asked: by whom; its label is what stands for the content.
            told: is told once, unless the connection ends before.

        Raises:
            TemplateFailedError, ServerUnavailableError, BadRequestError: nothing was begun.
        """
        recipe = self._templates.recipe(name, self._templates.options_of(""))
        inputs = await self._handmade.identify(recipe, asked.label)
        if told.gone:
            return
        template = f"{name}_{inputs.short}"
        self._check_free(template)
        if self._templates.registry.is_ready(template):
            told.there(template)
            return
        self._askers[asked.waiter] = asked.holder, told
        self._carry_out(self._definitions.seek(template, asked))

    async def finalize(self, token: str) -> tuple[str, Generation]:
        """Make a template of what was filled; return its name and generation.

        Raises:
            NotYourDefinitionError: nothing was done.
            TemplateFailedError, StatementError, ServerUnavailableError: it is given up, and another
                may fill it.
        """
        definition = self._definitions.finalize(token)
        try:
            generation = await self._finish(definition)
        except BaseException:
            self._carry_out(self._definitions.not_sealed(definition, self._context.now()))
            raise
        self._carry_out(self._definitions.sealed(definition))
        return definition.template, generation

    def abandon(self, token: str) -> None:
        """Give up filling.

        Raises:
            NotYourDefinitionError: nothing was done.
        """
        self._carry_out(self._definitions.abandon(token, self._context.now()))

    def cancel(self, waiter: int) -> None:
        """Take one request back, which is told nothing any more."""
        self._askers.pop(waiter, None)
        self._definitions.forget(waiter)

    def disconnect(self, holder: int) -> None:
        """A connection ended: it waits no more, and what it was to fill is another's to fill."""
        for waiter in [waiter for waiter, (whose, _) in self._askers.items() if whose == holder]:
            del self._askers[waiter]
        self._carry_out(self._definitions.holder_gone(holder, self._context.now()))

    def stop(self) -> None:
        """Refuse who waits: the daemon is stopping."""
        askers, self._askers = self._askers, {}
        for _, told in askers.values():
            told.refused(shutting_down())

    async def close(self) -> None:
        """Drop what is being filled."""
        for filled in list(self._filled.values()):
            await self._handmade.generations.remove(filled.database)

    async def _finish(self, definition: Definition) -> Generation:
        template = definition.template
        section = self._templates.options_of("")
        made = self._templates.how("define", "", section)
        filled = self._filled.pop(definition.request.token)
        try:
            async with self._templates.turn(template):
                self._check_free(template)
                await self._templates.prepare(section)
                recipe = self._templates.recipe(template, section)
                generation = await self._handmade.finish(
                    filled.database,
                    recipe,
                    filled.short,
                    filled.inputs,
                    facts_of(made),
                    filled=recipe.ownership.has_logins,
                )
                await self._context.server_changes.accept()
                self._templates.settle(template, section, made, generation)
        except BaseException:
            await self._handmade.generations.remove(filled.database)
            raise
        finally:
            self._templates.done(template)
        return generation

    def _check_free(self, template: str) -> None:
        made = self._templates.registry.made.get(template)
        if made is not None and made.by != "define":
            raise BadRequestError(
                f"the template {template} is a snapshot that a client made",
                remedy="use another `name`",
            )

    def _carry_out(self, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            match verdict:
                case Make():
                    self._tasks.start_soon(guarded, self._make, verdict.definition)
                case Discard():
                    self._tasks.start_soon(guarded, self._discard, verdict.definition)
                case Answer():
                    self._answer(verdict)
        self._set_timer()

    def _answer(self, answer: Answer) -> None:
        asker = self._askers.pop(answer.request.waiter, None)
        if asker is None:
            return
        _, told = asker
        if answer.error is not None:
            told.refused(answer.error)
        else:
            told.there(answer.template)

    async def _make(self, definition: Definition) -> None:
        """Make a database for the filler and tell it, unless it has gone."""
        context, template = self._context, definition.template
        section = self._templates.options_of("")
        recipe = self._templates.recipe(template, section)
        try:
            async with self._templates.turn(template):
                self._templates.begin(template)
                await self._templates.prepare(section)
                inputs = await self._handmade.identify(recipe, definition.request.label)
                short = generation_name(f"{inputs.full} {self._handmade.next_serial()}")
                database = await self._handmade.empty(recipe, short)
                self._filled[definition.request.token] = _Filled(database.name, short, inputs)
                self._hand_over(definition, database)
        except ClientLimitError as error:
            self._carry_out(self._definitions.not_made(definition, error))
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            told = context.failures.begin(DEFINE_FAILED, template, error)
            self._templates.done(template)
            self._carry_out(self._definitions.not_made(definition, told))
        else:
            context.failures.end(DEFINE_FAILED, template)

    def _hand_over(self, definition: Definition, database: Fillable) -> None:
        self._carry_out(self._definitions.made(definition, self._context.now()))
        asker = self._askers.pop(definition.request.waiter, None)
        if asker is not None and not definition.abandoned:
            log.info("template.being_filled", template=definition.template, database=database.name)
            asker[1].fill(definition, database)

    async def _discard(self, definition: Definition) -> None:
        filled = self._filled.pop(definition.request.token, None)
        if filled is not None:
            log.info("template.not_filled", template=definition.template)
            await self._handmade.generations.remove(filled.database)
            if definition.template not in self._definitions:
                self._templates.done(definition.template)

    # Time ---------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        due = self._definitions.next_timer()
        if due is not None and due < self._due:
            self._due = due
            self._later(max(0.0, due - self._context.now()), self._time_is_up)

    def _time_is_up(self) -> None:
        self._due = math.inf
        self._carry_out(self._definitions.expire(self._context.now()))
