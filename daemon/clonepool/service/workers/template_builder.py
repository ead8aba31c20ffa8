"""Finds or builds each template's generation: at the start, when its sources change, when told to.

One after another, a template that others extend before these. From the moment in which a source is
seen to have changed nothing of the old generation is granted; leases on it go on. Generations that
are not current any more stay for a while, so that going back to what was costs nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
import structlog

from clonepool import scarcity
from clonepool.core.pool import Phase
from clonepool.errors import ClonepoolError, ResourceError, ServerUnavailableError
from clonepool.postgres import databases
from clonepool.postgres.generations import built_at
from clonepool.postgres.recipe import Recipe, differences

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.builder import Builder, Step
    from clonepool.postgres.recipe import Generation, Inputs
    from clonepool.postgres.sources import Digests
    from clonepool.service.workers.context import Context

log = structlog.get_logger()

BUILD_POSTPONED, BUILD_FAILED = "template.build_postponed", "template.build_failed"
LOOK_POSTPONED = "template.look_postponed"
_PAUSE_SECONDS = 1.0
QUIET_SECONDS = 0.1
"""So long nothing more must have changed before a build begins: one save is seldom alone."""


class Built(NamedTuple):
    """How a build ended, for who asked for it."""

    generation: Generation | None
    error: ClonepoolError | None
    seconds: float


class _Asker(NamedTuple):
    """Who asked for a build: how it is told of steps, and of the end."""

    tell: Callable[[Step], None]
    answer: Callable[[Built], None]


class Explanation(NamedTuple):
    """What goes into a template, and what of it is not in its generation."""

    generation: str
    inputs: dict[str, dict[str, str]]
    due: list[str]


class TemplateBuilder:
    """Brings the templates up, and tidies away what they replace."""

    def __init__(self, context: Context, builder: Builder) -> None:
        self._context = context
        self._builder = builder
        self._gone: set[str] = set()
        self._anew: set[str] = set()
        self._damaged: set[str] = set()
        self._wanted = anyio.Event()
        self._changed_at = 0.0
        self.begun = anyio.Event()
        """Set when every template was built, or failed, for the first time."""
        self._seen: dict[str, str] = {}
        """By template: the fingerprint that was last built or is to be, or why there is none."""
        self._asking: dict[str, list[_Asker]] = {}
        """By template: who is to be answered by the next build; one under way began before."""
        self._answering: dict[str, list[_Asker]] = {}
        """By template: who is to be answered by the build that is under way."""
        self.under_way: dict[str, Step] = {}
        """By template: where its build is, while there is one."""

    async def run(self) -> None:
        """Build every template, then those that need it, for ever."""
        for template in self._in_order(set(self._context.config.templates)):
            await self._insist(template)
        await self._tidy()
        self.begun.set()
        while True:
            await self._wanted.wait()
            while (left := self._changed_at + QUIET_SECONDS - self._context.now()) > 0:
                await anyio.sleep(left)
            self._wanted = anyio.Event()
            while self._gone:
                (template, *_) = self._in_order(self._gone)
                self._gone.discard(template)
                await self._insist(template)
            await self._tidy()

    def rebuild(self, template: str) -> None:
        """Have a template built again: its generation is not on the server any more."""
        if self._give_up(template):
            log.warning("template.lost", template=template)

    def replace(self, template: str) -> None:
        """Have a template built again: clones of its generation are not what it was.

        So it is after a crash of the server, which empties unlogged tables.
        """
        if self._give_up(template):
            log.warning("template.damaged", template=template)
            self._damaged.add(template)

    def ask(
        self,
        template: str,
        tell: Callable[[Step], None],
        answer: Callable[[Built], None],
        *,
        anew: bool,
    ) -> None:
        """Have a template looked at, and built if need be or if `anew`.

        Args:
            template: its name.
            tell: is told of each step.
            answer: is called once, when it is done.
            anew: build it although nothing is seen to have changed.
        """
        self._asking.setdefault(template, []).append(_Asker(tell, answer))
        if anew:
            self._anew.add(template)
            self._stale(template, ["somebody asked for it"])
        self._want(template)
        self._changed_at = 0.0  # nothing is being edited: there is nothing to wait for

    async def look_at_all(self) -> None:
        """Have every template built again of which a source has changed.

        What cannot be looked at for want of something is looked at again until it can be.
        """
        left = set(self._context.config.templates)
        while left := await self._look(left):
            await anyio.sleep(_PAUSE_SECONDS)

    async def _look(self, templates: set[str]) -> set[str]:
        """Look at some; return those that could not be looked at, and should be again soon.

        Those that were never built yet are left alone: their sources are looked at afterwards.
        """
        left = set()
        for template in self._in_order(templates & self._seen.keys()):
            try:
                inputs = await self._builder.inputs(self._recipe(template))
            except ResourceError as error:
                self._context.troubles.begin(LOOK_POSTPONED, template, error)
                left.add(template)
                continue
            except ServerUnavailableError:
                continue  # it is looked again when the server is back
            except ClonepoolError as error:
                found, reasons = str(error), [str(error)]  # the build will say so to whoever asks
            else:
                found, reasons = inputs.full, self._due(template, inputs)
            if self._seen.get(template) != found:
                self._seen[template] = found
                self._stale(template, reasons)
            self._context.troubles.end(LOOK_POSTPONED, template)
        return left

    async def explain(self, template: str) -> Explanation:
        """Say what goes into a template now, and why a build of it is due, if it is.

        Raises:
            TemplateFailedError, ServerUnavailableError: it cannot be found out.
        """
        inputs = await self._builder.inputs(self._recipe(template))
        return Explanation(inputs.short, inputs.entries, self._due(template, inputs))

    @property
    def digests(self) -> Digests:
        """Those of the files that were looked at."""
        return self._builder.digests

    def sources(self) -> dict[str, Recipe]:
        """Return the recipes of all templates, for who watches their files."""
        return {template: self._recipe(template) for template in self._context.config.templates}

    def _due(self, template: str, inputs: Inputs) -> list[str]:
        current = self._context.generations.get(template)
        if current is None:
            return ["it was never built"]
        if current.full == inputs.full:
            return []
        return differences(current.inputs, inputs.entries) or ["the format of builds changed"]

    def _stale(self, template: str, reasons: list[str]) -> None:
        """Grant nothing more of a generation that is not what it should be, and build another."""
        context = self._context
        log.info("template.stale", template=template, reasons=reasons[:5], count=len(reasons))
        context.fleet.pools[template].template_stale()
        self._want(template)

    def _want(self, template: str) -> None:
        self._changed_at = self._context.now()
        self._gone.add(template)
        self._wanted.set()

    def _give_up(self, template: str) -> bool:
        """Have a template built again, unless that is so already."""
        pool = self._context.fleet.pools[template]
        if pool.phase is not Phase.READY:
            return False
        pool.template_lost()
        self._want(template)
        return True

    def _in_order(self, templates: set[str]) -> list[str]:
        """Return them so that each comes after the one it extends."""
        sections = self._context.config.templates

        def depth(template: str) -> int:
            lower = sections[template].extends
            return 1 + depth(lower) if lower else 0

        return sorted((name for name in sections if name in templates), key=depth)

    def _recipe(self, template: str) -> Recipe:
        context, section = self._context, self._context.config.templates[template]
        return Recipe(
            template,
            section,
            Path(context.config.directory),
            rewindable=context.is_rewindable(template),
            ownership=context.credentials.ownership(section),
            lower=context.generations.get(section.extends),
        )

    async def _insist(self, template: str) -> None:
        """Build one; a server that is away is waited for, and a mistake of ours ends this build."""
        try:
            while not await self._run_once(template):
                await anyio.sleep(_PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            told = self._context.troubles.begin(BUILD_FAILED, template, error)
            self._answer(template, Built(None, told, 0.0))

    async def _tidy(self) -> None:
        """Drop generations that nobody will go back to: beyond a number, or too old."""
        context = self._context
        keep = {generation.database for generation in context.generations.values()}
        try:
            configured = set(context.generations) & set(context.config.templates)
            found = await self._builder.generations.of(configured)
            for template in configured:
                section = context.config.templates[template]
                since = time.time() - section.keep_generations_for
                former = [
                    each
                    for each in found
                    if each.identity.template == template and each.name not in keep
                ]
                keep |= {
                    each.name
                    for each in former[: section.keep_generations]
                    if built_at(each) >= since
                }
            for name in await self._builder.generations.drop_others(configured, keep):
                log.info("template.stale_dropped", database=name)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.troubles.begin("template.stale_kept", "", error)

    async def _run_once(self, template: str) -> bool:
        """Find or build one; say whether that is settled, one way or the other."""
        context, section = self._context, self._context.config.templates[template]
        pool, began = context.fleet.pools[template], context.now()
        self._answering.setdefault(template, []).extend(self._asking.pop(template, []))
        anew = template in self._anew
        self._anew.discard(template)
        try:
            if template in self._damaged:
                damaged = context.generations[template].database
                await databases.drop(context.gateway, damaged, sealed=True)
                self._damaged.discard(template)
            context.server_wide.enter(template)
            await context.credentials.prepare(section)
            generation = await self._builder.ensure(
                self._recipe(template),
                lambda step: self._tell(template, step),
                anew=anew,
            )
            await context.server_wide.accept()
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.server_wide.leave(template)
            if isinstance(error, ServerUnavailableError) or scarcity.shortage(error):
                context.troubles.begin(BUILD_POSTPONED, template, error)
                self._anew |= {template} if anew else set()
                return False
            told = context.troubles.begin(BUILD_FAILED, template, error)
            self._seen[template] = self._builder.tried.pop(template, str(error))
            self._fail(template, told)
            self._answer(template, Built(None, told, context.now() - began))
            return True
        context.server_wide.leave(template)
        context.troubles.end(BUILD_POSTPONED, template)
        context.troubles.end(BUILD_FAILED, template)
        seconds = context.now() - began
        context.metrics.of[template].build_seconds.observe(seconds)
        log.info(
            "template.reused" if generation.reused else "template.built",
            template=template,
            database=generation.database,
            relations=generation.contents.relations,
            duration_seconds=round(seconds, 3),
        )
        before = context.generations.get(template)
        context.generations[template] = generation
        self._seen[template] = generation.full
        if not generation.reused:
            context.rewinder.built(generation.database)
        context.carry_out(pool.template_ready(generation.short, context.now()))
        self._answer(template, Built(generation, None, seconds))
        if before is not None and before.short != generation.short:
            await self._retire(before)
            for upper, other in context.config.templates.items():
                if other.extends == template:
                    self._stale(upper, [f"extends: {template} was changed"])
        return True

    async def _retire(self, generation: Generation) -> None:
        """Forget what is only needed to rewind clones of that generation."""
        try:
            await self._context.rewinder.retire(generation.database)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            self._context.troubles.begin("template.stale_kept", "", error)

    def _fail(self, template: str, error: ClonepoolError) -> None:
        """Refuse acquires with the cause, or go on with what there was if that is wanted."""
        context, pool = self._context, self._context.fleet.pools[template]
        former = context.generations.get(template)
        if context.config.templates[template].on_failure == "serve_previous" and former:
            log.warning("template.previous_served", template=template, database=former.database)
            context.carry_out(pool.template_ready(former.short, context.now()))
            return
        context.carry_out(pool.template_failed(error))

    def _tell(self, template: str, step: Step) -> None:
        self.under_way[template] = step
        for asker in [*self._answering.get(template, []), *self._asking.get(template, [])]:
            asker.tell(step)

    def _answer(self, template: str, built: Built) -> None:
        self.under_way.pop(template, None)
        for asker in self._answering.pop(template, []):
            asker.answer(built)
