"""Finds or builds each template's generation: at the start, when its sources change, when told to.

Some at a time, templates that are waited for first, and one that others extend before these. From
the moment in which a source is seen to have changed nothing of the old generation is granted;
leases on it go on. Generations that are not current any more stay for a while, so that going back
to what was costs nothing.
"""

from __future__ import annotations

import time
from enum import Enum, auto
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread
import structlog

from clonepool import resource_errors
from clonepool.core.limits import is_refused
from clonepool.core.pool import Phase
from clonepool.errors import ClonepoolError, ServerUnavailableError, TemplateFailedError
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import DamagedError
from clonepool.postgres.templates.generations import built_at
from clonepool.postgres.templates.recipe import Recipe, differences

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.templates.builder import Builder, Step
    from clonepool.postgres.templates.file_digests import Digests
    from clonepool.postgres.templates.recipe import Generation, Inputs
    from clonepool.service.context import Context

log = structlog.get_logger()

BUILD_POSTPONED, BUILD_FAILED = "template.build_postponed", "template.build_failed"
LOOK_POSTPONED = "template.look_postponed"
_PAUSE_SECONDS = 1.0
_MOST_REPEATS = 3
"""So often a template is built again at once; then those that wait for their turn come first."""
QUIET_SECONDS = 0.1
"""So long nothing more must have changed before a build begins: one save is seldom alone."""
LONGEST_UNREST_SECONDS = 5.0
"""After so long a build begins although the files go on changing."""


class _End(Enum):
    """How a pass ended."""

    SETTLED = auto()
    POSTPONED = auto()
    """The server is away, or what it is built on is not what it was."""
    OUTDATED = auto()
    """Something was changed after the build had looked for the last time."""
    DISTURBED = auto()
    """It failed while others were built, and is tried again alone: they may need the same roles."""


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
    """What goes into a template, what of it is not in its generation, and what may not be meant."""

    generation: str
    inputs: dict[str, dict[str, str]]
    due: list[str]
    warnings: list[str]


