"""A daemon whose wall clock the test sets by libfaketime; no other clock changes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support.daemons import Daemon, clean_up
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import Process


def find_libfaketime() -> Path | None:
    """Return the library, from Debian's package `faketime`."""
    found = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]
    return found[0] if found else None


class SetBackDaemon(Daemon):
    """A daemon with a wall clock of its own.

    Attributes:
        spawned_at: Unix time of the last start, by the real clock.
    """

    spawned_at = 0.0

    def set_clock(self, seconds: float) -> None:
        """Set the offset of its clock from the real one, at once."""
        fresh = self.directory / "clock.new"
        fresh.write_text(f"{seconds:+.3f}\n")
        fresh.rename(self.directory / "clock")

    def spawn(self) -> Process:
        """Start the process under libfaketime."""
        command = [sys.executable, "-m", "clonepool", *self.arguments]
        faked = {
            "LD_PRELOAD": str(find_libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self.directory / "clock"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.spawned_at = time.time()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **faked}
            )
        return self.process


@contextmanager
def set_back_daemon(config: str) -> Iterator[SetBackDaemon]:
    """Run a daemon whose clock is right at first; delete its data at the end."""
    with open_directory() as directory:
        daemon = SetBackDaemon(directory, config)
        daemon.set_clock(0)
        try:
            daemon.start()
            yield daemon
        finally:
            clean_up(daemon)
