"""Templates that clients make: entered, found again after a restart, given up when not used.

How a client makes one is in `snapshots` and `definer`; how a database becomes a generation is in
`postgres.handmade`.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import msgspec
import structlog

from clonepool.config import made_by_client
from clonepool.core.naming import Kind
from clonepool.core.refusals import shutting_down
from clonepool.errors import (
    ClientLimitError,
    ClonepoolError,
    NotAllowedError,
    TemplateFailedError,
)
from clonepool.postgres import databases
from clonepool.postgres.templates.generations import built_at, contents_of
from clonepool.postgres.templates.recipe import Generation, Recipe
from clonepool.service.tasks import guarded
from clonepool.service.templates.registry import Made, Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import TaskGroup

    from clonepool.config import TemplateSection
    from clonepool.postgres.databases import Database
    from clonepool.postgres.templates.generations import Generations
    from clonepool.service.context import Context

log = structlog.get_logger()

GIVE_UP_FAILED, FIND_FAILED = "template.give_up_failed", "template.find_failed"
_OWNER = "an owner"
"""What is new while one is made, stands for no lease's."""
_LOOK_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 5.0
_TURN_SECONDS = 30.0
_AGAIN_SECONDS = 30.0
"""When to look again at a template that is due to go and still in use."""


class ClientTemplates:
    """The life of templates that clients made.

    Args:
        context: the rooms.
        generations: on the server.
        tasks: where work that takes time is done.

    Attributes:
        registry: which there are.
    """

    def __init__(self, context: Context, generations: Generations, tasks: TaskGroup) -> None:
        self._context = context
        self._options = context.config.client_templates
        self._generations = generations
        self._tasks = tasks
        self._turns: dict[str, anyio.Lock] = {}
        self._under_way: set[str] = set()
        self._found: dict[str, tuple[Database, Generation]] = {}
        self._stirred = anyio.Event()
        self.registry = Registry(context)

    # Making one ---------------------------------------------------------------------------

    def check_allowed(self) -> None:
        """See that clients may make templates.

        Raises:
            NotAllowedError, ShuttingDownError: they may not.
        """
        if self._context.fleet.stopping:
            raise shutting_down()
        if not self._options.allow:
            raise NotAllowedError(
                "clients may not make templates here",
                remedy="set client_templates.allow in the daemon's configuration",
            )

    def begin(self, template: str) -> None:
        """Take a place for one that is about to be made, until `done` is called.

        Where there is none, the one that nobody has used for longest is given up. To be called in
        the template's turn.

        Raises:
            ClientLimitError: all of them are in use; none was given up.
        """
        others = (self._under_way | set(self.registry.living())) - {template}
        surplus = len(others) + 1 - self._options.max_templates
        idle = [name for name in self.registry.living() if self._is_idle(name)]
        if len(idle) < surplus:
            raise ClientLimitError(
                f"clients have made {len(others)} templates, and all are in use",
                remedy="release leases, or raise client_templates.max_templates",
            )
        for name in idle[: max(0, surplus)]:
            self._give_up(name)
        self._under_way.add(template)
        self._context.server_changes.enter(template)

    def done(self, template: str) -> None:
        """The template is made, or will not be."""
        self._under_way.discard(template)
        self._context.server_changes.leave(template)

    def root_of(self, template: str) -> str:
        """Return the configured template whose options a template has; empty for the defined."""
        made = self.registry.made.get(template)
        return made.of if made is not None else template

    def options_of(self, root: str) -> TemplateSection:
        """Return the options of what is made of that template, or defined when it is empty."""
        config = self._context.config
        return made_by_client(config.templates[root] if root else config.client_templates)

    def recipe(self, template: str, section: TemplateSection) -> Recipe:
        """Return a recipe without sources."""
        rewinds = self._context.capabilities.rewinds and section.recycle == "auto"
        ownership = self._context.credentials.ownership(section)
        return Recipe(template, section, Path(), rewindable=rewinds, ownership=ownership)

    def how(self, by: Literal["define", "snapshot"], of: str, section: TemplateSection) -> Made:
        """Return how a template was made, for the next daemon."""
        ownership = self._context.credentials.ownership(section)
        return Made(by, of, ownership.owner, ownership.rights)

    async def prepare(self, section: TemplateSection) -> None:
        """Make the role that is to own what has these options."""
        wide = self._context.server_changes
        wide.enter(_OWNER)
        try:
            await self._context.credentials.prepare(section)
            await wide.accept()
        finally:
            wide.leave(_OWNER)

    @asynccontextmanager
    async def turn(self, template: str) -> AsyncIterator[None]:
        """Make a template, or give it up, while nobody else does either.

        Raises:
            TemplateFailedError: somebody else does for long.
        """
        lock = self._turns.setdefault(template, anyio.Lock())
        held = False
        try:
            try:
                with anyio.fail_after(_TURN_SECONDS):
                    await lock.acquire()
                    held = True
                    while self.registry.is_retired(template):
                        await anyio.sleep(_LOOK_SECONDS)
            except TimeoutError:
                raise TemplateFailedError(
                    f"the template {template} is being made or given up for long",
                    remedy="try again",
                ) from None
            yield
        finally:
            if held:
                lock.release()
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._turns.pop(template, None)

    def settle(
        self, template: str, section: TemplateSection, made: Made, generation: Generation
    ) -> None:
        """Lend clones of a generation from now on; to be called in the template's turn."""
        before = self._context.generations.get(template)
        self._enter(template, section, made, generation)
        log.info(
            "template.made", template=template, by=made.by, database=generation.database,
            relations=generation.contents.relations,
        )  # fmt: skip
        if before is not None:
            self._tasks.start_soon(guarded, self._drop, template, before)

    def _enter(
        self, template: str, section: TemplateSection, made: Made, generation: Generation
    ) -> None:
        context = self._context
        pool = self.registry.enter(template, section, made)
        context.generations[template] = generation
        context.carry_out(pool.template_ready(generation.short, context.now()))
        self._stirred.set()

    # What an earlier daemon left ----------------------------------------------------------

    def find(self, ours: list[Database]) -> None:
        """Enter those templates that are on the server; `restore` lets them be leased.

        To be called before clones are given to their pools.
        """
        if not self._options.allow:
            return
        for database in sorted(ours, key=built_at, reverse=True):
            template = database.identity.template
            if database.identity.kind is not Kind.GENERATION or template in self._found:
                continue
            made, contents = _made(database.comment), contents_of(database)
            configured = self._context.config.templates
            if template in configured or made is None or contents is None:
                continue
            if made.of and made.of not in configured:
                continue
            section = self.options_of(made.of)
            if made != self.how(made.by, made.of, section):
                continue  # its leases would have another owner's rights
            facts = database.comment
            generation = Generation(
                database.identity.generation,
                str(facts.get("fingerprint")),
                database.name,
                contents,
                0,
                reused=True,
                inputs=facts.get("inputs") or {},
                owner=made.owner,
            )
            self._found[template] = database, generation
            self.registry.enter(template, section, made)

    async def restore(self) -> None:
        """Let those be leased that were found."""
        for template, (database, generation) in self._found.items():
            made = _made(database.comment)
            if made is None:
                continue
            section = self.options_of(made.of)
            try:
                await self.prepare(section)
                size = await self._generations.size(database.name)
                await self._generations.drop_others({template}, {database.name})
            except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
                told = self._context.failures.begin(FIND_FAILED, template, error)
                pool = self.registry.pool(template)
                self._context.carry_out(pool.template_failed(told))
                continue
            whole = msgspec.structs.replace(generation, size_bytes=size)
            self._enter(template, section, made, whole)
            log.info("template.found", template=template, database=database.name)
        self._found.clear()

    # The end of one -----------------------------------------------------------------------

    async def run(self) -> None:
        """Give up what nobody has used for so long, for ever."""
        while True:
            self._stirred = anyio.Event()
            now, due = self._context.now(), math.inf
            for template in self.registry.living():
                left = self.registry.used_at(template) + self._options.unused_for - now
                if left > 0:
                    due = min(due, left)
                elif self._is_idle(template):
                    self._give_up(template)
                else:
                    due = min(due, _AGAIN_SECONDS)
            with anyio.move_on_after(due):
                await self._stirred.wait()

    def lost(self, template: str, *, damaged: bool = False) -> None:
        """Its database is gone, or not what it was: nobody but a client can make it again."""
        if self.registry.is_ready(template):
            self._tasks.start_soon(guarded, self._look_for, template, damaged)

    async def _look_for(self, template: str, damaged: bool) -> None:
        context = self._context
        async with self.turn(template):
            generation = context.generations.get(template)
            if generation is None or not self.registry.is_ready(template):
                return
            try:
                there = {each.name for each in await self._generations.of({template})}
                if generation.database in there and not damaged:
                    return
                await databases.drop(context.gateway, generation.database, sealed=True)
            except ClonepoolError:
                return  # the server is away: it is looked again when a clone cannot be made
            log.warning("template.lost", template=template)
            pool = self.registry.pool(template)
            error = TemplateFailedError(
                f"the database of {template}, which a client made, is gone", remedy="make it again"
            )
            context.carry_out([*pool.template_failed(error), *pool.distrust()])

    def _is_idle(self, template: str) -> bool:
        """Say whether nobody uses it, and nobody makes it anew."""
        busy = template in self._turns or template in self._under_way
        return self.registry.pool(template).is_idle and not busy

    def _give_up(self, template: str) -> None:
        """Lend it no more, and remove it when its clones are gone."""
        log.info("template.given_up", template=template)
        self._context.carry_out(self.registry.pool(template).retire())
        self._tasks.start_soon(guarded, self._remove, template)

    async def _remove(self, template: str) -> None:
        pool = self.registry.pool(template)
        while pool.databases:
            await anyio.sleep(_LOOK_SECONDS)
        generation = self._context.generations.get(template)
        self.registry.remove(template)
        if generation is not None:
            await self._drop(template, generation)

    async def _drop(self, template: str, generation: Generation) -> None:
        """Drop a generation, again and again until it is gone."""
        context, pause = self._context, _LOOK_SECONDS
        while True:
            try:
                await context.rewinder.generation_retired(generation.database)
                await databases.drop(context.gateway, generation.database, sealed=True)
            except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
                context.failures.begin(GIVE_UP_FAILED, template, error)
            else:
                context.failures.end(GIVE_UP_FAILED, template)
                return
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def facts_of(made: Made) -> dict[str, Any]:
    """Return what a generation's comment tells the next daemon."""
    return {"made": msgspec.to_builtins(made)}


def _made(comment: dict[str, Any]) -> Made | None:
    """Return how a client made a generation; None when none did."""
    try:
        return msgspec.convert(comment.get("made"), Made)
    except msgspec.ValidationError:
        return None
