"""Has templates checked whose source files may have changed.

The kernel's watches tell at once that something changed, and nothing else depends on them. They
can be refused (limits), silent (network file systems), lost (a directory replaced) or late. So all
sources are also read every few seconds, whatever the watches tell; directories are compared by
device and inode, and watched again when they are others; and after each build, what was built is
compared with what the files hold by then.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, assert_never

import anyio
import anyio.to_thread
import structlog

from clonepool.service.monitors.base import Monitor, Pause
from clonepool.service.monitors.source_files import read_sources
from clonepool.service.monitors.watches import Watches, WatchNews

if TYPE_CHECKING:
    from clonepool.service.failures import Attempt, Failures
    from clonepool.service.monitors.source_files import SourceFiles
    from clonepool.service.monitors.watch_points import Places
    from clonepool.service.monitors.watches import Report
    from clonepool.service.resources import Resources
    from clonepool.service.templates.builder import TemplateBuilder

log = structlog.get_logger()

NOT_WATCHED, WATCHED_AGAIN = "template.not_watched", "template.watched_again"
FOUND_UNTOLD = "template.change_found_late"
_REMEDY = (
    "until then, files are checked every few seconds; if it is a limit of the system, raise"
    " fs.inotify.max_user_watches or fs.inotify.max_user_instances, or name fewer directories"
)
_LONGEST_REST_SECONDS = 1.0


class Pace(NamedTuple):
    """How often all sources are read, in seconds between two reads.

    A read asks the file system for the size and times of each file, and reads those that changed.

    Attributes:
        least: while the watches stand.
        blind: while they do not.
        most: the longest pause, whatever a read costs.
        share: of a processor that reads may take; `least` and `blind` are extended for it.
        again: until watches that were refused are tried again.
    """

    least: float = 5.0
    blind: float = 1.0
    most: float = 60.0
    share: float = 0.002
    again: float = 10.0

    def pause(self, cost: float, *, watching: bool) -> float:
        """Return the seconds to wait after a read that took `cost` seconds."""
        least, share = (self.least, self.share) if watching else (self.blind, self.share * 10)
        return max(least, min(self.most, cost / share))


class FileMonitor(Monitor):
    """Has the builder look at templates whose files have changed.

    Args:
        failures: of every monitor.
        builder: has the templates, and tells when something was built from files that may have
            changed since.
        resources: notes why files could not be read or watched.
        pace: of the reads that nothing asked for.

    Attributes:
        trouble: why there are no watches, as last logged; empty when they have stood for a while.
    """

    failed_event = "template.files_not_read"

    def __init__(
        self,
        failures: Failures,
        *,
        builder: TemplateBuilder,
        resources: Resources,
        pace: Pace = Pace(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(failures, builder.files_due)
        self._builder = builder
        self._resources = resources
        self._pace = pace
        self._files: SourceFiles | None = None
        self._watches: Watches | None = None
        self._standing = False
        self._told = True
        """Whether anything was heard of since the last read began."""
        self._moved = False
        """Whether a watched directory may be another one, which its inode does not always show."""
        self._stood_at = self._try_at = self._cost = 0.0
        self.trouble = ""
        self.first_pause = self.longest_pause = pace.blind

    @property
    def is_watching(self) -> bool:
        """Whether the kernel reports changes now."""
        return self._standing

    async def run(self) -> None:
        """Watch until cancelled; then give the watches back to the kernel."""
        try:
            await super().run()
        finally:
            watches = self._watches
            self._stop_watching()
            if watches is not None:
                # The library's thread must not be met by the end of the interpreter.
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(watches.wait)

    def after_wake_up(self) -> None:
        """Pass on what the next read finds, though it may be what was known before."""
        self._told = True

    def after_failure(self, attempt: Attempt) -> None:
        """Pass on with the next read what this one did not."""
        del attempt
        self._told = True

    async def run_once(self) -> Pause:
        """Read all sources, and watch anew if need be."""
        told, self._told = self._told, False
        await self._look(told=told)
        self._log_if_over()
        rest = min(self._cost, _LONGEST_REST_SECONDS)  # reads take half of a processor at most
        return Pause(rest, rest + self._pace.pause(self._cost, watching=self._standing))

    async def _look(self, *, told: bool) -> None:
        """Read all sources, and pass them on if they may have changed.

        What was read is remembered before it is passed on: what changes in between differs from it
        the next time, or is what was passed on.
        """
        began, before = time.monotonic(), self._files
        found = await anyio.to_thread.run_sync(
            read_sources,
            self._builder.sources.recipes(),
            self._builder.sources.digests,
            before,
            abandon_on_cancel=True,
        )
        self._cost = time.monotonic() - began
        changed = before is not None and found.states != before.states
        if changed and not told:
            log.info(FOUND_UNTOLD, watching=self._standing)
            self._moved = self._standing  # these watches see nothing: others may
        self._files = found
        if told or changed:
            await self._builder.look(set(found.states))
        await self._watch_if_due(found.places)

    # Watches ------------------------------------------------------------------------------

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
            case WatchNews.STANDING:
                self._standing, self._stood_at = True, time.monotonic()
            case WatchNews.CHANGED:
                pass
            case WatchNews.MOVED:
                self._moved = True
            case WatchNews.ENDED:
                self._lose(report.error)
            case _:
                assert_never(report.news)
        self._woken.set()

    def _lose(self, error: BaseException | None) -> None:
        """Continue without watches, and try again: at once when a directory was only just gone."""
        gone, stood = isinstance(error, FileNotFoundError), self._standing
        self._stop_watching()
        if gone or stood:
            self._try_at = time.monotonic() + (0 if gone else self._pace.blind)
        if not gone and not (error and self._resources.note(error)):
            self._log(f"{type(error).__name__}: {error}")

    def _log_if_over(self) -> None:
        long_enough = time.monotonic() > self._stood_at + self._pace.again
        if self.trouble and self._standing and long_enough:
            self.trouble = ""
            log.info(WATCHED_AGAIN)

    def _log(self, trouble: str) -> None:
        """Log why there are no watches, once for as long as that lasts."""
        kind = trouble.partition(":")[0]  # the directory that is named may differ each time
        if kind != self.trouble.partition(":")[0]:
            self.trouble = trouble
            log.warning(NOT_WATCHED, error=trouble, remedy=_REMEDY)

    def _stop_watching(self) -> None:
        if self._watches is not None:
            self._watches.stop()
        self._watches, self._standing = None, False
