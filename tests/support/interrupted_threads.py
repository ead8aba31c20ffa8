"""Threads that share one client while exceptions interrupt them at random; a script.

    python interrupted_threads.py SOCKET SECONDS SEED

At the end it prints a line of JSON: the numbers of leases and interrupts, what went wrong, and what
the daemon lists as leased and waiting while the client is still open.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import random
import signal
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

from clonepool.client import Client
from clonepool.errors import ClonepoolError

if TYPE_CHECKING:
    from types import FrameType

THREADS = 5
TIMEOUT_SECONDS = 20.0


class Interrupted(BaseException):
    """The exception that interrupts a thread at a random moment."""


class InterruptedThreads:
    """The client and the threads that use it."""

    def __init__(self, path: str, seconds: float, seed: int) -> None:
        self.client = Client(path, name="interrupted threads")
        self.until = time.monotonic() + seconds
        self.seed = seed
        self.leases = self.interrupts = 0
        self.wrong: list[str] = []
        self.threads: list[threading.Thread] = []
        self._chance = random.Random(seed)
        self._exposed = False  # whether this thread is ready for an exception

    def run(self) -> dict[str, Any]:
        """Lease in all threads and in this one, then wait until every lease is released."""
        self.threads = [
            threading.Thread(target=self._stay, args=(number,)) for number in range(1, THREADS)
        ]
        for thread in self.threads:
            thread.start()
        signal.signal(signal.SIGALRM, self._strike)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.003)
        self._play(0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for thread in self.threads:
            thread.join(60)
            if thread.is_alive():
                self.wrong.append("a thread still waits")
        gc.collect()
        return {"leases": self.leases, "interrupts": self.interrupts, "wrong": self.wrong,
                "left": self._left()}  # fmt: skip

    def _left(self) -> list[Any]:
        deadline = time.monotonic() + 20
        while True:
            pools = self.client.call("status")["pools"]
            left = [*self.client.call("leases"), *(p for p in pools if p["waiting"])]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.02)  # sleeps: between two looks

    def _strike(self, _: int, frame: FrameType | None) -> None:
        """Raise an exception in one of the threads, which may be this one."""
        self.interrupts += 1
        victim = self._chance.randrange(THREADS)
        if victim == 0:
            if self._exposed and not _is_finalizing(frame):
                self._exposed = False
                raise Interrupted
            return
        number = self.threads[victim - 1].ident
        if number is not None and not _is_finalizing(sys._current_frames().get(number)):  # noqa: SLF001 - documented, and named so all the same
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(number), ctypes.py_object(Interrupted)
            )

    def _stay(self, number: int) -> None:
        """Play, and go on after an exception between two turns."""
        while time.monotonic() < self.until:
            with contextlib.suppress(Interrupted):
                self._play(number)

    def _play(self, number: int) -> None:
        chance, turn = random.Random(self.seed * 100 + number), 0
        while time.monotonic() < self.until:
            turn += 1
            try:
                self._exposed = self._exposed or number == 0
                self._lease(chance, f"{number}.{turn}")
                self._exposed = self._exposed and number != 0
            except Interrupted:
                pass
            except ClonepoolError as error:
                if error.code != "not_your_lease":  # a reset that was taken back
                    self.wrong.append(f"{number}.{turn}: {error!r}")
            except Exception as error:  # noqa: BLE001 - told in the end
                self.wrong.append(f"{number}.{turn}: {error!r}")

    def _lease(self, chance: random.Random, label: str) -> None:
        lease = self.client.lease("blog", timeout=TIMEOUT_SECONDS, label=label)
        listed = [each["label"] for each in self.client.call("leases")
                  if each["database"] == lease.database]  # fmt: skip
        if listed != [label]:
            self.wrong.append(f"{label} was given {lease.database}, which is of {listed}")
        self.leases += 1
        time.sleep(chance.random() * 0.005)  # sleeps: holds the lease
        what = chance.random()
        if what < 0.1:
            lease.reset(timeout=TIMEOUT_SECONDS)
        if what < 0.8:
            lease.release()


def _is_finalizing(frame: FrameType | None) -> bool:
    """Say whether an exception would go nowhere: Python tells of it, and goes on."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def main() -> None:
    """Run with the arguments of the command line."""
    warnings.simplefilter("ignore", ResourceWarning)
    threading.excepthook = lambda _: None  # an interrupt between the turns of a thread
    path, seconds, seed = sys.argv[1:]
    print(json.dumps(InterruptedThreads(path, float(seconds), int(seed)).run()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
