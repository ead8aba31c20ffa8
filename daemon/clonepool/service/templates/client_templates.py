"""Templates that clients make: entered, found again after a restart, given up when not used.

How many there may be and which one is given up is decided by `core.client_templates`. How a client
makes one is in `snapshots` and `fills`; how a database becomes a generation is in
`postgres.templates.client_generation`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import structlog

from clonepool.config import made_by_client
from clonepool.core.backoff import Backoff
from clonepool.core.client_templates import ClientTemplateBook, Method, Use
from clonepool.core.events import ReadyDistrusted, Retire, TemplateFailed, TemplateReady
from clonepool.core.naming import Kind
from clonepool.core.refusals import shutting_down
from clonepool.errors import ClonepoolError, NotAllowedError, TemplateFailedError
from clonepool.postgres import databases
from clonepool.postgres.templates.generations import built_at, contents_of
from clonepool.postgres.templates.recipe import Generation, Recipe
from clonepool.service.tasks import guarded
from clonepool.service.templates.registry import Origin
from clonepool.service.templates.turns import Turns
from clonepool.service.wakeup import WakeUp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from anyio.abc import TaskGroup

    from clonepool.config import ClientTemplatesSection, TemplateSection
    from clonepool.core.fleet import Fleet
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.databases import Database
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.postgres.templates.generations import Generations
    from clonepool.service.credentials import Credentials
    from clonepool.service.event_handler import EventHandler
    from clonepool.service.failures import Failures
    from clonepool.service.server_changes import ServerChanges
    from clonepool.service.state_changes import StateChanges
    from clonepool.service.templates.interfaces import TemplateTable
    from clonepool.service.templates.registry import Registry

log = structlog.get_logger()

GIVE_UP_FAILED, FIND_FAILED = "template.give_up_failed", "template.find_failed"
_OWNER = "an owner"
"""The name under which the roles of owners are made; leases have others."""
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 5.0
"""Seconds between two tries to drop a generation that is no longer used."""


class ClientTemplates:
    """The life of templates that clients made.

    Args:
        capabilities: of the server.
        changed: is notified after every event of the pools.
        configured: the configured templates.
        credentials: make the owners of templates.
        events: is told whether a template can be leased.
        failures: logs and counts what fails.
        fleet: is asked whether the daemon is stopping.
        gateway: the way to the server.
        generations: on the server.
        now: returns monotonic seconds.
        options: what clients may make.
        registry: enters and removes templates.
        rewinder: forgets generations that are no longer used.
        server_changes: learns which roles are made.
        table: the current generations.
        tasks: where work that takes time is done.
    """

    def __init__(  # noqa: PLR0913 - each by name, and made in one place
        self,
        *,
        capabilities: Capabilities,
        changed: StateChanges,
        configured: Mapping[str, TemplateSection],
        credentials: Credentials,
        events: EventHandler,
        failures: Failures,
        fleet: Fleet,
        gateway: Gateway,
        generations: Generations,
        now: Callable[[], float],
        options: ClientTemplatesSection,
        registry: Registry,
        rewinder: Rewinder,
        server_changes: ServerChanges,
        table: TemplateTable,
        tasks: TaskGroup,
    ) -> None:
        self._capabilities = capabilities
        self._changed = changed
        self._configured = configured
        self._credentials = credentials
        self._events = events
        self._failures = failures
        self._fleet = fleet
        self._gateway = gateway
        self._generations = generations
        self._now = now
        self._options = options
        self._registry = registry
        self._rewinder = rewinder
        self._server_changes = server_changes
        self._table = table
        self._tasks = tasks
        self._book = ClientTemplateBook(options.max_templates, options.unused_for, self._use_of)
        self._found: dict[str, tuple[Origin, Generation]] = {}
        self._woken = WakeUp()
        self._turns = Turns(self._until_gone)

    def __contains__(self, template: str) -> bool:
        return template in self._book

    # Making one ---------------------------------------------------------------------------

    def check_allowed(self) -> None:
        """Check that clients may make templates.

        Raises:
            NotAllowedError, ShuttingDownError: they may not.
        """
        if self._fleet.stopping:
            raise shutting_down()
        if not self._options.allow:
            raise NotAllowedError(
                "clients are not allowed to make templates",
                remedy="set client_templates.allow in the daemon's configuration",
            )

    def turn(self, template: str) -> AbstractAsyncContextManager[None]:
        """Work on a template while no other task does; see `Turns.take`."""
        return self._turns.take(template)

    def begin(self, template: str) -> None:
        """Take a place for a template that is about to be made, until `end` is called.

        Where there is none, the template is given up that was unused for longest. To be called in
        the template's turn.

        Raises:
            ClientLimitError: all of them are in use; none was given up.
        """
        for given_up in self._book.begin(template):
            self._give_up(given_up)
        self._server_changes.enter(template)

    def end(self, template: str) -> None:
        """The template is made, or will not be."""
        self._book.end(template)
        self._server_changes.leave(template)

    def origin(self, template: str) -> Origin | None:
        """Return how a client made that template; None if none did."""
        return self._registry.origins.get(template)

    def is_ready(self, template: str) -> bool:
        """Say whether a client made that template and it can be leased."""
        return self._registry.is_ready(template)

    def root_of(self, template: str) -> str:
        """Return the configured template whose options a template has; empty for the defined."""
        origin = self.origin(template)
        return origin.of if origin is not None else template

    def options_of(self, root: str) -> TemplateSection:
        """Return the options of what is made of that template, or defined when it is empty."""
        return made_by_client(self._configured[root] if root else self._options)

    def recipe(self, template: str, section: TemplateSection) -> Recipe:
        """Return a recipe without sources."""
        ownership = self._credentials.ownership(section)
        rewindable = self._capabilities.rewinds and section.recycle == "auto"
        return Recipe(template, section, Path(), rewindable=rewindable, ownership=ownership)

    def origin_of(self, by: Method, of: str, section: TemplateSection) -> Origin:
        """Return how a template is made, to be told to the next daemon."""
        ownership = self._credentials.ownership(section)
        return Origin(by, of, ownership.owner, ownership.rights)

    async def prepare(self, section: TemplateSection) -> None:
        """Make the role that is to own what has these options."""
        self._server_changes.enter(_OWNER)
        try:
            await self._credentials.prepare(section)
            await self._server_changes.accept()
        finally:
            self._server_changes.leave(_OWNER)

    def settle(
        self, template: str, section: TemplateSection, origin: Origin, generation: Generation
    ) -> None:
        """Lend clones of a generation from now on; to be called in the template's turn."""
        before = self._table.generations.get(template)
        self._enter(template, section, origin, generation)
        log.info(
            "template.made", template=template, by=origin.by, database=generation.database,
            relations=generation.contents.relations,
        )  # fmt: skip
        if before is not None:
            self._tasks.start_soon(guarded, self._drop, template, before)

    def _enter(
        self, template: str, section: TemplateSection, origin: Origin, generation: Generation
    ) -> None:
        self._registry.enter(template, section, origin)
        self._book.enter(template, self._now())
        self._table.generations[template] = generation
        self._events.handle(TemplateReady(template, generation.short))
        self._woken.set()

    # What an earlier daemon left ----------------------------------------------------------

    def find(self, ours: list[Database]) -> None:
        """Enter those templates that are on the server; `restore` lets them be leased.

        To be called before clones are given to their pools.
        """
        if not self._options.allow:
            return
        for database in sorted(ours, key=built_at, reverse=True):
            template = database.identity.template
            if template in self._found or template in self._configured:
                continue
            origin = _origin_in(database.comment)
            if origin is None or not self._can_go_on(origin):
                continue
            generation = _generation_in(database, origin)
            if generation is None:
                continue
            self._found[template] = origin, generation
            self._registry.enter(template, self.options_of(origin.of), origin)
            self._book.enter(template, self._now())

    def _can_go_on(self, origin: Origin) -> bool:
        """Say whether leases have the rights that they had when the template was made."""
        if origin.of and origin.of not in self._configured:
            return False
        return origin == self.origin_of(origin.by, origin.of, self.options_of(origin.of))

    async def restore(self) -> None:
        """Make the templates that `find` found available to leases."""
        for template, (origin, generation) in self._found.items():
            section = self.options_of(origin.of)
            with self._failures.attempt(FIND_FAILED, template) as attempt:
                await self.prepare(section)
                size = await self._generations.size(generation.database)
                await self._generations.drop_others({template}, {generation.database})
            if attempt.failed:
                self._events.handle(TemplateFailed(template, attempt.error))
                continue
            whole = msgspec.structs.replace(generation, size_bytes=size)
            self._enter(template, section, origin, whole)
            log.info("template.found", template=template, database=generation.database)
        self._found.clear()

    # The end of one -----------------------------------------------------------------------

    async def run(self) -> None:
        """Give up templates that have not been used for long, until cancelled."""
        while True:
            now = self._now()
            for template in self._book.expire(now):
                self._give_up(template)
            due = self._book.next_timer(now)
            await self._woken.wait(math.inf if due is None else due - now)

    def lost(self, template: str, *, damaged: bool) -> None:
        """The database is gone, or `damaged`: only a client can make the template again."""
        if self.is_ready(template):
            self._tasks.start_soon(guarded, self._look_for, template, damaged)

    async def _look_for(self, template: str, damaged: bool) -> None:
        async with self.turn(template):
            generation = self._table.generations.get(template)
            if generation is None or not self.is_ready(template):
                return
            try:
                there = {each.name for each in await self._generations.of({template})}
                if generation.database in there and not damaged:
                    return
                await databases.drop(self._gateway, generation.database, sealed=True)
            except ClonepoolError:
                return  # the server is away: it is looked for again when no clone can be made
            log.warning("template.lost", template=template)
            error = TemplateFailedError(
                f"the database of {template}, which a client made, is gone", remedy="make it again"
            )
            self._events.handle(TemplateFailed(template, error))
            self._events.handle(ReadyDistrusted(template))

    def _use_of(self, template: str) -> Use:
        pool = self._registry.pool(template)
        is_idle = pool.is_idle and template not in self._turns
        return Use(pool.leasing.last_begun, is_idle)

    def _give_up(self, template: str) -> None:
        """Lend it no more, and remove it when its clones are gone."""
        log.info("template.given_up", template=template)
        self._events.handle(Retire(template))
        self._tasks.start_soon(guarded, self._remove, template)

    async def _remove(self, template: str) -> None:
        pool = self._registry.pool(template)
        await self._changed.wait_for(lambda: not pool.databases)
        generation = self._table.generations.get(template)
        self._book.remove(template)
        self._registry.remove(template)
        if generation is not None:
            await self._drop(template, generation)

    async def _until_gone(self, template: str) -> None:
        """Return when a template of that name that was given up is gone."""
        await self._changed.wait_for(lambda: not self._book.is_given_up(template))

    async def _drop(self, template: str, generation: Generation) -> None:
        """Drop a generation, again and again until it is gone."""
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        while True:
            with self._failures.attempt(GIVE_UP_FAILED, template):
                await self._rewinder.generation_retired(generation.database)
                await databases.drop(self._gateway, generation.database, sealed=True)
                return
            await anyio.sleep(backoff.next_pause())


def facts_of(origin: Origin) -> dict[str, Any]:
    """Return what the comment of a generation tells the next daemon."""
    return {"made": msgspec.to_builtins(origin)}


def _origin_in(comment: dict[str, Any]) -> Origin | None:
    """Return how a client made a generation; None when none did."""
    try:
        return msgspec.convert(comment.get("made"), Origin)
    except msgspec.ValidationError:
        return None


def _generation_in(database: Database, origin: Origin) -> Generation | None:
    """Return the generation that a database is, its size left out; None if it is none."""
    contents, facts = contents_of(database), database.comment
    if database.identity.kind is not Kind.GENERATION or contents is None:
        return None
    return Generation(
        database.identity.generation,
        str(facts.get("fingerprint")),
        database.name,
        contents,
        0,
        reused=True,
        inputs=facts.get("inputs") or {},
        owner=origin.owner,
    )
