"""What the machine is short of: logged once when a shortage begins and once when it is over.

Work that fails because files, memory or processes are short is tried again in place, and the
failure is not logged there: it has one cause, which is known here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool import resource_errors
from clonepool.core.limits import Limit

if TYPE_CHECKING:
    from collections.abc import Callable


log = structlog.get_logger()

QUIET_SECONDS = 2.5
"""Seconds without a failure after which a shortage is over: a little more than the longest pause
between two tries."""
_ENOUGH_FILES = 8


class Resources:
    """The shortages of the moment, and when something last failed for each.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._noted_at: dict[Limit, float] = {}
        self.noted = anyio.Event()

    def current(self) -> list[str]:
        """Return what the machine is short of."""
        return sorted(self._noted_at)

    def note(self, error: BaseException) -> bool:
        """Say whether an error means that the machine is short of something, and remember it.

        A shortage that begins is logged here and nowhere else.
        """
        short = resource_errors.shortage(error)
        if short is None:
            return False
        if short not in self._noted_at:
            log.warning(
                "machine.short", of=short, error=str(error), remedy=resource_errors.REMEDIES[short]
            )
        self._noted_at[short] = self._now()
        self.noted.set()
        return True

    def look(self) -> None:
        """End the shortages for which nothing has failed for a while."""
        if Limit.FILES in self._noted_at and not _are_files_left():
            self._noted_at[Limit.FILES] = self._now()
        for short, noted_at in list(self._noted_at.items()):
            if self._now() - noted_at >= QUIET_SECONDS:
                del self._noted_at[short]
                log.info("machine.short_no_more", of=short)
        if not self._noted_at:
            self.noted = anyio.Event()


def _are_files_left() -> bool:
    """Say whether a few files can be opened."""
    opened: list[int] = []
    try:
        for _ in range(_ENOUGH_FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401 - those opened are closed when one fails
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True
