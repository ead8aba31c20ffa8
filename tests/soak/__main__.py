"""`python -m soak`: clients and faults for some minutes, then a check that nothing broke."""

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
from soak import leftovers
from soak.chaos import Chaos
from soak.checker import Report, check, names
from soak.client_processes import ClientProcesses
from soak.daemon import GRACE_SECONDS, TEMPLATES, SoakDaemon
from soak.heartbeat import Heartbeat
from soak.journal import Journal, clock, read_all
from soak.sessions import reference
from soak.summary import needed, summary

if TYPE_CHECKING:
    from soak.journal import Record

ALLOWANCE_SECONDS = 0.25
"""Seconds by which an answer may be late without an excuse; twice that on a busy machine."""
BUSY_SHARE = 0.1
"""Share of the time that the daemon waits for a processor, above which the machine is busy."""
LONGER, LEAST_EXTRA_SECONDS = 5, 180
"""How much longer than requested a run may take: a factor, and seconds added to that."""
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.6, 2.5
_MISTAKES = ("work.failed", "request.failed", "Traceback", "PASSWORD E'", "PASSWORD '")
"""Texts that must not be in the daemon's log: signs of bugs, and secrets."""
_EVENTS = ("lease.found", "clone.found_kept", "clone.adopted", "database.swept", "server.adopted")
"""Events that the daemon logs only at a start after a stop or a kill."""


def main() -> None:
    """Run a soak and exit with 0, or with 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="duration of the run (default 5)"
    )
    parser.add_argument("--seed", type=int, help="seed of every random choice (default random)")
    parser.add_argument(
        "--clients", type=int, default=36, help="number of client processes (default 36)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the journals even if nothing broke"
    )
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
    """Run, check and print a summary; say whether every promise held."""
    journals = directory / "journals"
    journals.mkdir()
    journal = Journal(journals / "runner.jsonl", "runner")
    daemon = SoakDaemon(directory, journal)
    heartbeat = Heartbeat(journal, lambda: daemon.pid)
    began = clock()
    try:
        daemon.start()
        prepare(daemon)
        heartbeat.start()
        run_load(daemon, journal, journals, seconds=seconds, clients=clients, seed=seed)
        heartbeat.end()
        check_leftovers(daemon, journal)
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.end(signal.SIGTERM)
    took = clock() - began
    is_busy = heartbeat.delayed > took * BUSY_SHARE
    report = judge(daemon, journal, journals, seconds, ALLOWANCE_SECONDS * (1 + is_busy))
    print(summary(report, heartbeat, took), flush=True)
    return not report.problems


def prepare(daemon: SoakDaemon) -> None:
    """Learn what a pristine clone of each template holds, before any client changes one."""
    found = {}
    with Client(str(daemon.socket)) as client:
        for template in TEMPLATES:
            with client.lease(template, timeout=60.0) as lease:
                found[template] = anyio.run(reference, lease.url)
    (daemon.directory / "references.json").write_text(json.dumps(found))


def run_load(
    daemon: SoakDaemon, journal: Journal, journals: Path, *, seconds: float, clients: int, seed: int
) -> None:
    """Run clients and faults for some seconds, or longer on a busy machine.

    A run continues until enough has happened in it to verify something.
    """
    began = clock()
    latest = began + LONGER * seconds + LEAST_EXTRA_SECONDS

    def is_over() -> bool:
        now = clock()
        return now >= latest or (now >= began + seconds and not _lacking(daemon, journals, seconds))

    processes = ClientProcesses(daemon, journals, journal, seed, latest)
    pause = min(LONGEST_PAUSE_SECONDS, max(SHORTEST_PAUSE_SECONDS, seconds / 25))
    chaos = Chaos(daemon, processes, journal, seed, pause)
    replacing = threading.Thread(target=processes.replace_crashed, daemon=True)
    try:
        processes.start(clients)
        replacing.start()
        chaos.run(is_over)
        processes.end()
        replacing.join()
        processes.await_end(30.0)
    finally:
        processes.kill()


def _lacking(daemon: SoakDaemon, journals: Path, seconds: float) -> list[str]:
    """Return the names of records of which there are too few so far."""
    counts = Counter(names([*read_all(journals), *_logged(daemon)]))
    return [name for name, least in needed(seconds).items() if counts[name] < least]


def check_leftovers(daemon: SoakDaemon, journal: Journal) -> None:
    """Record what is left at rest, after a clean stop and start, and after the end."""
    daemon.restart_if_ended()
    before = leftovers.look(daemon, journal, "at rest")
    storage = daemon.storage()
    daemon.end(signal.SIGTERM)
    leftovers.look_for_processes(daemon, journal, storage)
    daemon.start()
    after = leftovers.look(daemon, journal, "after a restart")
    journal.write("adopted", clones=len(after & before), parked=len(before))
    daemon.end(signal.SIGTERM)
    leftovers.look_for_processes(daemon, journal, storage)


def judge(
    daemon: SoakDaemon, journal: Journal, journals: Path, seconds: float, allowance: float
) -> Report:
    """Check the journals and the daemon's log."""
    for line in daemon.log.read_text(errors="replace").splitlines():
        if any(mistake in line for mistake in _MISTAKES):
            journal.write("daemon_error", line=line)
    return check(
        [*read_all(journals), *_logged(daemon)],
        grace=GRACE_SECONDS,
        allowance=allowance,
        needed=needed(seconds),
    )


def _logged(daemon: SoakDaemon) -> list[Record]:
    """Return a record for each line of the daemon's log that has one of `_EVENTS`."""
    lines = daemon.log.read_text(errors="replace").splitlines()
    return [
        {"t": clock(), "who": "daemon", "what": "logged", "event": event}
        for line in lines
        for event in _EVENTS
        if f'"{event}"' in line
    ]


def tidy(directory: Path, *, keep: bool) -> None:
    """Stop the server and delete its data; keep the journals and the log if `keep`."""
    try:
        anyio.run(discard, directory / "state")
    finally:
        if keep:
            print(f"journals and the daemon's log are kept in {directory}", flush=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