class TemplateBuilder:
    """Brings the templates up, and tidies away what they replace."""

    def __init__(self, context: Context, builder: Builder) -> None:
        self._context = context
        self._builder = builder
        self._gone: dict[str, None] = {}
        """Templates that are to be built, in the order in which that came to be wanted."""
        self._anew: set[str] = set()
        self._damaged: set[str] = set()
        self._wanted = anyio.Event()
        self._changed_at = 0.0
        self._building: set[str] = set()
        self._not_before: dict[str, float] = {}
        """When templates that are to be built may be tried again, in monotonic seconds."""
        self._accompanied: set[str] = set()
        """Templates beside whose build there was another one."""
        self._alone: set[str] = set()
        """Templates that are to be built while no other is."""
        self._preparing = anyio.Lock()
        self.settled: Callable[[], None] = lambda: None
        """Called after each build: what changed while it ran is to be looked for."""
        self._looking = anyio.Lock()
        self._seen: dict[str, str] = {}
        """By template: the fingerprint that was last built or is to be, or why there is none."""
        self._edited: set[str] = set()
        """Templates that may have changed since their last build began."""
        self._asking: dict[str, list[_Asker]] = {}
        """By template: who is to be answered by the next build; one under way began before."""
        self._answering: dict[str, list[_Asker]] = {}
        """By template: who is to be answered by the build that is under way."""
        self.under_way: dict[str, Step] = {}
        """By template: where its build is, while there is one."""

    async def run(self) -> None:
        """Build every template, then those that need it, for ever: some side by side."""
        self._gone = dict.fromkeys(self._in_order(set(self._context.config.templates)))
        async with anyio.create_task_group() as builds:
            while True:
                self._wanted = anyio.Event()
                await self._quiet()
                for template in self._startable():
                    self._gone.pop(template, None)
                    self._not_before.pop(template, None)
                    self._building.add(template)
                    builds.start_soon(self._take_turn, template)
                if len(self._building) > 1:
                    self._accompanied |= self._building
                if not self._gone and not self._building:
                    await self._tidy()
                with anyio.move_on_after(self._pause()):
                    await self._wanted.wait()

    async def _take_turn(self, template: str) -> None:
        """Build one; a mistake of ours ends this build."""
        try:
            await self._insist(template)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            told = self._context.failures.begin(BUILD_FAILED, template, error)
            self._fail(template, told)
            self._answer(template, Built(None, told, 0.0))
        finally:
            self._building.discard(template)
            self._accompanied.discard(template)
            if template not in self._gone:
                self._alone.discard(template)
            self._wanted.set()

    def _pause(self) -> float:
        """Return for how many seconds nothing can be tried again; without end if nothing waits."""
        now = self._context.now()
        return min((at for at in self._not_before.values() if at > now), default=inf) - now

    def _startable(self) -> list[str]:
        """Return what can be built now, as many as may be: first what most requests wait for.

        None whose last build runs still, nor one that extends a template that is to be built.
        """
        now = self._context.now()
        ready = [
            template
            for template in self._gone
            if template not in self._building
            and self._not_before.get(template, now) <= now
            and not self._waits_for_lower(template)
        ]
        ready.sort(key=lambda template: -self._waiting_for(template))
        if alone := [template for template in ready if template in self._alone]:
            return [] if self._building else alone[:1]
        if self._alone & self._building:
            return []
        return ready[: max(0, self._context.config.pool.ddl_concurrency - len(self._building))]

    def _waits_for_lower(self, template: str) -> bool:
        """Say whether a template that this one extends, at any depth, is to be built first."""
        lower = self._context.config.templates[template].extends
        due = lower in self._gone or lower in self._building
        return bool(lower) and (due or self._waits_for_lower(lower))

    def _waiting_for(self, template: str) -> int:
        """Return how many requests wait for a template and for those that extend it."""
        sections = self._context.config.templates
        uppers = [name for name in sections if sections[name].extends == template]
        own = self._context.fleet.pools[template].waiting
        return own + sum(map(self._waiting_for, uppers))

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
            tell: is told of each step, and of the present one of a build under way.
            answer: is called once, when it is done.
            anew: build it although nothing is seen to have changed.
        """
        self._asking.setdefault(template, []).append(_Asker(tell, answer))
        if (step := self.under_way.get(template)) is not None:
            tell(step)  # of the build under way, which comes first: its next step may be far off
        if anew:
            self._anew.add(template)
            self._stale(template, ["somebody asked for it"])
        self._want(template)
        self._changed_at = 0.0  # nothing is being edited: there is nothing to wait for

    async def look(self, templates: set[str]) -> None:
        """Have those of these templates built again of which a source has changed.

        Of those that were never built yet it is remembered: they are looked at when they are. One
        look at a time: what an earlier one saw must not come after what is seen now. What cannot be
        looked at for want of something is looked at again until it can be.
        """
        async with self._looking:
            self._edited |= templates - self._seen.keys()
            left = templates & self._seen.keys()
            while left := {each for each in self._in_order(left) if not await self._look_at(each)}:
                await anyio.sleep(_PAUSE_SECONDS)

    async def _look_at(self, template: str) -> bool:
        """Look at one; say whether that could be done."""
        try:
            inputs = await self._builder.inputs(self._recipe(template))
        except Exception as error:  # noqa: BLE001 - the build will say so to whoever asks
            if resource_errors.shortage(error):
                self._context.failures.begin(LOOK_POSTPONED, template, error)
                return False
            if isinstance(error, ServerUnavailableError):
                return True  # it is looked again when the server is back
            found, reasons = str(error), [str(error)]
        else:
            found, reasons = await anyio.to_thread.run_sync(self._compare, template, inputs)
        if self._seen.get(template) != found:
            self._seen[template] = found
            self._stale(template, reasons)
        self._context.failures.end(LOOK_POSTPONED, template)
        return True

    async def explain(self, template: str) -> Explanation:
        """Say what goes into a template now, and why a build of it is due, if it is.

        Raises:
            TemplateFailedError, ServerUnavailableError: it cannot be found out.
        """
        inputs = await self._builder.inputs(self._recipe(template))
        return Explanation(
            inputs.short, inputs.entries, self._due(template, inputs), inputs.warnings
        )

    @property
    def digests(self) -> Digests:
        """Those of the files that were looked at."""
        return self._builder.digests

    def sources(self) -> dict[str, Recipe]:
        """Return the recipes of all templates, for who watches their files."""
        return {template: self._recipe(template) for template in self._context.config.templates}

    async def _quiet(self) -> None:
        """Wait until files have ceased to change: a checkout of many takes its time.

        They are looked at once more, since watches tell of a change with some delay.
        """
        with anyio.move_on_after(LONGEST_UNREST_SECONDS):
            while True:
                while (left := self._changed_at + QUIET_SECONDS - self._context.now()) > 0:
                    await anyio.sleep(left)
                changed_at = self._changed_at
                await self.look(set(self._gone))
                if self._changed_at == changed_at:
                    return

    def _compare(self, template: str, inputs: Inputs) -> tuple[str, list[str]]:
        """Return the fingerprint, and how it differs from what is there; blocks."""
        return inputs.full, self._due(template, inputs)

    def _due(self, template: str, inputs: Inputs) -> list[str]:
        current = self._context.generations.get(template)
        if current is None:
            return ["it was never built"]
        if current.full == inputs.full:
            return []
        return differences(current.inputs, inputs.entries) or ["the format of builds changed"]

    def _stale(self, template: str, reasons: list[str]) -> None:
        """Grant nothing more of a generation that is not what it should be, and build another.

        Nor of those that extend it.
        """
        context = self._context
        log.info("template.stale", template=template, reasons=reasons[:5], count=len(reasons))
        context.fleet.pools[template].template_stale()
        self._edited.add(template)
        self._want(template)
        for upper in self._uppers(template):
            self._stale(upper, [f"extends: {template} was changed"])

    def _uppers(self, template: str) -> list[str]:
        """Return the templates that extend this one, of those that were built before."""
        sections = self._context.config.templates
        return [
            name for name in sections if sections[name].extends == template and name in self._seen
        ]

    def _want(self, template: str) -> None:
        self._changed_at = self._context.now()
        self._gone.setdefault(template)
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
        """Build one; if it is not settled then, it is wanted still, and has its turn again."""
        for repeats in range(_MOST_REPEATS + 1):
            end = await self._run_once(template, patient=repeats < _MOST_REPEATS)
            if end is not _End.OUTDATED or self._waits_for_lower(template):
                return
            await anyio.sleep(QUIET_SECONDS)
            if repeats < _MOST_REPEATS:
                self._gone.pop(template, None)

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
            context.failures.begin("template.stale_kept", "", error)

    async def _run_once(self, template: str, *, patient: bool) -> _End:
        """Find or build one.

        Args:
            template: its name.
            patient: a failure is not told of what was changed meanwhile.
        """
        context, began = self._context, self._context.now()
        self._answering.setdefault(template, []).extend(self._asking.pop(template, []))
        anew = template in self._anew
        self._anew.discard(template)
        self._edited.discard(template)
        try:
            generation, changed = await self._build(template, anew=anew)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.server_changes.leave(template)
            if isinstance(error, DamagedError):
                self.replace(context.config.templates[template].extends)
            if _is_passing(error):
                self._postpone(template, context.failures.begin(BUILD_POSTPONED, template, error))
                self._anew |= {template} if anew else set()
                return self._try_again(template, _End.POSTPONED)
            if template in self._accompanied:
                log.info("template.disturbed", template=template, error=str(error))
                self._anew |= {template} if anew else set()
                self._alone.add(template)
                return self._try_again(template, _End.DISTURBED)
            told = context.failures.begin(BUILD_FAILED, template, error)
            tried = self._builder.tried.pop(template, "")
            if patient and template in self._edited:
                return self._begin_again(template, ["it was changed while it was built"])
            self._seen[template] = tried or str(error)
            if tried:  # otherwise there is nothing to be compared with what the files say now
                self.settled()
            self._fail(template, told)
            self._answer(template, Built(None, told, context.now() - began))
            return _End.SETTLED
        context.server_changes.leave(template)
        context.failures.end(BUILD_POSTPONED, template)
        self._postpone(template, None)
        context.failures.end(BUILD_FAILED, template)
        seconds = context.now() - began
        context.metrics.of[template].build_seconds.observe(seconds)
        log.info(
            "template.reused" if generation.reused else "template.built",
            template=template,
            database=generation.database,
            relations=generation.contents.relations,
            duration_seconds=round(seconds, 3),
        )
        for warning in generation.warnings:
            log.warning("template.doubtful", template=template, place=warning)
        if changed:
            return self._begin_again(template, changed)
        await self._settle(template, generation, seconds)
        return _End.SETTLED

    async def _build(self, template: str, *, anew: bool) -> tuple[Generation, list[str]]:
        """Find or build a generation; say what was changed since its sources were looked at."""
        context, section = self._context, self._context.config.templates[template]
        self._check_lower(section.extends)
        if template in self._damaged:
            damaged = context.generations[template].database
            await databases.drop(context.gateway, damaged, sealed=True)
            self._damaged.discard(template)
        context.server_changes.enter(template)
        async with self._preparing:  # several may need the same roles
            await context.credentials.prepare(section)
        generation = await self._builder.ensure(
            self._recipe(template), lambda step: self._tell(template, step), anew=anew
        )
        await context.server_changes.accept()
        return generation, await self._changed_since(template, generation)

    async def _settle(self, template: str, generation: Generation, seconds: float) -> None:
        """Have clones of a generation made and granted; it is awaited for nothing before."""
        context = self._context
        before = context.generations.get(template)
        context.generations[template] = generation
        self._seen[template] = generation.full
        self.settled()
        if not generation.reused:
            context.rewinder.built(generation.database)
        context.carry_out(
            context.fleet.pools[template].template_ready(generation.short, context.now())
        )
        self._answer(template, Built(generation, None, seconds))
        if before is None or before.short != generation.short:
            for upper in self._uppers(template):
                self._stale(upper, [f"extends: {template} was changed"])
        if before is not None and before.short != generation.short:
            await self._retire(before)

    def _try_again(self, template: str, end: _End) -> _End:
        """Let a build be tried again, in its turn and after a pause if the server is away."""
        pause = _PAUSE_SECONDS if end is _End.POSTPONED else 0.0
        self._not_before[template] = self._context.now() + pause
        self._gone.setdefault(template)
        return end

    def _begin_again(self, template: str, reasons: list[str]) -> _End:
        """Let who asked wait for another build."""
        self._asking.setdefault(template, []).extend(self._answering.pop(template, []))
        self._stale(template, reasons)
        return _End.OUTDATED

    def _check_lower(self, lower: str) -> None:
        """See that the template that is extended, if there is one, is not one that failed.

        Raises:
            TemplateFailedError: what there is of it is not what it should be.
        """
        pool = self._context.fleet.pools.get(lower)
        if pool is not None and pool.phase is Phase.FAILED:
            raise TemplateFailedError(f"extends: {lower} failed: {pool.failure}")

    async def _changed_since(self, template: str, generation: Generation) -> list[str]:
        """Say what was changed since a build looked at its sources for the last time.

        It takes a while from then until the generation can be granted. What the watcher sees in
        between must not be forgotten by calling the template ready: nothing is awaited after this.
        """
        while template in self._edited:
            self._edited.discard(template)
            try:
                inputs = await self._builder.inputs(self._recipe(template))
            except ServerUnavailableError:
                raise
            except ClonepoolError as error:
                return [str(error)]  # the next build will say so to whoever asks
            if inputs.full != generation.full:
                return differences(generation.inputs, inputs.entries) or ["it was changed"]
        if self._waits_for_lower(template):
            return [f"extends: {self._context.config.templates[template].extends} was changed"]
        return ["somebody asked for it"] if template in self._anew else []

    def _postpone(self, template: str, obstacle: ClonepoolError | None) -> None:
        """Tell whoever waits for a build why it doesn't go on; None when it does."""
        self._context.fleet.pools[template].build_postponed(obstacle)

    async def _retire(self, generation: Generation) -> None:
        """Forget what is only needed to rewind clones of that generation."""
        try:
            await self._context.rewinder.retire(generation.database)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            self._context.failures.begin("template.stale_kept", "", error)

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
        if step.number > 1:  # it has connected, and done something
            self._postpone(template, None)
        for asker in [*self._answering.get(template, []), *self._asking.get(template, [])]:
            asker.tell(step)

    def _answer(self, template: str, built: Built) -> None:
        self.under_way.pop(template, None)
        for asker in self._answering.pop(template, []):
            asker.answer(built)


def _is_passing(error: Exception) -> bool:
    """Say whether a build that failed so is to be tried again as it is."""
    away = isinstance(error, ServerUnavailableError) or is_refused(error)
    return away or resource_errors.shortage(error) is not None
