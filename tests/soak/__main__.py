"""`python -m soak`: clients and chaos for some minutes, then the proof that nothing broke."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from clonepool.client import Client
from clonepool.postgres.embedded.server import discard
from soak import remains
from soak.chaos import Chaos
from soak.checker import Report, check, names
from soak.crowd import Crowd
from soak.ground import GRACE_SECONDS, TEMPLATES, Ground
from soak.heartbeat import Heartbeat
from soak.journal import Journal, clock, read_all
from soak.summary import needed, summary
from soak.visits import reference

if TYPE_CHECKING:
    from soak.journal import Record

ALLOWANCE_SECONDS = 0.25
"""By how much an answer may be late without an excuse; by twice that on a busy machine."""
BUSY_SHARE = 0.1
"""Of its time that the daemon waits for a processor on a machine that is busy."""
LONGER, LEAST_EXTRA_SECONDS = 5, 180
"""How much longer than asked for it may take until enough has happened."""
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.6, 2.5
_MISTAKES = ("work.failed", "request.failed", "Traceback", "PASSWORD E'", "PASSWORD '")
"""In the daemon's log: mistakes of its own, and secrets."""
_EVENTS = ("lease.found", "clone.found_kept", "clone.adopted", "database.swept", "server.adopted")
"""In the daemon's log: what only a start after a stop or a kill meets with."""


def main() -> None:
    """Run a soak and exit with 0, or with 1 when something is not as promised."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for how long (default 5)")
    parser.add_argument("--seed", type=int, help="decides every choice; random when absent")
    parser.add_argument("--clients", type=int, default=36, help="processes (default 36)")
    parser.add_argument("--keep", action="store_true", help="keep the journals in any case")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    signal.signal(signal.SIGTERM, _stop)
    print(
        f"soak: {arguments.minutes:g} min, {arguments.clients} clients, --seed {seed}", flush=True
    )
    directory = Path(tempfile.mkdtemp(prefix="clonepool-soak-"))
    directory.chmod(0o711)
    failed = True
    try:
        failed = not soak(directory, arguments.minutes * 60, arguments.clients, seed)
    finally:
        tidy(directory, keep=failed or arguments.keep)
    sys.exit(int(failed))


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def soak(directory: Path, seconds: float, clients: int, seed: int) -> bool:
    """Run, judge and tell; say whether all was as promised."""
    journals = directory / "journals"
    journals.mkdir()
    journal = Journal(journals / "runner.jsonl", "runner")
    ground = Ground(directory, journal)
    heartbeat = Heartbeat(journal, lambda: ground.pid)
    began = clock()
    try:
        ground.start()
        prepare(ground)
        heartbeat.start()
        hurt(ground, journal, journals, seconds=seconds, clients=clients, seed=seed)
        heartbeat.end()
        settle(ground, journal)
    finally:
        if ground.process is not None and ground.process.poll() is None:
            ground.end(signal.SIGTERM)
    took = clock() - began
    is_busy = heartbeat.delayed > took * BUSY_SHARE
    report = judge(ground, journal, journals, seconds, ALLOWANCE_SECONDS * (1 + is_busy))
    print(summary(report, heartbeat, took), flush=True)
    return not report.problems


def prepare(ground: Ground) -> None:
    """Learn what a pristine clone of each template holds, before anybody changes one."""
    found = {}
    with Client(str(ground.socket)) as client:
        for template in TEMPLATES:
            with client.lease(template, timeout=60.0) as lease:
                found[template] = anyio.run(reference, lease.url)
    (ground.directory / "references.json").write_text(json.dumps(found))


def hurt(
    ground: Ground, journal: Journal, journals: Path, *, seconds: float, clients: int, seed: int
) -> None:
    """Let clients and chaos loose for some seconds, or longer where the machine is busy.

    A run verifies something when enough has happened in it, however long that takes.
    """
    began = clock()
    latest = began + LONGER * seconds + LEAST_EXTRA_SECONDS

    def is_over() -> bool:
        now = clock()
        return now >= latest or (now >= began + seconds and not _lacking(ground, journals, seconds))

    crowd = Crowd(ground, journals, journal, seed, latest)
    pause = min(LONGEST_PAUSE_SECONDS, max(SHORTEST_PAUSE_SECONDS, seconds / 25))
    chaos = Chaos(ground, crowd, journal, seed, pause)
    tending = threading.Thread(target=crowd.tend, daemon=True)
    try:
        crowd.start(clients)
        tending.start()
        chaos.run(is_over)
        crowd.end()
        tending.join()
        crowd.await_end(30.0)
    finally:
        crowd.kill()


def _lacking(ground: Ground, journals: Path, seconds: float) -> list[str]:
    """Return what has not happened as often as it must."""
    counts = Counter(names([*read_all(journals), *_logged(ground)]))
    return [name for name, least in needed(seconds).items() if counts[name] < least]


def settle(ground: Ground, journal: Journal) -> None:
    """See what is left at rest, after a clean stop and start, and after the end."""
    ground.revive()
    before = remains.look(ground, journal, "at rest")
    storage = ground.storage()
    ground.end(signal.SIGTERM)
    remains.look_for_processes(ground, journal, storage)
    ground.start()
    after = remains.look(ground, journal, "after a restart")
    journal.write("adopted", clones=len(after & before), parked=len(before))
    ground.end(signal.SIGTERM)
    remains.look_for_processes(ground, journal, storage)


def judge(
    ground: Ground, journal: Journal, journals: Path, seconds: float, allowance: float
) -> Report:
    """Read what everybody wrote down."""
    for line in ground.log.read_text(errors="replace").splitlines():
        if any(mistake in line for mistake in _MISTAKES):
            journal.write("daemon_error", line=line)
    return check(
        [*read_all(journals), *_logged(ground)],
        grace=GRACE_SECONDS,
        allowance=allowance,
        needed=needed(seconds),
    )


def _logged(ground: Ground) -> list[Record]:
    """Return a record of each line of the daemon's log that tells one of those events."""
    lines = ground.log.read_text(errors="replace").splitlines()
    return [
        {"t": clock(), "who": "daemon", "what": "logged", "event": event}
        for line in lines
        for event in _EVENTS
        if f'"{event}"' in line
    ]


def tidy(directory: Path, *, keep: bool) -> None:
    """End the server, delete its data, and keep what explains a failure."""
    try:
        anyio.run(discard, directory / "state")
    finally:
        if keep:
            print(f"journals and the daemon's log are kept in {directory}", flush=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
