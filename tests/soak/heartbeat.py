"""Measures stalls of the machine, so that the checker can excuse delays by them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from soak.connection import runqueue_seconds
from soak.journal import clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.journal import Journal

_BEAT_SECONDS = 0.01
_NOTICED_SECONDS = 0.02


class Heartbeat(threading.Thread):
    """Wakes a hundred times a second and records when it woke late.

    It also measures how long the daemon's process was ready to run and had no processor.

    Attributes:
        longest: seconds of the longest stall.
        delayed: total seconds that the daemon waited for a processor.
    """

    def __init__(self, journal: Journal, daemon: Callable[[], int]) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._journal = journal
        self._daemon = daemon
        self._ended = threading.Event()
        self.longest = 0.0
        self.delayed = 0.0

    def run(self) -> None:
        """Measure until `end`."""
        before, pid = clock(), self._daemon()
        waited = runqueue_seconds(pid)
        while not self._ended.is_set():
            time.sleep(_BEAT_SECONDS)
            now, late = clock(), clock() - before - _BEAT_SECONDS
            self.longest = max(self.longest, late)
            if late > _NOTICED_SECONDS:
                self._journal.write("stall", since=before, seconds=late)
            waited_now = runqueue_seconds(pid)
            delay = min(waited_now - waited, now - before)
            if delay > 0:
                self.delayed += delay
            if delay > _NOTICED_SECONDS:
                self._journal.write("daemon_delayed", since=now - delay, seconds=delay)
            before, waited = now, waited_now
            if pid != self._daemon():
                pid = self._daemon()
                waited = runqueue_seconds(pid)

    def end(self) -> None:
        """Stop."""
        self._ended.set()
        self.join()
