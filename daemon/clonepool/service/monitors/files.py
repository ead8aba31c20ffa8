"""Sees that a template is never stale: has those looked at whose files may have changed.

The kernel's watches say at once that something changed, and are trusted in nothing else. They can
be refused (limits), silent (file systems of other machines), lost (a directory replaced) or late.
So all sources are looked at slowly too, whatever the watches say; directories are compared by
device and inode and watched anew when they are others; and after each build what was built is
compared with what the files say by then.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread
import structlog

from clonepool.errors import ClonepoolError, ResourceError
from clonepool.postgres.templates.recipe import patterns_of, read_files, watched_files
from clonepool.service.monitors.watch_points import Places
from clonepool.service.monitors.watches import News, Watches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.postgres.templates.file_digests import Digests
    from clonepool.postgres.templates.recipe import Recipe
    from clonepool.service.monitors.resources import ResourceMonitor
    from clonepool.service.monitors.watches import Report
    from clonepool.service.templates.builder import TemplateBuilder

log = structlog.get_logger()

NOT_WATCHED, WATCHED_AGAIN = "template.not_watched", "template.watched_again"
FOUND_UNTOLD = "template.change_found_late"
_REMEDY = (
    "edits are found by looking every few seconds meanwhile; if it is a limit of the system, raise"
    " fs.inotify.max_user_watches or fs.inotify.max_user_instances, or name fewer directories"
)

_MOST_GONE = 1_000
"""Files that are not there any more, to be remembered for each template."""


class Pace(NamedTuple):
    """How often all sources are looked at without being told to, in seconds between two looks.

    A look asks the file system for the size and times of each file and reads those whose are new.

    Attributes:
        least: while the watches stand.
        blind: while they do not.
        most: whatever a look costs.
        share: of a processor that looks may take; `least` and `blind` become longer by it.
        again: until watches that were refused are tried again.
    """

    least: float = 5.0
    blind: float = 1.0
    most: float = 60.0
    share: float = 0.002
    again: float = 10.0

    def pause(self, cost: float, *, watching: bool) -> float:
        """Return how long to wait after a look that took so long."""
        least, share = (self.least, self.share) if watching else (self.blind, self.share * 10)
        return max(least, min(self.most, cost / share))


class Sight(NamedTuple):
    """What one look at all sources found.

    Attributes:
        states: by template: what its files hold, or why that cannot be said.
        files: by template: those that decide, and such as once did and are gone.
        places: where all this may change.
    """

    states: Mapping[str, object]
    files: Mapping[str, list[str]]
    places: Places


class FileMonitor:
    """Has the builder look at templates when their files change.

    Args:
        builder: whose templates they are.
        shortages: are told why files could not be looked at.
        pace: of the looks that nobody asked for.
    """

    def __init__(
        self,
        builder: TemplateBuilder,
        shortages: ResourceMonitor,
        pace: Pace = Pace(),  # noqa: B008 - frozen
    ) -> None:
        self._builder = builder
        self._shortages = shortages
        self._pace = pace
        self._sight: Sight | None = None
        self._watches: Watches | None = None
        self._standing = False
        self._told = True
        """Whether something was heard of since the last look began."""
        self._moved = False
        """Whether a watched directory is another one: by its number that is not always seen."""
        self._stirred = anyio.Event()
        self._stood_at = self._try_at = self._cost = 0.0
        self.trouble = ""
        """Why there are no watches, as it was told last; empty when they have stood for a while."""
        builder.settled = self.stir

    def stir(self) -> None:
        """Look again soon: something may have changed, or was built from what was there before."""
        self._told = True
        self._stirred.set()

    @property
    def is_watching(self) -> bool:
        """Whether the kernel reports changes now."""
        return self._standing

    async def run(self) -> None:
        """Watch for ever; what cannot be watched is told once, looked at, and tried again."""
        try:
            while True:
                self._stirred = anyio.Event()
                pause = await self._run_once()
                with anyio.move_on_after(pause):
                    await self._stirred.wait()
        finally:
            watches = self._watches
            self._stop_watching()
            if watches is not None:
                # The library's thread must not be met by the end of the interpreter.
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(watches.wait)

    async def _run_once(self) -> float:
        """Look once, and watch anew if need be; return for how long to wait then."""
        try:
            await self._look()
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, survived
            if not self._shortages.note(error):
                self._say(f"{type(error).__name__}: {error}")
            self._told = True
            return self._pace.blind
        self._say_if_over()
        await anyio.sleep(min(self._cost, 1.0))  # never more than half of a processor
        return self._pace.pause(self._cost, watching=self._standing)

    async def _look(self) -> None:
        """See what the files say, and pass it on if it may be news.

        What is seen is remembered before it is passed on: what changes in between differs from it
        the next time, or is what was passed on.
        """
        told, self._told = self._told, False
        began, before = time.monotonic(), self._sight
        sight = await anyio.to_thread.run_sync(
            see, self._builder.sources(), self._builder.digests, before, abandon_on_cancel=True
        )
        self._cost = time.monotonic() - began
        changed = before is not None and sight.states != before.states
        if changed and not told:
            log.info(FOUND_UNTOLD, watching=self._standing)
            self._moved = self._standing  # the watches see nothing: others may
        self._sight = sight
        if told or changed:
            await self._builder.look(set(sight.states))
        await self._watch_if_due(sight.places)

    async def _watch_if_due(self, places: Places) -> None:
        watches = self._watches
        if watches is not None and not self._moved and watches.directories == places.watched:
            watches.places = places
            return
        if watches is None and time.monotonic() < self._try_at:
            return
        self._stop_watching()
        if watches is not None:
            await anyio.to_thread.run_sync(watches.wait)
        self._moved = False
        if places.watched:
            self._try_at = time.monotonic() + self._pace.again  # unless they stand
            self._watches = Watches(places, self._hear)

    def _hear(self, report: Report) -> None:
        match report.news:
            case News.STANDING:
                self._standing, self._stood_at = True, time.monotonic()
            case News.MOVED:
                self._moved = True
            case News.ENDED:
                self._lose(report.error)
        self.stir()

    def _lose(self, error: BaseException | None) -> None:
        """Go on without watches, and try again: at once when a directory was gone just then."""
        gone, stood = isinstance(error, FileNotFoundError), self._standing
        self._stop_watching()
        if gone or stood:
            self._try_at = time.monotonic() + (0 if gone else self._pace.blind)
        if not gone and not (error and self._shortages.note(error)):
            self._say(f"{type(error).__name__}: {error}")

    def _say_if_over(self) -> None:
        long_enough = time.monotonic() > self._stood_at + self._pace.again
        if self.trouble and self._standing and long_enough:
            self.trouble = ""
            log.info(WATCHED_AGAIN)

    def _say(self, trouble: str) -> None:
        """Say what is wrong, once for as long as it is."""
        kind = trouble.partition(":")[0]  # which directory it befell may differ each time
        if kind != self.trouble.partition(":")[0]:
            self.trouble = trouble
            log.warning(NOT_WATCHED, error=trouble, remedy=_REMEDY)

    def _stop_watching(self) -> None:
        if self._watches is not None:
            self._watches.stop()
        self._watches, self._standing = None, False


def see(recipes: Mapping[str, Recipe], digests: Digests, before: Sight | None) -> Sight:
    """Look at all files of all recipes; blocks for as long as the file system does."""
    places = Places()
    states: dict[str, object] = {}
    files: dict[str, list[str]] = {}
    for template, recipe in recipes.items():
        try:
            states[template] = read_files(recipe, digests).entries
        except ResourceError:
            raise  # nothing is known: it is looked again
        except (ClonepoolError, OSError) as error:  # whoever builds it says what is wrong
            states[template] = str(error)
        former = before.files.get(template, []) if before else []
        files[template] = _remembered(watched_files(recipe, digests), former)
        for pattern in patterns_of(recipe):
            is_dump = recipe.dump is not None and pattern == recipe.dump.file
            places.add_pattern(str(recipe.directory), pattern, "*" if is_dump else "*.sql")
        for place in files[template]:
            places.add_file(place)
    return Sight(states, files, places)


def _remembered(now: list[str], before: list[str]) -> list[str]:
    """Return the files to be watched: those that are gone may come again, at the same place."""
    known = set(now)
    others = (place for place in before if place not in known)
    return now + [place for place in others if now == [] or not os.path.lexists(place)][:_MOST_GONE]
