"""Acquires that wait while the test does something else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from support.outages import COUNT, rows

if TYPE_CHECKING:
    from support.daemons import Daemon


class Waiter:
    """An acquire in its own thread; the lease is used once and released."""

    def __init__(self, daemon: Daemon, timeout: float = 20.0) -> None:
        self._outcome: object = None
        self._daemon, self._timeout = daemon, timeout
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> object:
        """Return what was read from the clone, or the error."""
        self._thread.join(self._timeout + 10)
        return self._outcome

    def _run(self) -> None:
        try:
            with self._daemon.client() as client:
                lease = client.lease("blog", timeout=self._timeout)
                self._outcome = rows(lease.url, COUNT)
                lease.release()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self._outcome = error
