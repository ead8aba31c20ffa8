"""The kernel's watches on directories, in a thread of their own that reports changes to the loop.

Which directories are watched, and what a change means, is up to the file monitor. Watches stand or
fall together: they can be refused, lost or silent at any time, and nothing may depend on them.

The library's asynchronous interface is not used: it sorts changes on the loop, which takes long for
the thousands of changes of a checkout, and does not tell when the watches stand.
"""

from __future__ import annotations

import asyncio
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from watchfiles._rust_notify import RustNotify  # documented for direct use, as its "Rust backend"

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.service.monitors.watch_points import Inode, Places

STEP_MILLISECONDS = 50
"""Milliseconds without a change before changes are reported. The library looks as often; that costs
an idle daemon next to nothing."""
LONGEST_MILLISECONDS = 200
_NO_CHANGE_MILLISECONDS = 60_000
_LONGEST_END_SECONDS = 1.0


class WatchNews(StrEnum):
    """What a thread reports."""

    STANDING = "standing"
    """The watches stand: changes are seen from now on."""
    CHANGED = "changed"
    """Something that matters changed."""
    MOVED = "moved"
    """A watched directory was made, removed or renamed, so that its watch is useless."""
    ENDED = "ended"
    """The thread ends: changes are no longer seen."""


class Report(NamedTuple):
    """News, and with the last one the reason, unless the thread was told to end."""

    news: WatchNews
    error: BaseException | None = None


class Watches:
    """One set of watches: it begins when made, and ends with `stop` or by itself.

    Args:
        places: the directories, and what matters in them.
        tell: called on the running loop with each report.
    """

    def __init__(self, places: Places, tell: Callable[[Report], None]) -> None:
        self.directories: dict[str, Inode] = places.watched
        self.places = places
        """What matters; may be replaced while the directories are the same."""
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watches", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread within a step; nothing more is reported."""
        self._stopped.set()

    def wait(self) -> None:
        """Block until the kernel has its watches back, for other processes, but not for long."""
        self._thread.join(_LONGEST_END_SECONDS)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._listen()
        except BaseException as failure:  # noqa: BLE001 - also the library's panics: reported to the loop
            error = failure
        self._report(Report(WatchNews.ENDED, error))

    def _listen(self) -> None:
        # Parents come first: their watches see a directory that is replaced after its turn.
        paths = sorted(self.directories)
        with RustNotify(paths, False, False, 0, False, True) as notify:
            self._report(Report(WatchNews.STANDING))
            while not self._stopped.is_set():
                found = notify.watch(
                    LONGEST_MILLISECONDS, STEP_MILLISECONDS, _NO_CHANGE_MILLISECONDS, self._stopped
                )
                if isinstance(found, set) and (news := self._sort({path for _, path in found})):
                    self._report(Report(news))

    def _sort(self, paths: set[str]) -> WatchNews | None:
        if not paths.isdisjoint(self.directories):
            return WatchNews.MOVED
        return WatchNews.CHANGED if any(map(self.places.matters, paths)) else None

    def _report(self, report: Report) -> None:
        def arrive() -> None:
            if not self._stopped.is_set():
                self._tell(report)

        try:
            self._loop.call_soon_threadsafe(arrive)
        except RuntimeError:
            self._stopped.set()  # the loop has ended
