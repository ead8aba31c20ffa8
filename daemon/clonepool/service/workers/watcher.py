"""Watches the files from which templates are made, and has those looked at that may have changed.

Directories are watched and not files: editors replace files, and new ones may match a pattern. Only
a pattern with `**` has whole trees watched. While it is quiet that costs a thousandth of a core.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import structlog
from watchfiles import awatch

from clonepool.errors import ClonepoolError, ResourceError
from clonepool.postgres.globbing import find, is_directory
from clonepool.postgres.recipe import read_files

if TYPE_CHECKING:
    from clonepool.postgres.recipe import Recipe
    from clonepool.postgres.sources import Digests
    from clonepool.service.shortages import Shortages
    from clonepool.service.workers.template_builder import TemplateBuilder

log = structlog.get_logger()

STEP_MILLISECONDS = 50
"""How long it must be quiet before changes are passed on; the library looks so often, which an idle
daemon hardly notices."""
LONGEST_MILLISECONDS = 200
_PAUSE_SECONDS = 1.0


class Watcher:
    """Has the builder look at templates when their files change."""

    def __init__(self, builder: TemplateBuilder, shortages: Shortages) -> None:
        self._builder = builder
        self._shortages = shortages
        self._known: tuple[set[Path], set[Path]] = set(), set()
        self._wanted: set[str] = set()

    async def run(self) -> None:
        """Watch for ever; a directory that cannot be watched is told, and tried again."""
        trouble = ""
        while True:
            try:
                await self._watch()
            except Exception as error:  # noqa: BLE001 - a pass of background work: told, survived
                if not self._shortages.note(error) and str(error) != trouble:
                    trouble = str(error)
                    log.warning("template.not_watched", error=trouble)
                await anyio.sleep(_PAUSE_SECONDS)

    async def _watch(self) -> None:
        """Watch until the set of directories is another one."""
        flat, deep = await anyio.to_thread.run_sync(self._places)
        if not flat | deep:
            await anyio.sleep_forever()
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for places, recursive in ((flat, False), (deep, True)):
                if places:
                    tasks.start_soon(self._follow, places, recursive, tasks.cancel_scope, stop)
            try:
                await self._builder.begun.wait()
                await anyio.sleep(_PAUSE_SECONDS)  # by now the kernel reports
                await self._look(tasks.cancel_scope)
                await anyio.sleep_forever()
            finally:
                # Its thread does not hear of a cancellation, and would be waited for.
                stop.set()

    async def _follow(
        self, places: set[Path], recursive: bool, scope: anyio.CancelScope, stop: anyio.Event
    ) -> None:
        async for _ in awatch(
            *places,
            recursive=recursive,
            step=STEP_MILLISECONDS,
            debounce=LONGEST_MILLISECONDS,
            stop_event=stop,
            watch_filter=lambda _, path: self._matters(path),
        ):
            await self._look(scope)

    async def _look(self, scope: anyio.CancelScope) -> None:
        """Look at all sources; watch anew if they lie in other directories by now."""
        await self._builder.look_at_all()
        known = self._known
        if await anyio.to_thread.run_sync(self._places) != known:
            scope.cancel()

    def _places(self) -> tuple[set[Path], set[Path]]:
        """Return the directories to be watched alone, and those with all that is in them."""
        flat: set[Path] = set()
        deep: set[Path] = set()
        wanted: set[str] = set()
        for recipe in self._builder.sources().values():
            for pattern in patterns_of(recipe):
                (deep if "**" in pattern else flat).update(bases(recipe.directory, pattern))
                wanted.add(os.path.normpath(recipe.directory / pattern))
            named = _named(recipe, self._builder.digests)
            flat |= {Path(os.path.dirname(place)) for place in named}  # noqa: PTH120 - thousands
            wanted |= {os.path.normpath(place) for place in named}
        self._known, self._wanted = (flat, deep), wanted
        return self._known

    def _matters(self, path: str) -> bool:
        """Say whether a path may be one of ours: what else lies beside them changes too.

        A directory may be one in which something matches.
        """
        if path in self._wanted or str(Path(path).parent) in self._wanted or Path(path).is_dir():
            return True
        return any(fnmatch(path, pattern) for pattern in self._wanted if "*" in pattern)


def patterns_of(recipe: Recipe) -> list[str]:
    """Return the files, globs and directories that a recipe names."""
    found = list(recipe.section.sql)
    if recipe.dump:
        found.append(recipe.dump.file)
    if recipe.command:
        found += recipe.command.watch
    return found


def bases(directory: Path, pattern: str) -> set[Path]:
    """Return the directories in which something may come to match a pattern, or cease to.

    Raises:
        ResourceError: the machine is short of something, and they are not known.
    """
    whole = directory / pattern
    if is_directory(whole):
        return {whole}
    fixed, *rest = os.path.join(directory, pattern).split("*", 1)  # noqa: PTH118 - keeps `..`
    base = Path(fixed).parent if rest or not fixed.endswith("/") else Path(fixed)
    if "**" in pattern or not rest:
        return {base} if is_directory(base) else set()
    # Directories on the way may be named by wildcards too.
    upper = str(Path(pattern).parent)
    between = {directory / path for path in find(upper, directory)} if "*" in upper else set()
    return {path for path in {base, *between} if is_directory(path)}


def _named(recipe: Recipe, digests: Digests) -> list[str]:
    """Return the files of a recipe, those that are included too; none while they cannot be read.

    Raises:
        ResourceError: the machine is short of something, and they are not known.
    """
    try:
        return read_files(recipe, digests).watched
    except ResourceError:
        raise
    except ClonepoolError:
        return []  # whoever builds it says what is wrong
