"""Builds the configured templates: at the start, when their sources change, and when told to.

Which template is built, when, and which requests a build answers is decided by
`core.build_schedule`; this carries the decisions out and tells the schedule what happened.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, assert_never

import anyio
import structlog

from clonepool import resource_errors
from clonepool.core import build_decisions as decided
from clonepool.core import events
from clonepool.core.build_entries import Rule
from clonepool.core.build_schedule import PAUSE_SECONDS, BuildSchedule
from clonepool.core.limits import is_refused
from clonepool.errors import ClonepoolError, ServerUnavailableError, TemplateFailedError
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import DamagedError
from clonepool.service.templates.build_requests import BuildRequests
from clonepool.service.templates.former_generations import FormerGenerations
from clonepool.service.wakeup import WakeUp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyio.abc import TaskGroup

    from clonepool.config import TemplateSection
    from clonepool.core.build_decisions import BuildOutcome, BuildStep
    from clonepool.core.fleet import Fleet
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.postgres.templates.builder import Builder, Step
    from clonepool.postgres.templates.recipe import Generation
    from clonepool.service.credentials import Credentials
    from clonepool.service.event_handler import EventHandler
    from clonepool.service.failures import Failures
    from clonepool.service.server_changes import ServerChanges
    from clonepool.service.templates.interfaces import PendingCall, TemplateTable
    from clonepool.service.templates.sources import Explanation, TemplateSources

log = structlog.get_logger()

BUILD_POSTPONED, BUILD_FAILED = "template.build_postponed", "template.build_failed"
DAMAGED, LOST = "template.damaged", "template.lost"
LOOK_POSTPONED = "template.look_postponed"
_MOST_REASONS = 5
"""Reasons for a build that are logged; the others are counted."""


class TemplateBuilder:
    """Carries out what the build schedule decides.

    Args:
        builder: finds or builds generations on the server.
        credentials: make the owners of templates.
        events: is told whether a template can be leased.
        failures: logs and counts builds that failed.
        fleet: is asked how many requests wait for a template.
        gateway: the way to the server.
        metrics: time the builds.
        now: returns monotonic seconds.
        places: how many builds may run at a time.
        rewinder: knows the generations that clones are rewound to.
        sections: the configured templates.
        server_changes: learns which roles a build has made.
        sources: what the templates are made from.
        table: the current generations; each is entered here when it is built.

    Attributes:
        sources: what the templates are made from.
        files_due: is set when the files are to be compared with what was built.
        under_way: by template, the step that its build is in, while there is a build.
    """

    def __init__(  # noqa: PLR0913 - each by name, and made in one place
        self,
        *,
        builder: Builder,
        credentials: Credentials,
        events: EventHandler,
        failures: Failures,
        fleet: Fleet,
        gateway: Gateway,
        metrics: Metrics,
        now: Callable[[], float],
        places: int,
        rewinder: Rewinder,
        sections: Mapping[str, TemplateSection],
        server_changes: ServerChanges,
        sources: TemplateSources,
        table: TemplateTable,
    ) -> None:
        self._builder = builder
        self._credentials = credentials
        self._events = events
        self._failures = failures
        self._fleet = fleet
        self._gateway = gateway
        self._metrics = metrics
        self._now = now
        self._rewinder = rewinder
        self._sections = sections
        self._server_changes = server_changes
        self._table = table
        self._schedule = BuildSchedule(
            {
                name: Rule(section.extends, section.on_failure == "serve_previous")
                for name, section in sections.items()
            },
            places,
        )
        self._woken = WakeUp()
        self._preparing = anyio.Lock()
        self._looking = anyio.Lock()
        self._requests = BuildRequests()
        self._former = FormerGenerations(
            failures=failures,
            generations=builder.generations,
            rewinder=rewinder,
            sections=sections,
            table=table,
        )
        self._found: dict[str, Generation] = {}
        self.sources = sources
        self.files_due = WakeUp()
        self.under_way: dict[str, Step] = {}

    # What is wanted -----------------------------------------------------------------------

    def ask(self, template: str, call: PendingCall, *, anew: bool, progress: bool) -> None:
        """Have a template looked at, and built if need be or if `anew`; answer when that is done.

        Args:
            template: its name.
            call: is answered once.
            anew: build it although nothing is seen to have changed.
            progress: notify the client of each step.
        """
        self._requests.enter(call, progress=progress)
        if (step := self.under_way.get(template)) is not None:
            # The build under way comes first, and its next step may be far off.
            self._requests.tell([call.number], step)
        self._carry_out(self._schedule.ask(template, call.number, self._now(), anew=anew))

    def lost(self, template: str, *, damaged: bool) -> None:
        """Rebuild a template whose generation is gone from the server.

        Or is `damaged`: so it is after a crash of the server, which empties unlogged tables.
        """
        self._carry_out(self._schedule.lost(template, self._now(), damaged=damaged))

    async def look(self, templates: set[str]) -> None:
        """Rebuild those of these templates that have a changed source.

        There is one look at a time: what an earlier one saw must not come after what is seen now.
        What cannot be checked for lack of a resource is checked again until it can be.
        """
        async with self._looking:
            left = self._schedule.to_look_at(templates)
            while left := [each for each in left if not await self._look_at(each)]:
                await anyio.sleep(PAUSE_SECONDS)

    async def explain(self, template: str) -> Explanation:
        """Say what goes into a template now; see `TemplateSources.explain`."""
        return await self.sources.explain(template)

    # The loop -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Build every template, then those that are due, until cancelled."""
        async with anyio.create_task_group() as builds:
            while True:
                now = self._now()
                if not await self._run_once(now, builds):
                    due = self._schedule.next_timer(now)  # what came due since is not left out
                    await self._woken.wait(math.inf if due is None else due - self._now())

    async def _run_once(self, now: float, builds: TaskGroup) -> bool:
        """Do what is due; say whether there may be more to do at once."""
        looked = False
        for step in self._schedule.plan(now, self._waiters):
            looked |= isinstance(step, decided.Look)
            await self._begin(step, builds)
        return looked

    async def _begin(self, step: BuildStep, builds: TaskGroup) -> None:
        match step:
            case decided.StartBuild():
                builds.start_soon(self._build, step)
            case decided.Look(templates, seconds):
                with anyio.move_on_after(seconds):
                    await self.look(set(templates))
            case decided.Tidy():
                await self._former.tidy()
            case _:
                assert_never(step)

    def _waiters(self, template: str) -> int:
        return self._fleet.pools[template].waiting

    def _carry_out(self, outcomes: Sequence[BuildOutcome]) -> None:
        """Do what was decided: the one place that logs it."""
        for outcome in outcomes:
            self._apply(outcome)
        self._woken.set()

    def _apply(self, outcome: BuildOutcome) -> None:
        match outcome:
            case decided.MarkStale(template, reasons):
                told, count = reasons[:_MOST_REASONS], len(reasons)
                log.info("template.stale", template=template, reasons=told, count=count)
                self._events.handle(events.TemplateStale(template))
            case decided.Lose(template, damaged):
                self._events.handle(events.TemplateLost(template))
                log.warning(DAMAGED if damaged else LOST, template=template)
            case decided.Serve(template, generation):
                self._table.generations[template] = self._found.pop(template)
                self._events.handle(events.TemplateReady(template, generation))
            case decided.ServePrevious(template, generation):
                database = self._table.generations[template].database
                log.warning("template.previous_served", template=template, database=database)
                self._events.handle(events.TemplateReady(template, generation))
            case decided.Fail(template, error):
                self._events.handle(events.TemplateFailed(template, error))
            case decided.Postpone(template, obstacle):
                self._events.handle(events.BuildPostponed(template, obstacle))
            case decided.AnswerBuild():
                self._answer(outcome)
            case decided.CompareFiles():
                self.files_due.set()
            case _:
                assert_never(outcome)

    # Looking at sources -------------------------------------------------------------------

    async def _look_at(self, template: str) -> bool:
        """Check the sources of one template; say whether that was possible."""
        try:
            found, reasons = await self.sources.compare(template)
        except Exception as error:  # noqa: BLE001 - the build reports it to its callers
            if resource_errors.shortage(error):
                self._failures.begin(LOOK_POSTPONED, template, error)
                return False
            if isinstance(error, ServerUnavailableError):
                return True  # it is looked at again when the server is back
            found, reasons = str(error), [str(error)]
        if outcomes := self._schedule.looked(template, found, reasons, self._now()):
            self._carry_out(outcomes)  # else the loop would be woken to look again, without end
        self._failures.end(LOOK_POSTPONED, template)
        return True

    # One build ----------------------------------------------------------------------------

    async def _build(self, build: decided.StartBuild) -> None:
        """Build one template; a bug in the daemon ends only this build."""
        template, began = build.template, self._now()
        try:
            try:
                generation = await self._find_or_build(build)
                changed = await self._changes_since(template, generation)
            except Exception as error:  # noqa: BLE001 - a failed build is told, counted, survived
                self._server_changes.leave(template)
                self._failed(template, error)
            else:
                self._server_changes.leave(template)
                await self._built(template, generation, changed, self._now() - began)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            told = self._failures.begin(BUILD_FAILED, template, error)
            self._carry_out(self._schedule.broke(template, told, self._now()))

    async def _find_or_build(self, build: decided.StartBuild) -> Generation:
        template = build.template
        section = self._sections[template]
        if failure := self._schedule.lower_failure(template):
            raise TemplateFailedError(f"extends: {section.extends} failed: {failure}")
        if build.is_damaged:
            damaged = self._table.generations[template].database
            await databases.drop(self._gateway, damaged, sealed=True)
            self._schedule.damaged_dropped(template)
        self._server_changes.enter(template)
        async with self._preparing:  # several may need the same roles
            await self._credentials.prepare(section)
        generation = await self._builder.ensure(
            self.sources.recipe(template), lambda step: self._tell(template, step), anew=build.anew
        )
        await self._server_changes.accept()
        return generation

    async def _changes_since(self, template: str, generation: Generation) -> list[str]:
        """Say what was changed since the build looked at its sources for the last time.

        It takes a while from then until the generation can be granted. What is edited in between
        must not be forgotten when the template is called ready: nothing is awaited after this.
        """
        while self._schedule.take_edited(template):
            try:
                changes = await self.sources.changes_since(template, generation)
            except ServerUnavailableError:
                raise
            except ClonepoolError as error:
                return [str(error)]  # the next build reports it to its callers
            if changes:
                return changes
        return []

    async def _built(
        self, template: str, generation: Generation, changed: list[str], seconds: float
    ) -> None:
        for event in (BUILD_POSTPONED, BUILD_FAILED):
            self._failures.end(event, template)
        self._metrics.of[template].build_seconds.observe(seconds)
        log.info(
            "template.reused" if generation.reused else "template.built",
            template=template,
            database=generation.database,
            relations=generation.contents.relations,
            duration_seconds=round(seconds, 3),
        )
        for warning in generation.warnings:
            log.warning("template.doubtful", template=template, place=warning)
        before = self._table.generations.get(template)
        names = generation.full, generation.short
        outcomes = self._schedule.built(template, names, changed, self._now())
        is_served = any(isinstance(each, decided.Serve) for each in outcomes)
        if is_served:
            self._found[template] = generation
        if is_served and not generation.reused:
            self._rewinder.generation_rebuilt(generation.database)
        self._carry_out(outcomes)
        if is_served and before is not None and before.short != generation.short:
            await self._former.retire(before)

    def _failed(self, template: str, error: Exception) -> None:
        """Schedule another try of the build, or report why it failed."""
        now = self._now()
        if isinstance(error, DamagedError):
            self.lost(self._sections[template].extends, damaged=True)
        if _is_passing(error):
            told = self._failures.begin(BUILD_POSTPONED, template, error)
            self._carry_out(self._schedule.postponed(template, told, now))
        elif self._schedule.is_disturbed(template):
            log.info("template.disturbed", template=template, error=str(error))
            self._schedule.disturbed(template, now)
            self._woken.set()
        else:
            told = self._failures.begin(BUILD_FAILED, template, error)
            tried = self._builder.tried.pop(template, "")
            seen = tried or str(error)
            self._carry_out(self._schedule.failed(template, told, seen, now, tried=bool(tried)))

    def _tell(self, template: str, step: Step) -> None:
        self.under_way[template] = step
        # From the second step on it has connected, and done something.
        if step.number > 1 and (outcomes := self._schedule.progressed(template)):
            self._carry_out(outcomes)
        self._requests.tell(self._schedule.listeners(template), step)

    def _answer(self, answer: decided.AnswerBuild) -> None:
        self.under_way.pop(answer.template, None)
        self._requests.answer(answer, self._table.generations.get(answer.template))


def _is_passing(error: Exception) -> bool:
    """Say whether a build that failed so is to be tried again as it is."""
    away = isinstance(error, ServerUnavailableError) or is_refused(error)
    return away or resource_errors.shortage(error) is not None
