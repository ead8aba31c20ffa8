"""Injects faults one at a time, at random moments and in an order that the seed determines."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.client_processes import ClientProcesses
    from soak.daemon import SoakDaemon
    from soak.journal import Journal

_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> {me}"
_ME = "pg_backend_pid()"
_LEASES_BETWEEN = 6
_PATIENCE_SECONDS, _POLL_SECONDS = 15.0, 0.1


class Chaos:
    """Runs actions in shuffled order, each once before any is repeated.

    Args:
        daemon: the daemon that is disturbed.
        clients: the clients, some of which are cut off.
        journal: records each action before and after it.
        seed: determines the order, the moments and how many sessions or clients are affected.
        pause: mean seconds between two actions.
    """

    def __init__(
        self,
        daemon: SoakDaemon,
        clients: ClientProcesses,
        journal: Journal,
        seed: int,
        pause: float,
    ) -> None:
        self._daemon = daemon
        self._clients = clients
        self._journal = journal
        self._random = random.Random(f"chaos {seed}")
        self._pause = pause
        self._deck: list[str] = []
        self._granted = 0
        self.actions: dict[str, Callable[[], object]] = {
            "kill the daemon": self._kill_daemon,
            "restart the daemon": self._restart_daemon,
            "freeze the daemon": self._freeze_daemon,
            "terminate backends": self._terminate_backends,
            "crash a backend": self._crash_backend,
            "stop the postmaster": lambda: self._signal_postmaster(signal.SIGQUIT),
            "kill the postmaster": lambda: self._signal_postmaster(signal.SIGKILL),
            "cut clients": self._cut_clients,
        }

    def run(self, is_over: Callable[[], bool]) -> None:
        """Inject faults until the run is over."""
        while not is_over():
            time.sleep(self._random.uniform(0.3, 1.7) * self._pause)
            self._daemon.restart_if_ended()
            self._await_leases()
            self._act()

    def _await_leases(self) -> None:
        """Wait until clients have got some leases since the last action, for a limited time."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        enough = self._granted + _LEASES_BETWEEN
        while self._clients.granted() < enough and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._granted = self._clients.granted()

    def _act(self) -> None:
        if not self._deck:
            self._deck = self._random.sample(sorted(self.actions), len(self.actions))
        action = self._deck.pop()
        self._journal.write("chaos", action=action)
        said: object = None
        try:
            said = self.actions[action]()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            said = f"failed: {error!r}"
        self._journal.write("chaos_done", of=action, said=said)

    def _kill_daemon(self) -> None:
        self._daemon.end(signal.SIGKILL)
        time.sleep(self._random.choice([0.0, 0.0, 0.4]))
        self._daemon.start()

    def _restart_daemon(self) -> None:
        self._daemon.end(signal.SIGTERM)
        self._daemon.start()

    def _freeze_daemon(self) -> None:
        self._daemon.freeze(self._random.uniform(0.05, 0.8))

    def _terminate_backends(self) -> list[int]:
        """End random sessions: of clients, of the daemon, or the one that holds its lock."""
        limit = self._random.randint(1, 4)
        (rows,) = self._daemon.queries(
            f"SELECT pid, pg_terminate_backend(pid) FROM ({_BACKENDS.format(me=_ME)}"
            f" ORDER BY random() LIMIT {limit}) AS those"
        )
        return [row["pid"] for row in rows]

    def _crash_backend(self) -> int | None:
        """Kill one session's process: the server ends all sessions and recovers."""
        server = self._daemon.postmaster()
        (rows,) = self._daemon.queries(_BACKENDS.format(me=_ME))
        for row in self._random.sample(rows, len(rows)):
            if parent_of(row["pid"]) == server:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(row["pid"], signal.SIGKILL)
                    return int(row["pid"])
        return None

    def _signal_postmaster(self, number: signal.Signals) -> int:
        server = self._daemon.postmaster()
        if Path(f"/proc/{server}/cwd").readlink() == self._daemon.storage() / "data":
            os.kill(server, number)
        return server

    def _cut_clients(self) -> list[str]:
        return self._clients.cut(self._random, self._random.randint(1, 5))


def parent_of(pid: int) -> int:
    """Return the parent of a process, or 0 if the process has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])
