"""The real watcher and template builder, on real files, with a fake server."""

from __future__ import annotations

import shutil
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread
from prometheus_client import CollectorRegistry

from clonepool.config import Config, TemplateSection
from clonepool.core.template import Condition
from clonepool.errors import ClonepoolError
from clonepool.observe.metrics import Metrics
from clonepool.postgres.templates.file_digests import Digests
from clonepool.postgres.templates.recipe import Generation, Inputs, Recipe, read_files
from clonepool.service.failures import Failures
from clonepool.service.monitors.files import FileMonitor, Pace
from clonepool.service.resources import Resources
from support.building import BuilderHarness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from clonepool.postgres.clones.lifecycle import Contents
    from clonepool.postgres.templates.builder import Step

HOURS = 20_000.0
BY_WATCH_ALONE = Pace(HOURS, HOURS, HOURS, again=1.0)
"""Changes are found by the watches only."""
BY_LOOKS_ALONE = Pace(0.05, 0.05, 0.05, again=HOURS)
FAILED = "failed"


class SlowBuilder:
    """Builds generations out of the files' digests alone.

    Attributes:
        built: number of builds.
        before_ready: awaited after the sources were read for the last time.
    """

    def __init__(self) -> None:
        self.digests = Digests()
        self.tried: dict[str, str] = {}
        self.built = 0
        self.generations = SimpleNamespace(of=self._none, drop_others=self._none)
        self.before_ready: Callable[[], Any] = anyio.lowlevel.checkpoint

    async def inputs(self, recipe: Recipe) -> Inputs:
        return await anyio.to_thread.run_sync(read_files, recipe, self.digests)

    async def ensure(
        self, recipe: Recipe, tell: Callable[[Step], None], *, anew: bool = False
    ) -> Generation:
        del tell, anew
        inputs = await self.inputs(recipe)
        self.tried[recipe.template] = inputs.full
        await self.before_ready()
        self.built += 1
        contents = cast("Contents", SimpleNamespace(relations=1))
        entries = inputs.entries
        return Generation(
            inputs.short, inputs.full, "db", contents, 1, reused=False, inputs=entries
        )

    async def _none(self, *_: object) -> list[Any]:
        return []


class WatchedTemplate:
    """One template `shop` of the given sources, watched.

    Attributes:
        directory: where relative paths begin.
    """

    def __init__(
        self,
        directory: Path,
        section: TemplateSection,
        pace: Pace = BY_WATCH_ALONE,
    ) -> None:
        self.directory = directory
        self.builds = SlowBuilder()
        config = Config(templates={"shop": section}, directory=str(directory))
        workplace = BuilderHarness(config, self.builds, time.monotonic)
        self.pool = workplace.pool("shop")
        self.generations = workplace.generations
        self.templates = workplace.templates
        self._section = section
        self._pace = pace

    def new_watcher(self) -> FileMonitor:
        resources = Resources(time.monotonic)
        failures = Failures(Metrics(CollectorRegistry(), []), resources)
        return FileMonitor(failures, builder=self.templates, resources=resources, pace=self._pace)

    @property
    def served(self) -> object:
        """The state that a lease would get: the files' digests, FAILED, or None while it waits."""
        if self.pool.phase is Condition.READY:
            return self.generations["shop"].inputs
        return FAILED if self.pool.phase is Condition.FAILED else None

    def said(self) -> object:
        """The current state of the files."""
        try:
            return read_files(Recipe("shop", self._section, self.directory), Digests()).entries
        except (ClonepoolError, OSError):
            return FAILED

    async def built(self) -> None:
        """Wait until the template is ready or has failed."""
        with anyio.fail_after(20):
            while self.served is None:
                await anyio.sleep(0.001)

    async def until_true(self, seconds: float = 20.0) -> None:
        """Wait until the served state is the state of the files."""
        deadline = time.monotonic() + seconds
        while self.served != self.said():
            if time.monotonic() > deadline:
                raise AssertionError(f"served: {self.served}\nthe files say: {self.said()}")
            await anyio.sleep(0.01)


@asynccontextmanager
async def watched(world: WatchedTemplate) -> AsyncIterator[WatchedTemplate]:
    """Run the builder and the watcher; the block begins after the first build."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.templates.run)
        async with watching(world):
            await world.until_true()
            yield world
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def watching(world: WatchedTemplate) -> AsyncIterator[FileMonitor]:
    """Run one watcher; it must find all changes from here on."""
    watcher = world.new_watcher()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        with anyio.move_on_after(5):
            while not (watcher.is_watching or watcher.trouble):
                await anyio.sleep(0.005)
        yield watcher
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def shop(
    directory: Path, *sql: str, pace: Pace = BY_WATCH_ALONE
) -> AsyncIterator[WatchedTemplate]:
    """Run a watched template of these files."""
    async with watched(WatchedTemplate(directory, TemplateSection(sql=list(sql)), pace)) as world:
        yield world


def fill(directory: Path, text: str = "SELECT 1;") -> Path:
    """Make a directory with one file in it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "1.sql").write_text(text)
    return directory


def remove_and_make(directory: Path) -> None:
    """Replace a directory by a new one, which may have the same inode."""
    shutil.rmtree(directory)
    fill(directory, "SELECT 'made anew';")


def replaced(path: Path, text: str) -> None:
    """Replace a file as editors do, by renaming another one."""
    path.with_name("temporary").write_text(text)
    path.with_name("temporary").rename(path)


def switch(link: Path, target: str) -> None:
    """Change the target of a link in one step."""
    link.with_name("new link").symlink_to(target)
    link.with_name("new link").rename(link)
