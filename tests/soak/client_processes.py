"""Starts the client processes, counts their leases, replaces crashed ones, and ends them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from soak.daemon import SoakDaemon
    from soak.journal import Journal

_CRASHES = frozenset({70, -signal.SIGKILL})
_POLL_SECONDS = 0.05


class ClientProcesses:
    """A constant number of clients; each replacement has its own name and seed."""

    def __init__(
        self, daemon: SoakDaemon, journals: Path, journal: Journal, seed: int, until: float
    ) -> None:
        self._daemon = daemon
        self._journals = journals
        self._journal = journal
        self._seed = seed
        self._until = until
        self._living: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[int, int] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._stop = journals.with_name("stop")

    def start(self, size: int) -> None:
        """Start the clients."""
        for slot in range(size):
            self._start(slot)

    def replace_crashed(self) -> None:
        """Replace clients that crash, until `end`."""
        while not self._over.wait(_POLL_SECONDS):
            for who in self._reap():
                self._start(int(who.partition("-")[0][1:]))

    def granted(self) -> int:
        """Return how many leases the clients had so far."""
        journals = self._journals.glob("c*.jsonl")
        return sum(journal.read_bytes().count(b'"what": "granted"') for journal in journals)

    def end(self) -> None:
        """Tell the clients to finish."""
        self._over.set()
        self._stop.touch()

    def await_end(self, seconds: float) -> None:
        """Wait until all have ended; kill the ones that have not ended in time."""
        deadline = time.monotonic() + seconds
        while self._living and time.monotonic() < deadline:
            self._reap()
            time.sleep(_POLL_SECONDS)
        for who, process in list(self._living.items()):
            self._journal.write("broken", why=f"client {who} did not end in time")
            process.kill()
            process.wait()
        self._reap()

    def cut(self, choice: random.Random, number: int) -> list[str]:
        """Make some clients close their connection to the daemon; return their names."""
        with self._lock:
            able = sorted(who for who in self._living if self._journal_of(who).exists())
            victims = choice.sample(able, min(number, len(able)))
            for who in victims:
                with contextlib.suppress(ProcessLookupError):
                    self._living[who].send_signal(signal.SIGUSR1)
        return victims

    def kill(self) -> None:
        """Kill all clients."""
        with self._lock:
            for process in self._living.values():
                process.kill()
            for process in self._living.values():
                process.wait()
            self._living.clear()

    def _start(self, slot: int) -> None:
        number = self._started[slot] = self._started.get(slot, 0) + 1
        who = f"c{slot:02d}-{number}"
        command = [sys.executable, "-m", "soak.client", "--who", who]
        command += ["--seed", f"{self._seed} {who}", "--until", str(self._until)]
        command += ["--stop", str(self._stop)]
        command += ["--journal", str(self._journal_of(who)), "--socket", str(self._daemon.socket)]
        command += ["--references", str(self._daemon.directory / "references.json")]
        with (self._journals / f"{who}.stderr").open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        with self._lock:
            self._living[who] = process

    def _reap(self) -> list[str]:
        """Record the clients that have ended; return their names."""
        with self._lock:
            ended = {w: p for w, p in self._living.items() if p.poll() is not None}
            for who in ended:
                del self._living[who]
        for who, process in ended.items():
            self._journal.write(
                "client_ended",
                client=who,
                exit=process.returncode,
                expected=process.returncode == 0 or self._crashed(who, process.returncode),
                said=(self._journals / f"{who}.stderr").read_text()[-2000:],
            )
        return list(ended)

    def _crashed(self, who: str, code: int) -> bool:
        """Say whether the client crashed on purpose, which its last record tells."""
        *_, last = self._journal_of(who).read_text().splitlines() or [""]
        return code in _CRASHES and '"crashing"' in last

    def _journal_of(self, who: str) -> Path:
        return self._journals / f"{who}.jsonl"
