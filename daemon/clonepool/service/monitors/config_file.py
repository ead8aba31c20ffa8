"""Notices edits of the configuration file, which the daemon reads at its start alone.

Nothing is reloaded: people are told to restart the daemon, and whether it would start. Files that
templates are made from are another matter; see `files`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import structlog

from clonepool import resource_errors
from clonepool.config import load
from clonepool.errors import ConfigError
from clonepool.service.monitors.base import Monitor, Pause

if TYPE_CHECKING:
    from clonepool.config import Config
    from clonepool.service.failures import Failures

log = structlog.get_logger()

CHANGED = "config.changed"
LOOK_SECONDS = 2.0
"""Seconds between two looks at the file's time and size."""
_RESTART = "restart the daemon: it reads this file at its start alone"
_CORRECT = "correct it before the next start; the daemon continues with what it read at its start"


class ConfigFileMonitor(Monitor):
    """Warns once of each edit that changes a key or a value.

    Args:
        failures: logs and counts passes that failed.
        config: the configuration with which the daemon runs; it was read from a file.
    """

    failed_event = "config.look_failed"

    def __init__(self, failures: Failures, *, config: Config) -> None:
        super().__init__(failures)
        self._path = config.path
        self._digest = config.digest
        self._stamp: object = None

    async def run_once(self) -> Pause:
        """Look at the file in a thread."""
        await anyio.to_thread.run_sync(self.look, abandon_on_cancel=True)
        return Pause(LOOK_SECONDS, LOOK_SECONDS)

    def look(self) -> None:
        """Look at the file, and read it if it may have been changed; blocks.

        A file that is not there counts as unchanged: an editor may be replacing it.

        Raises:
            OSError: the machine is short of a resource; the next look reads the file.
        """
        try:
            status = os.stat(self._path)  # noqa: PTH116 - each two seconds, for the whole run
        except OSError:
            return
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
        if stamp == self._stamp:
            return
        try:
            digest = load(Path(self._path)).digest
        except ConfigError as error:
            cause = error.__cause__
            if cause is not None and resource_errors.shortage(cause):
                raise cause from None
            self._stamp, self._digest = stamp, ""  # the next edit is told of in any case
            log.warning(CHANGED, path=self._path, error=str(error), remedy=_CORRECT)
            return
        self._stamp = stamp
        if digest != self._digest:
            self._digest = digest
            log.warning(CHANGED, path=self._path, remedy=_RESTART)
